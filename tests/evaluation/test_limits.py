"""COCO's protocol for images with up to 100 objects, and all detections for dense images, in every part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.decode_config import DecodeConfig
from retinanet.detections import Detections
from retinanet.evaluation.analysis import analyze
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.compare import Contestant, compare_predictions
from retinanet.evaluation.limits import ALL, Limits, counted
from retinanet.evaluation.voc_ap import voc_metrics
from scenes import dense_truth, perfect, random_detections


def row_of_objects(count: int, ignored: int = 0) -> Dataset:
    builder = DatasetBuilder("row", Path("/data"), ("cat",))
    builder.add_image("0.jpg", 8000, 40)
    for number in range(count + ignored):
        builder.add_box((20.0 * number, 0, 20.0 * number + 15, 15), 0, "", ignore=number >= count)
    builder.add_image("1.jpg", 40, 40)
    return builder.build()


def test_all_detections_count_from_101_objects_on() -> None:
    assert counted(row_of_objects(100)) == 100
    assert counted(row_of_objects(101)) == ALL
    assert counted(row_of_objects(100, ignored=50)) == 100


@pytest.mark.parametrize("objects", [100, 101])
def test_every_part_counts_the_same(objects: int) -> None:
    """The detections of 300 other places have higher scores than those of the objects."""
    dataset = row_of_objects(objects)
    right = perfect(dataset)
    other = np.arange(300, dtype=np.float32)[:, None] * [1, 0, 1, 0] + [0, 20, 4, 24]
    wrong = Detections(
        np.zeros(300, np.int64), other.astype(np.float32), np.full(300, 0.95, np.float32), np.zeros(300, np.int64)
    )
    predictions = Detections.concatenate([wrong, right])
    metrics, analysis = coco_metrics(dataset, predictions), analyze(dataset, predictions, resamples=5)
    found = objects == 101
    assert (metrics.summary["AP"] > 0) == found
    assert pytest.approx(metrics.summary["AP"], abs=1e-9) == analysis.AP
    assert analysis.classes[0].detections == (300 + objects if found else 100)
    assert analysis.errors.counts["FN"] == (0 if found else objects)
    assert sum(map(sum, analysis.histogram)) == analysis.classes[0].detections
    assert sum(each.objects for each in analysis.slices if each.group == "size") == objects
    assert (max(each.AP for each in analysis.slices if each.group == "size") > 0) == found
    assert analysis.confusion.sum() == (analysis.classes[0].detections if found else 100 + objects)
    first, second = (Contestant(name, predictions, dataset.classes) for name in "ab")
    comparison = compare_predictions(dataset, first, second)
    assert comparison.total["AP"].a == pytest.approx(metrics.summary["AP"], abs=1e-9)
    assert comparison.to_dict()["limits"]["a"]["counted_per_class"] == (None if found else 100)


def test_analysis_of_dense_images_has_the_numbers_of_the_headline() -> None:
    dataset = dense_truth(1)
    predictions = random_detections(dataset, 1, noise=200)
    summary, analysis = coco_metrics(dataset, predictions).summary, analyze(dataset, predictions, resamples=5)
    assert pytest.approx(summary["AP"], abs=1e-9) == analysis.AP
    assert pytest.approx(summary["AP50"], abs=1e-9) == analysis.AP50
    assert summary["AP"] > summary["AP@100"] > 0
    sizes = [each.AP for each in analysis.slices if each.group == "size"]
    assert sizes == pytest.approx([summary[name] for name in ("APs", "APm", "APl")], abs=1e-9)
    assert voc_metrics(dataset, predictions)["mAP"] > 0


def test_sentences_about_the_protocol_and_about_images_at_a_limit() -> None:
    sparse, dense = row_of_objects(3), row_of_objects(150)
    found = perfect(dense)
    assert "150 objects, so all detections count. AP@100" in Limits.of(dense, found).protocol()
    assert "100 highest scores of each image and class" in Limits.of(sparse, found).protocol()
    assert Limits.of(dense, found, 500).protocol() == (
        "The densest image has 150 objects, so the 500 highest scores of each image count (--max-detections), of "
        "whatever class. Among these, AP@100, AP50@100 and AR100 count the 100 highest scores of each image and class."
    )
    sentence = Limits.of(sparse, found, 50).protocol()
    assert sentence.endswith("class count, among the 50 highest of each image (--max-detections).")
    assert Limits.of(dense, found).notes() == []
    cut = Limits.of(dense, found.best(30), max_detections=30)
    assert "1 of 2 images have more than 30 detections" in cut.notes()[0]
    limited = replace(found, limited=np.array([0]))
    said = Limits.of(dense, limited, detector=DecodeConfig().resolved()).notes()[0]
    assert "1 of 2 images reached a limit (100 detections per image, 1000 candidates" in said
    assert "--max-detections" in said
    assert cut.to_dict() == {
        "counted_per_class": None,
        "most_objects": 150,
        "max_detections": 30,
        "images_at_limit": 1,
        "images_not_finite": 0,
    }


def test_a_limit_with_room_for_all_objects_is_told_on_the_page_only() -> None:
    crowded = replace(perfect(row_of_objects(50)), limited=np.array([0]))
    for objects, limit, said in ((50, 100, 0), (50, 99, 1)):
        settings = DecodeConfig(max_detections=limit).resolved()
        limits = Limits.of(row_of_objects(objects), crowded, detector=settings)
        assert len(limits.notes(brief=True)) == said
        assert len(limits.notes()) == 1
    chosen = Limits.of(row_of_objects(50), crowded, 100, DecodeConfig(max_detections=100).resolved())
    assert len(chosen.notes(brief=True)) == 1
