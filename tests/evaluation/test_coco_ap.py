from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import NO_CLASS, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import DENSE_SUMMARY, SUMMARY, coco_metrics, coco_results
from scenes import (
    CLASSES,
    dense_reference,
    dense_truth,
    nothing,
    perfect,
    random_detections,
    random_truth,
    reference,
)


@pytest.mark.parametrize(
    ("seed", "category_ids"), [(0, (1, 2, 3, 4)), (1, (1, 2, 3, 4)), (2, (90, 17, 3, 44)), (3, (4, 3, 2, 1))]
)
def test_equals_pycocotools(seed: int, category_ids: tuple[int, ...]) -> None:
    dataset = random_truth(seed, images=40, category_ids=category_ids, scale=2)
    predictions = random_detections(dataset, seed, noise=60)
    expected, per_class = reference(dataset, predictions)
    assert all(0.01 < value < 0.95 for value in expected)
    assert len(set(expected)) == 12  # sizes and limits matter
    assert dataset.ignore.any()
    metrics = coco_metrics(dataset, predictions)
    assert list(metrics.summary) == list(SUMMARY)
    np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-6)
    assert set(metrics.per_class) == set(per_class) == {"cat", "dog", "fox"}
    for name, values in per_class.items():
        assert metrics.per_class[name]["AP"] == pytest.approx(values["AP"], abs=1e-6)
        assert metrics.per_class[name]["AP50"] == pytest.approx(values["AP50"], abs=1e-6)
        index = CLASSES.index(name)
        assert metrics.per_class[name]["boxes"] == int(((dataset.labels == index) & ~dataset.ignore).sum())
    assert metrics.to_dict()["AP"] == metrics.summary["AP"]


def test_a_perfect_detector() -> None:
    dataset = random_truth(4, ignore=0)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    scores = np.linspace(0.9, 0.5, len(owner)).astype(np.float32)
    metrics = coco_metrics(dataset, Detections(owner, dataset.boxes, scores, dataset.labels.astype(np.int64)))
    assert metrics.summary["AP"] == pytest.approx(1)
    assert metrics.summary["AR100"] == pytest.approx(1)
    assert all(values["AP"] == pytest.approx(1) for values in metrics.per_class.values())


def test_no_detections() -> None:
    metrics = coco_metrics(random_truth(5, scale=2), nothing())
    assert list(metrics.summary.values()) == [0.0] * 12
    assert {values["AP"] for values in metrics.per_class.values()} == {0.0}


@pytest.mark.parametrize("found", [True, False])
def test_no_ground_truth(found: bool) -> None:
    builder = DatasetBuilder("empty", Path("/data"), CLASSES)
    for image in range(3):
        builder.add_image(f"{image}.jpg", 640, 480)
    dataset = builder.build()
    metrics = coco_metrics(dataset, random_detections(dataset, 0) if found else nothing())
    assert list(metrics.summary.values()) == [-1.0] * 12
    assert metrics.per_class == {}


def test_only_crowds() -> None:
    builder = DatasetBuilder("crowds", Path("/data"), CLASSES)
    builder.add_image("0.jpg", 640, 480)
    builder.add_box((10, 10, 200, 200), 0, "", ignore=True)
    dataset = builder.build()
    predictions = random_detections(dataset, 0)
    expected, _ = reference(dataset, predictions)
    metrics = coco_metrics(dataset, predictions)
    np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-6)
    assert metrics.per_class == {}


def test_coco_results_name_images_and_categories_by_their_ids() -> None:
    dataset = random_truth(2, category_ids=(90, 17, 3, 44))
    predictions = random_detections(dataset, 2)
    results = coco_results(predictions, dataset)
    assert len(results) == len(predictions.scores)
    for i in (0, 5, len(results) - 1):
        x1, y1, x2, y2 = predictions.boxes[i].tolist()
        assert results[i]["image_id"] == dataset.image_ids[predictions.images[i]]
        assert results[i]["category_id"] == (90, 17, 3, 44)[predictions.labels[i]]
        assert results[i]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
        assert results[i]["score"] == pytest.approx(float(predictions.scores[i]), abs=1e-6)
        assert isinstance(results[i]["image_id"], int)


