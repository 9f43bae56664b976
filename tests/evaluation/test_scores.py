from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import NO_CLASS, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_evaluation
from retinanet.evaluation.matching import make_scene, match, match_any_class
from retinanet.evaluation.scores import calibrate, confusion_matrix, score_histogram
from scenes import random_detections, random_truth


@pytest.mark.parametrize("seed", range(4))
def test_calibration_equals_hotcoco(seed: int) -> None:
    dataset = random_truth(seed)
    predictions = random_detections(dataset, seed)
    # hotcoco and we may put a score that lies on the border of two bins into different ones
    predictions.scores[:] = predictions.scores * np.float32(0.983) + np.float32(0.0041)
    expected = coco_evaluation(dataset, predictions).calibration()
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    ours = calibrate(scene, matching)
    assert dataset.ignore.any()
    assert ours.counts.sum() == expected["num_detections"]
    assert ours.error == pytest.approx(expected["ece"])
    for k, each in enumerate(expected["bins"]):
        assert ours.counts[k] == each["count"]
        if each["count"]:
            assert ours.scores[k] == pytest.approx(each["avg_confidence"])
            assert ours.precision[k] == pytest.approx(each["avg_accuracy"])
        else:
            assert np.isnan(ours.scores[k])
    for label, name in enumerate(dataset.classes):
        assert calibrate(scene, matching, label).error == pytest.approx(expected["per_category"][name])


def test_calibration_of_nothing() -> None:
    dataset = random_truth(0)
    scene = make_scene(dataset, random_detections(dataset, 0))
    none = calibrate(scene, match(scene), label=99)
    assert np.isnan(none.error)
    assert none.counts.sum() == 0


@pytest.mark.parametrize("seed", range(3))
def test_histogram(seed: int) -> None:
    dataset = random_truth(seed)
    predictions = random_detections(dataset, seed)
    predictions.scores[:3] = 1, 0, 0.5
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    right, wrong = score_histogram(scene, matching)
    assert right.sum() == matching.tp[0].sum()
    for k in range(20):
        low, high = k / 20, (k + 1) / 20
        inside = [low <= s < high or (k == 19 and s == 1) for s in scene.scores]
        assert wrong[k] == (np.array(inside) & matching.fp[0]).sum()
        assert right[k] == (np.array(inside) & matching.tp[0]).sum()


def test_confusion_equals_hotcoco_without_ignore_regions() -> None:
    """Without ignore regions, because hotcoco counts detections in them as confusions."""
    for seed in range(4):
        dataset = random_truth(seed, ignore=0.0)
        predictions = random_detections(dataset, seed)
        # where scores are equal, hotcoco may take another one first
        predictions.scores[:] += np.random.default_rng(0).permutation(len(predictions.scores)).astype(np.float32) * 1e-6
        expected = coco_evaluation(dataset, predictions).confusion_matrix(iou_thr=0.5, max_det=1000, min_score=0.3)
        order = [*(expected["cat_ids"].index(category) for category in dataset.category_ids), len(dataset.classes)]
        ours = confusion_matrix(make_scene(dataset, predictions), 0.3)
        np.testing.assert_array_equal(ours, expected["matrix"][np.ix_(order, order)])
        assert (ours - np.diag(np.diag(ours)))[:4, :4].any()


@pytest.mark.parametrize("seed", range(3))
def test_confusion_adds_up_with_ignore_regions(seed: int) -> None:
    dataset = random_truth(seed, ignore=0.3, everywhere=0.5)
    predictions = random_detections(dataset, seed)
    scene = make_scene(dataset, predictions)
    matrix = confusion_matrix(scene, 0.4)
    matching = match_any_class(scene, 0.5)
    shown = scene.scores >= 0.4
    assert matrix[:4].sum() == (~dataset.ignore).sum()
    assert matrix[:4].sum(axis=1).tolist() == scene.totals().tolist()
    assert matrix[:, :4].sum() == (shown & (matching.tp[0] | matching.fp[0])).sum()
    ignored = shown & ~matching.tp[0] & ~matching.fp[0]
    assert ignored.any()
    regions = dataset.labels[matching.objects[0][ignored]]
    assert all(region in (NO_CLASS, own) for region, own in zip(regions, scene.labels[ignored], strict=True))
    assert matrix[4, 4] == 0


def test_a_score_on_a_border_is_in_the_bin_above() -> None:
    builder = DatasetBuilder("steps", Path("/data"), ("cat",), (1,))
    builder.add_image("1.jpg", 100, 100)
    scores = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    boxes = np.tile([1.0, 1, 9, 9], (10, 1))
    predictions = Detections(np.zeros(10, np.int64), boxes, scores, np.zeros(10, np.int64))
    scene = make_scene(builder.build(), predictions)
    matching = match(scene)
    assert calibrate(scene, matching).counts.tolist() == [1] * 10
    assert score_histogram(scene, matching)[1].tolist() == [1, 0] * 10


def test_a_box_annotated_as_two_classes_confuses_nothing() -> None:
    builder = DatasetBuilder("both", Path("/data"), ("cat", "dog", "fox"), (1, 2, 3))
    builder.add_image("1.jpg", 100, 100)
    box = (10.0, 10.0, 50.0, 50.0)
    for label in range(3):
        builder.add_box(box, label, "")
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        labels, scores = np.array(order, np.int64), np.array([0.9, 0.8, 0.7])
        predictions = Detections(np.zeros(3, np.int64), np.array([box] * 3), scores, labels)
        matrix = confusion_matrix(make_scene(builder.build(), predictions), 0.5)
        assert matrix.tolist() == np.diag([1, 1, 1, 0]).tolist()
