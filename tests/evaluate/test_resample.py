from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from test_ap import CLASSES, detections, reference, truth

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.evaluate.ap import Predictions, evaluate
from retinanet.evaluate.resample import average_precision, match


def repeated(dataset: Dataset, predictions: Predictions, times: npt.NDArray[np.int64]) -> tuple[Dataset, Predictions]:
    """The dataset with ``times[i]`` copies of image ``i``, each with an id of its own and its detections."""
    indices = np.repeat(np.arange(len(dataset)), times)
    ids = dataset.image_ids[indices] * 1000 + np.arange(len(indices))
    rows = [np.flatnonzero(predictions.images == i) for i in indices]
    taken = np.concatenate(rows)
    images = np.repeat(np.arange(len(indices)), [len(r) for r in rows])
    return replace(dataset.subset(indices), image_ids=ids), Predictions(
        images, predictions.boxes[taken], predictions.scores[taken], predictions.labels[taken]
    )


@pytest.mark.parametrize(("seed", "category_ids"), [(0, (1, 2, 3, 4)), (1, (90, 17, 3, 44))])
def test_weights_are_copies_of_images(seed: int, category_ids: tuple[int, ...]) -> None:
    """pycocotools measures the dataset with the copies written out."""
    dataset = truth(seed, category_ids)
    predictions = detections(dataset, seed)
    rng = np.random.default_rng(seed)
    draws = [np.ones(len(dataset), dtype=np.int64)]
    draws += [np.bincount(rng.integers(0, len(dataset), len(dataset)), minlength=len(dataset)) for _ in range(3)]
    found = np.stack([average_precision(m, np.stack(draws)) for m in match(dataset, predictions)])  # (K, R, T)
    assert np.isnan(found[CLASSES.index("owl")]).all()
    assert len(np.unique(found[0, :, 0])) == 4
    for r, times in enumerate(draws):
        stats, per_class = reference(*repeated(dataset, predictions, times))
        assert np.nanmean(found[:, r]) == pytest.approx(stats[0], abs=1e-12)
        assert np.nanmean(found[:, r, 0]) == pytest.approx(stats[1], abs=1e-12)
        assert np.nanmean(found[:, r, 5]) == pytest.approx(stats[2], abs=1e-12)
        for name, values in per_class.items():
            assert found[CLASSES.index(name), r].mean() == pytest.approx(values["AP"], abs=1e-12)


def test_a_class_that_is_not_drawn_has_no_precision() -> None:
    dataset = truth(2)
    predictions = detections(dataset, 2)
    cats = [i for i in dataset if (dataset.labels[dataset.rows(i)] == 0).any()]
    weights = np.ones((1, len(dataset)), dtype=np.int64)
    weights[0, cats] = 0
    values = [average_precision(m, weights)[0] for m in match(dataset, predictions)]
    assert np.isnan(values[0]).all()
    assert np.isfinite(values[1]).all()


def test_rows_and_targets_say_who_found_what() -> None:
    builder = DatasetBuilder("two", Path("/data"), ("cat", "dog"), (7, 3))
    builder.add_image("0.jpg", 100, 100, image_id=9)
    builder.add_box((0, 0, 50, 50), NO_CLASS, "", ignore=True)
    builder.add_box((60, 60, 80, 80), 0, "")
    builder.add_image("1.jpg", 100, 100, image_id=4)
    builder.add_box((10, 10, 30, 30), 1, "")
    dataset = builder.build()
    boxes = [(60, 60, 80, 80), (5, 5, 20, 20), (10, 10, 30, 31), (10, 10, 30, 30), (90, 90, 99, 99)]
    predictions = Predictions(
        np.array([0, 0, 1, 1, 1]),
        np.array(boxes, dtype=np.float64),
        np.array([0.5, 0.9, 0.8, 0.7, 0.6]),
        np.array([0, 0, 1, 1, 0]),
    )
    cat, dog = match(dataset, predictions)
    assert cat.rows.tolist() == [1, 4, 0]
    assert cat.images.tolist() == [0, 1, 0]
    assert cat.scores.tolist() == [0.9, 0.6, 0.5]
    assert cat.ignored[0].tolist() == [True, False, False]
    assert cat.right[0].tolist() == [False, False, True]
    assert cat.targets.tolist() == [-1, -1, 1]
    assert cat.objects.tolist() == [1, 0]
    assert dog.rows.tolist() == [2, 3]
    assert dog.right[0].tolist() == [True, False]
    assert dog.right[9].tolist() == [True, False]  # 20 × 20 in 20 × 21: 0.952
    assert dog.targets.tolist() == [2, -1]
    assert dog.objects.tolist() == [0, 1]


def test_the_best_hundred_of_an_image_count() -> None:
    dataset = truth(3, images=3, crowds=False)
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 300, (900, 2))
    predictions = Predictions(
        rng.integers(0, 3, 900),
        np.concatenate([corner, corner + rng.uniform(20, 150, (900, 2))], axis=1),
        rng.uniform(size=900),
        np.zeros(900, dtype=np.int64),
    )
    [cat, *_] = match(dataset, predictions)
    assert np.bincount(cat.images).tolist() == [100, 100, 100]
    best = [np.sort(predictions.scores[predictions.images == i])[-100] for i in range(3)]
    assert cat.scores.min() == pytest.approx(min(best))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = truth(4)
    [cat, *_] = match(dataset, detections(dataset, 4))
    weights = np.random.default_rng(0).integers(0, 3, (7, len(dataset)))
    whole = average_precision(cat, weights)
    monkeypatch.setattr("retinanet.evaluate.resample._CHUNK", 1)
    np.testing.assert_array_equal(average_precision(cat, weights), whole)


def test_nothing_found() -> None:
    dataset = truth(5)
    none = np.zeros(0, dtype=np.int64)
    matches = match(dataset, Predictions(none, np.zeros((0, 4)), np.zeros(0), none))
    one = np.ones((1, len(dataset)), dtype=np.int64)
    assert [average_precision(m, one)[0].tolist() for m in matches[:3]] == [[0.0] * 10] * 3
    assert evaluate(dataset, Predictions(none, np.zeros((0, 4)), np.zeros(0), none)).summary["AP"] == 0
