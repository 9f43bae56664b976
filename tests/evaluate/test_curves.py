from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scenes import class_aps, pycoco, random_detections, random_truth

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.evaluate.ap import Predictions
from retinanet.evaluate.curves import (
    SCORES,
    against_thresholds,
    average_precisions,
    best_score,
    bootstrap,
    mean,
    precisions,
)
from retinanet.evaluate.matching import make_scene, match


def drawn(dataset: Dataset, predictions: Predictions, counts: list[int]) -> tuple[Dataset, Predictions]:
    """The data set with each image as often as ``counts`` says, in the order of the image ids, and its detections."""
    builder = DatasetBuilder("drawn", Path("/data"), dataset.classes, dataset.category_ids)
    parts = []
    for image in np.argsort(dataset.image_ids).tolist():
        mine = np.flatnonzero(predictions.images == image)
        for _ in range(counts[image]):
            builder.add_image(f"{len(builder)}.jpg", 200, 160)
            rows = dataset.rows(image)
            for row in range(rows.start, rows.stop):
                label, crowd = int(dataset.labels[row]), bool(dataset.ignore[row])
                builder.add_box(tuple(dataset.boxes[row].tolist()), label, "", ignore=crowd)
            images = np.full(len(mine), len(builder) - 1, dtype=np.int64)
            parts.append((images, predictions.boxes[mine], predictions.scores[mine], predictions.labels[mine]))
    return builder.build(), Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_a_draw_is_worth_what_pycocotools_says_of_the_drawn_images() -> None:
    dataset = random_truth(0, images=12)
    predictions = random_detections(dataset, 0)
    # Equal scores in several images have an order that depends on the images drawn; here all differ.
    scores = predictions.scores + np.arange(len(predictions.scores), dtype=np.float32) * 1e-5
    predictions = Predictions(predictions.images, predictions.boxes, scores, predictions.labels)
    scene = make_scene(dataset, predictions)
    resampled = bootstrap(scene, match(scene), seed=3, resamples=6)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=6)
    assert (draws == 0).any()
    for values, counts in zip(resampled.values, draws.tolist(), strict=True):
        again = drawn(dataset, predictions, counts)
        np.testing.assert_allclose(values, class_aps(pycoco(*again), again[0]), atol=1e-12)


def test_intervals() -> None:
    dataset = random_truth(1, images=40)
    scene = make_scene(dataset, random_detections(dataset, 1))
    matching = match(scene)
    values = average_precisions(scene, matching, scene.totals())
    resampled, again = (bootstrap(scene, matching, seed=0, resamples=400) for _ in range(2))
    np.testing.assert_array_equal(resampled.values, again.values)
    assert not np.array_equal(resampled.values, bootstrap(scene, matching, seed=1, resamples=400).values)
    for label in range(3):
        bounds = resampled.interval(label)
        assert bounds is not None
        assert bounds[0] < values[:, label].mean() < bounds[1]
        own = np.sort(resampled.values[:, :, label].mean(axis=1))
        assert bounds == pytest.approx(np.quantile(own, [0.025, 0.975]))
    assert resampled.interval(3) is None  # there is no owl
    both = resampled.mean_interval(32)
    assert both is not None
    assert both == pytest.approx(np.quantile(resampled.values[:, :, :3].mean(axis=1).mean(axis=1), [0.025, 0.975]))
    at_half = resampled.mean_interval(32, slice(0, 1))
    assert at_half is not None
    assert at_half == pytest.approx(np.quantile(resampled.values[:, 0, :3].mean(axis=1), [0.025, 0.975]))
    assert resampled.mean_interval(4) is None


def test_few_images_have_no_interval() -> None:
    dataset = random_truth(2, images=4)
    scene = make_scene(dataset, random_detections(dataset, 2))
    resampled = bootstrap(scene, match(scene), resamples=20)
    assert [resampled.interval(k) for k in range(4)] == [None] * 4


def test_large_sets_are_resampled_less(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = random_truth(0, images=6)
    scene = make_scene(dataset, random_detections(dataset, 0))
    matching = match(scene)
    assert len(bootstrap(scene, matching).values) == 1000
    monkeypatch.setattr("retinanet.evaluate.curves._EFFORT", matching.right.size * 321)
    assert len(bootstrap(scene, matching).values) == 321
    monkeypatch.setattr("retinanet.evaluate.curves._EFFORT", 1)
    assert len(bootstrap(scene, matching).values) == 100


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = random_truth(4)
    scene = make_scene(dataset, random_detections(dataset, 4))
    whole = bootstrap(scene, match(scene), resamples=10).values
    monkeypatch.setattr("retinanet.evaluate.curves._CHUNK", 300)
    np.testing.assert_array_equal(bootstrap(scene, match(scene), resamples=10).values, whole)


@pytest.mark.parametrize("seed", range(3))
def test_counts_above_thresholds(seed: int) -> None:
    dataset = random_truth(seed)
    scene = make_scene(dataset, random_detections(dataset, seed))
    matching = match(scene)
    counts = against_thresholds(scene, matching, scene.totals())
    for label in range(4):
        total = sum(bool(k == label and not i) for k, i in zip(dataset.labels, dataset.ignore, strict=True))
        for place in range(0, 101, 3):
            mine = [
                k for k in range(len(scene.scores)) if scene.labels[k] == label and scene.scores[k] >= SCORES[place]
            ]
            right = sum(bool(matching.right[0, k]) for k in mine)
            wrong = sum(bool(matching.wrong[0, k]) for k in mine)
            assert counts.right[label, place] == right
            assert counts.wrong[label, place] == wrong
            if total:
                assert counts.recall[label, place] == pytest.approx(right / total)
                assert counts.f1[label, place] == pytest.approx(2 * right / (2 * right + wrong + total - right))
            else:
                assert np.isnan(counts.f1[label, place])
            if right + wrong:
                assert counts.precision[label, place] == pytest.approx(right / (right + wrong))
            else:
                assert np.isnan(counts.precision[label, place])


def test_scores_of_two_decimals_reach_their_thresholds() -> None:
    builder = DatasetBuilder("steps", Path("/data"), ("cat",), (1,))
    builder.add_image("1.jpg", 100, 100)
    scores = np.array([float(f"{k / 100:.2f}") for k in range(101)])  # as people write them
    boxes = np.tile([1.0, 1, 9, 9], (101, 1))
    predictions = Predictions(np.zeros(101, np.int64), boxes, scores, np.zeros(101, np.int64))
    scene = make_scene(builder.build(), predictions, limit=101)
    counts = against_thresholds(scene, match(scene), scene.totals())
    assert counts.wrong[0].tolist() == list(range(101, 0, -1))


def test_the_middle_of_equally_good_thresholds() -> None:
    f1 = np.zeros(101)
    f1[40:61] = 0.8
    assert best_score(f1) == pytest.approx(0.5)
    f1[90] = 0.9
    assert best_score(f1) == pytest.approx(0.9)


def test_precisions_of_a_short_list() -> None:
    right = np.array([True, False, True, False])
    curve = precisions(right, ~right, total=4)
    np.testing.assert_allclose(curve[:26], 1)
    np.testing.assert_allclose(curve[26:51], 2 / 3)
    np.testing.assert_allclose(curve[51:], 0)


def test_mean_leaves_out_the_unknown() -> None:
    assert mean(np.array([1, np.nan, 3])) == 2
    assert np.isnan(mean(np.array([np.nan])))