@pytest.mark.parametrize(("seed", "category_ids"), [(6, (1, 2, 3, 4)), (7, (90, 17, 3, 44))])
def test_a_region_of_no_class_forgives_every_class(seed: int, category_ids: tuple[int, ...]) -> None:
    """pycocotools has no ignore regions for all classes; it gets a crowd of each category instead."""
    dataset = random_truth(seed, ignore=0.3, everywhere=0.8, category_ids=category_ids)
    assert (dataset.labels == NO_CLASS).sum() > 10
    assert (dataset.ignore & (dataset.labels != NO_CLASS)).any()
    predictions = random_detections(dataset, seed)
    expected, per_class = reference(dataset, predictions)
    metrics = coco_metrics(dataset, predictions)
    np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-6)
    without = coco_metrics(dataset.with_boxes(dataset.labels != NO_CLASS), predictions)
    assert set(metrics.per_class) == set(per_class) == {"cat", "dog", "fox"}
    for name, values in per_class.items():
        assert metrics.per_class[name]["AP"] == pytest.approx(values["AP"], abs=1e-6)
        assert metrics.per_class[name]["AP50"] == pytest.approx(values["AP50"], abs=1e-6)
        assert metrics.per_class[name]["AP"] > without.per_class[name]["AP"] + 0.005
        assert metrics.per_class[name]["boxes"] == without.per_class[name]["boxes"]


def test_regions_of_no_class_alone() -> None:
    builder = DatasetBuilder("regions", Path("/data"), CLASSES)
    builder.add_image("0.jpg", 640, 480)
    builder.add_box((10, 10, 200, 200), NO_CLASS, "", ignore=True)
    dataset = builder.build()
    metrics = coco_metrics(dataset, random_detections(dataset, 0))
    assert list(metrics.summary.values()) == [-1.0] * 12
    assert metrics.per_class == {}


@pytest.mark.parametrize("limit", [300, 10_000])
def test_more_detections_count_as_in_pycocotools(limit: int) -> None:
    dataset = dense_truth()
    predictions = random_detections(dataset, 0, noise=1000)
    most = np.unique(predictions.images * 4 + predictions.labels, return_counts=True)[1].max()
    assert most > 300
    expected = dense_reference(dataset, predictions, limit)
    metrics = coco_metrics(dataset, predictions, limit)
    assert list(metrics.summary) == list(DENSE_SUMMARY) == list(expected)
    assert metrics.summary == pytest.approx(expected, abs=1e-6)
    assert expected["AP"] > 1.2 * expected["AP@100"] > 0
    assert expected["AR"] > 1.2 * expected["AR100"]
    if limit > most:  # all detections count, because images have more than 100 objects
        assert coco_metrics(dataset, predictions) == metrics


def test_a_limit_of_100_is_pycocotools_own_on_dense_images_too() -> None:
    dataset = dense_truth()
    predictions = random_detections(dataset, 0, noise=1000)
    metrics = coco_metrics(dataset, predictions, 100)
    assert list(metrics.summary) == list(SUMMARY)
    np.testing.assert_allclose(list(metrics.summary.values()), reference(dataset, predictions)[0], atol=1e-6)
    everything = coco_metrics(dataset, predictions).summary
    assert everything["AP@100"] == metrics.summary["AP"]
    assert everything["AP50@100"] == metrics.summary["AP50"]
    assert everything["AR100"] == metrics.summary["AR100"]


def test_a_perfect_detector_of_a_dense_image_has_an_AP_of_one() -> None:
    dataset = dense_truth()
    summary = coco_metrics(dataset, perfect(dataset)).summary
    assert summary["AP"] == summary["AR"] == pytest.approx(1)
    assert summary["AP@100"] < 0.8


def test_no_detections_of_dense_images() -> None:
    assert set(coco_metrics(dense_truth(), nothing()).summary.values()) == {0.0}
