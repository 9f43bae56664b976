from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.curves import (
    SCORES,
    against_thresholds,
    average_precisions,
    best_score,
    bootstrap,
    draw_images,
    mean,
    precisions,
)
from retinanet.evaluation.matching import make_scene, match
from scenes import apart, class_aps, nothing, pycoco, random_detections, random_truth, reference, repeated


@pytest.mark.parametrize(("seed", "category_ids"), [(0, (1, 2, 3, 4)), (1, (90, 17, 3, 44))])
def test_a_draw_is_worth_what_pycocotools_says_of_the_drawn_images(seed: int, category_ids: tuple[int, ...]) -> None:
    """AP on a dataset that contains each image as often as it was drawn."""
    dataset = random_truth(seed, images=12, category_ids=category_ids)
    predictions = apart(random_detections(dataset, seed))
    scene = make_scene(dataset, predictions)
    resampled = bootstrap(scene, match(scene), seed=3, resamples=6)
    draws = draw_images(12, 6, seed=3)
    assert (draws == 0).any()
    assert (draws > 1).any()
    for values, average, times in zip(resampled.values, resampled.means(), draws, strict=True):
        again = repeated(dataset, predictions, times)
        np.testing.assert_allclose(values, class_aps(pycoco(*again), again[0]), atol=1e-12)
        assert average == pytest.approx(reference(*again)[0][0], abs=1e-12)


def test_draws() -> None:
    draws = draw_images(40, 500, seed=1)
    assert draws.shape == (500, 40)
    assert (draws.sum(axis=1) == 40).all()
    assert draws.mean() == 1
    assert draws.astype(float).var() == pytest.approx(1 - 1 / 40, rel=0.05)
    np.testing.assert_array_equal(draws, draw_images(40, 500, seed=1))
    assert (draws != draw_images(40, 500, seed=2)).any()


def test_two_detectors_get_the_same_draws() -> None:
    """Resamples without an object of a class are NaN in both, and only those."""
    dataset = random_truth(3, images=8, ignore=0, most=2)
    sides = []
    for seed in (0, 1):
        scene = make_scene(dataset, random_detections(dataset, seed))
        sides.append(bootstrap(scene, match(scene), seed=5, resamples=50).values)
    np.testing.assert_array_equal(np.isnan(sides[0]), np.isnan(sides[1]))
    counts = np.zeros((len(dataset), len(dataset.classes)), dtype=np.int64)
    for image in dataset:
        counts[image] += np.bincount(dataset.labels[dataset.rows(image)], minlength=4)
    np.testing.assert_array_equal(np.isnan(sides[0][:, 0]), draw_images(8, 50, seed=5) @ counts == 0)
    assert np.isnan(sides[0][:, 0, :3]).any()


def test_progress_counts_classes_with_objects() -> None:
    dataset = random_truth(0)
    scene = make_scene(dataset, random_detections(dataset, 0))
    steps: list[int] = []
    bootstrap(scene, match(scene), resamples=2, progress=steps.append)
    assert steps == [1, 1, 1]  # there is no owl


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
    monkeypatch.setattr("retinanet.evaluation.curves.EFFORT", matching.tp.size * 321)
    assert len(bootstrap(scene, matching).values) == 321
    monkeypatch.setattr("retinanet.evaluation.curves.EFFORT", 1)
    assert len(bootstrap(scene, matching).values) == 100


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = random_truth(4)
    scene = make_scene(dataset, random_detections(dataset, 4))
    whole = bootstrap(scene, match(scene), resamples=10).values
    monkeypatch.setattr("retinanet.evaluation.curves.CHUNK", 300)
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
            right = sum(bool(matching.tp[0, k]) for k in mine)
            wrong = sum(bool(matching.fp[0, k]) for k in mine)
            assert counts.tp[label, place] == right
            assert counts.fp[label, place] == wrong
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
    predictions = Detections(np.zeros(101, np.int64), boxes, scores, np.zeros(101, np.int64))
    scene = make_scene(builder.build(), predictions, limit=101)
    counts = against_thresholds(scene, match(scene), scene.totals())
    assert counts.fp[0].tolist() == list(range(101, 0, -1))


def test_the_middle_of_equally_good_thresholds() -> None:
    f1 = np.zeros(101)
    f1[40:61] = 0.8
    assert best_score(f1) == pytest.approx(0.5)
    f1[90] = 0.9
    assert best_score(f1) == pytest.approx(0.9)


def test_thresholds_below_the_lowest_score_are_not_chosen() -> None:
    f1 = np.zeros(101)
    f1[:71] = 0.6  # as if no detection had a score below 0.7
    assert best_score(f1, lowest=0.7) == pytest.approx(0.7)
    assert best_score(f1, lowest=0.055) == pytest.approx(0.38)


def test_precisions_of_a_short_list() -> None:
    right = np.array([True, False, True, False])
    curve = precisions(right, ~right, total=4)
    np.testing.assert_allclose(curve[:26], 1)
    np.testing.assert_allclose(curve[26:51], 2 / 3)
    np.testing.assert_allclose(curve[51:], 0)


def test_nothing_found() -> None:
    dataset = random_truth(5)
    scene = make_scene(dataset, nothing())
    values = average_precisions(scene, match(scene), scene.totals())
    assert values[:, :3].tolist() == [[0.0] * 3] * 10
    drawn = bootstrap(scene, match(scene), resamples=10).values
    np.testing.assert_array_equal(drawn, np.broadcast_to(values, drawn.shape))


def test_mean_leaves_out_the_unknown() -> None:
    assert mean(np.array([1, np.nan, 3])) == 2
    assert np.isnan(mean(np.array([np.nan])))
