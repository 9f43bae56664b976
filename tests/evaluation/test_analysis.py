from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.open_dataset import read_split
from retinanet.detections import Detections
from retinanet.evaluation.analysis import analyze
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.curves import RECALLS, SCORES, best_threshold
from retinanet.report.advice import next_steps
from scenes import class_aps, nothing, one_cat, pycoco, random_detections, random_truth


@pytest.mark.parametrize("seed", range(3))
def test_numbers_equal_pycocotools(seed: int) -> None:
    dataset = random_truth(seed, everywhere=0.3)
    predictions = random_detections(dataset, seed)
    analysis = analyze(dataset, predictions, resamples=20)
    evaluation = pycoco(dataset, predictions)
    values = class_aps(evaluation, dataset)
    metrics = coco_metrics(dataset, predictions)
    assert pytest.approx(metrics.summary["AP"], abs=1e-9) == analysis.AP
    assert pytest.approx(metrics.summary["AP50"], abs=1e-9) == analysis.AP50
    for k, each in enumerate(analysis.classes):
        if each.name == "owl":
            assert each.objects == 0
            assert all(map(math.isnan, (each.AP, each.AP50, each.AP75, each.threshold, each.f1)))
            continue
        assert pytest.approx(values[:, k].mean(), abs=1e-9) == each.AP
        assert pytest.approx(metrics.per_class[each.name]["AP"], abs=1e-9) == each.AP
        assert pytest.approx((values[0, k], values[5, k]), abs=1e-9) == (each.AP50, each.AP75)
        assert each.objects == metrics.per_class[each.name]["boxes"]
        assert each.detections > 0
    precision = evaluation.eval["precision"]
    for iou, level in (("0.50", 0), ("0.75", 5)):
        for k in range(3):
            column = sorted(dataset.category_ids).index(dataset.category_ids[k])
            np.testing.assert_allclose(analysis.curves[iou][k], precision[level, :, column, 0, -1], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_the_best(seed: int) -> None:
    dataset = random_truth(seed)
    predictions = random_detections(dataset, seed)
    analysis = analyze(dataset, predictions, resamples=20)
    assert best_threshold(dataset, predictions) == analysis.threshold
    content = analysis.to_dict()
    tables = content["thresholds"]["classes"]
    assert content["thresholds"]["score"] == pytest.approx(SCORES)
    assert set(tables) == {"cat", "dog", "fox"}
    mean_f1 = np.mean([table["f1"] for table in tables.values()], axis=0)
    assert content["f1"] == pytest.approx(mean_f1.max(), abs=1e-6)
    assert mean_f1[round(100 * content["threshold"])] == pytest.approx(mean_f1.max(), abs=1e-6)
    for name, table in tables.items():
        each = content["classes"][name]
        assert each["f1"] == max(table["f1"])
        place = round(100 * each["threshold"])
        assert (table["f1"][place], table["precision"][place], table["recall"][place]) == (
            each["f1"],
            each["precision"],
            each["recall"],
        )
        assert each["f1"] == pytest.approx(
            2 * each["precision"] * each["recall"] / (each["precision"] + each["recall"]), abs=1e-5
        )
    # the confusion matrix is of that threshold
    shown = sum(cell["count"] for cell in content["confusion"] if cell["object"] is not None)
    assert shown == (~dataset.ignore).sum()


def test_json_holds_everything_and_no_nan() -> None:
    dataset = random_truth(0, everywhere=0.3)
    content = json.loads(
        json.dumps(analyze(dataset, random_detections(dataset, 0), resamples=20).to_dict(), allow_nan=False)
    )
    assert content["resamples"] == 20
    assert content["confidence"] == 0.95
    assert content["AP_interval"][0] < content["AP"] < content["AP_interval"][1]
    assert list(content["classes"]) == list(dataset.classes)
    assert content["classes"]["owl"]["AP"] is None
    assert content["precision_recall"]["recall"] == pytest.approx(RECALLS)
    for iou in ("0.50", "0.75"):
        assert set(content["precision_recall"][iou]) == {"cat", "dog", "fox"}
    assert np.mean(content["precision_recall"]["0.50"]["cat"]) == pytest.approx(
        content["classes"]["cat"]["AP50"], abs=1e-5
    )
    histogram = content["score_histogram"]
    assert sum(histogram["wrong"]) == content["errors"]["counts"]["FP"]
    assert sum(histogram["right"]) + content["errors"]["counts"]["FN"] == (~dataset.ignore).sum()
    assert sum(content["calibration"]["counts"]) == sum(histogram["right"]) + sum(histogram["wrong"])
    assert set(content["calibration"]["classes"]) == set(dataset.classes)
    assert {each["group"] for each in content["slices"]} == {"size", "shape", "crowdedness", "neighbours", "position"}


def crowds_only() -> Dataset:
    builder = DatasetBuilder("crowds", Path("/data"), ("cat", "dog"))
    for image in range(3):
        builder.add_image(f"{image}.jpg", 200, 200)
        builder.add_box((10, 10, 150, 150), image - 1, "", ignore=True)  # the first is of no class
    return builder.build()


def pathological() -> dict[str, tuple[Dataset, Detections]]:
    truth = random_truth(0)
    empty = truth.with_boxes(np.zeros(len(truth.labels), dtype=np.bool_))
    some = random_detections(truth, 0)
    wrong = replace(some, boxes=some.boxes + 5000)
    crowds = crowds_only()
    inside = Detections(
        np.array([0, 1]), np.array([[20, 20, 60, 60]] * 2, np.float32), np.ones(2, np.float32), np.array([0, 0])
    )
    return {
        "no detections": (truth, nothing()),
        "no objects": (empty, some),
        "nothing at all": (empty, nothing()),
        "all wrong": (truth, wrong),
        "crowds only": (crowds, inside),
        "crowds and nothing": (crowds, nothing()),
        "one object": one_cat(),
    }


@pytest.mark.parametrize("name", pathological())
def test_pathological_input(name: str) -> None:
    dataset, predictions = pathological()[name]
    analysis = analyze(dataset, predictions, resamples=20)
    content: dict[str, Any] = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    summary = coco_metrics(dataset, predictions).summary
    assert (content["AP"] if content["AP"] is not None else -1) == pytest.approx(summary["AP"], abs=1e-6)
    steps = next_steps(analysis)
    assert steps
    assert not re.search(r"\bnan\b", " ".join(steps))
    if name in ("no objects", "nothing at all", "crowds only", "crowds and nothing"):
        assert content["AP"] is None
        assert content["f1"] is None
        assert steps[0].startswith("There are no annotated objects")
    if name == "no detections":
        assert content["missed"]["total"] == (~dataset.ignore).sum()
        assert steps[0].startswith("Nothing was detected")
    if name == "crowds only":
        assert content["false_positives"]["total"] == 0
        assert dataset.labels[0] == NO_CLASS
    if name == "one object":
        assert content["classes"]["cat"] == {
            "objects": 1,
            "images": 1,
            "detections": 1,
            "AP": 1,
            "AP50": 1,
            "AP75": 1,
            "AP_interval": None,
            "AP50_interval": None,
            "threshold": 0.4,
            "f1": 1,
            "precision": 1,
            "recall": 1,
            "calibration_error": pytest.approx(0.2, abs=1e-6),
        }
        assert content["threshold"] == 0.4  # the middle of all that separate nothing from it


def test_equals_hotcoco_on_real_truth(shared_data: Path) -> None:
    dataset = read_split(shared_data / "bccd" / "BCCD", "val")
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    boxes = (dataset.boxes + rng.normal(0, 6, dataset.boxes.shape)).astype(np.float32)
    labels = np.where(rng.uniform(size=len(owner)) < 0.9, dataset.labels, rng.integers(0, 3, len(owner)))
    scores = rng.uniform(0, 1, len(owner)).astype(np.float32)
    predictions = Detections(owner, boxes, scores, labels.astype(np.int64))
    analysis, metrics = analyze(dataset, predictions, resamples=20), coco_metrics(dataset, predictions)
    assert 0.1 < analysis.AP < 0.9
    assert pytest.approx(metrics.summary["AP"], abs=1e-9) == analysis.AP
    assert {c.name: c.AP for c in analysis.classes} == pytest.approx(
        {name: row["AP"] for name, row in metrics.per_class.items()}, abs=1e-9
    )
