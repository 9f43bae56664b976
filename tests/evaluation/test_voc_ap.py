from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.voc_ap import voc_metrics
from scenes import CLASSES, random_detections, random_truth


def devkit(dataset: Dataset, predictions: Detections, plus_one: bool) -> dict[str, tuple[float, float]]:
    """The development kit's VOCevaldet in plain Python: 11-point and area AP of each class.

    With ``plus_one`` on boxes as the kit has them: pixels counted from 1, the last one included.
    """
    results = {}
    shift = 1.0 if plus_one else 0.0
    for label, name in enumerate(dataset.classes):
        positives, taken = 0, set()
        for row in range(len(dataset.labels)):
            positives += int(dataset.labels[row]) == label and not dataset.ignore[row]
        mine = [i for i in range(len(predictions.labels)) if predictions.labels[i] == label]
        true: list[int] = []
        false: list[int] = []
        for i in sorted(mine, key=lambda i: -float(predictions.scores[i])):
            x1, y1, x2, y2 = map(float, predictions.boxes[i])
            x1, y1 = x1 + shift, y1 + shift
            best, most = -1, -1.0
            image = int(predictions.images[i])
            for row in range(int(dataset.offsets[image]), int(dataset.offsets[image + 1])):
                if int(dataset.labels[row]) not in (label, NO_CLASS):
                    continue
                a1, b1, a2, b2 = map(float, dataset.boxes[row])
                a1, b1 = a1 + shift, b1 + shift
                width, height = min(x2, a2) - max(x1, a1) + shift, min(y2, b2) - max(y1, b1) + shift
                if width > 0 and height > 0:
                    union = (x2 - x1 + shift) * (y2 - y1 + shift) + (a2 - a1 + shift) * (b2 - b1 + shift)
                    overlap = width * height / (union - width * height)
                    if overlap > most:
                        best, most = row, overlap
            if most >= 0.5 and dataset.ignore[best]:
                continue
            right = most >= 0.5 and best not in taken
            if right:
                taken.add(best)
            true.append(int(right))
            false.append(int(not right))
        if not positives:
            continue
        recall = [sum(true[: k + 1]) / positives for k in range(len(true))]
        precision = [sum(true[: k + 1]) / (k + 1) for k in range(len(true))]
        eleven = 0.0
        for tenth in range(11):
            eleven += (
                max((p for p, r in zip(precision, recall, strict=True) if r >= tenth / 10 - 1e-12), default=0) / 11
            )
        full_recall, full_precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
        for k in range(len(full_precision) - 2, -1, -1):
            full_precision[k] = max(full_precision[k], full_precision[k + 1])
        under = sum((full_recall[k + 1] - full_recall[k]) * full_precision[k + 1] for k in range(len(full_recall) - 1))
        results[name] = (eleven, under)
    return results


def assert_equal(found: dict[str, Any], expected: dict[str, tuple[float, float]]) -> None:
    assert list(found["per_class"]) == list(expected)
    for name, (eleven, under) in expected.items():
        assert found["per_class"][name]["AP11"] == pytest.approx(eleven, abs=1e-12)
        assert found["per_class"][name]["AP"] == pytest.approx(under, abs=1e-12)
    assert found["mAP11"] == pytest.approx(np.mean([e for e, _ in expected.values()]), abs=1e-12)
    assert found["mAP"] == pytest.approx(np.mean([u for _, u in expected.values()]), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_devkit_in_plain_python(seed: int) -> None:
    dataset = random_truth(seed)
    predictions = random_detections(dataset, seed)
    expected = devkit(dataset, predictions, plus_one=False)
    assert set(expected) == {"cat", "dog", "fox"}
    assert all(0.05 < value < 0.95 for pair in expected.values() for value in pair)
    assert dataset.ignore.any()
    assert_equal(voc_metrics(dataset, predictions), expected)


def test_half_open_boxes_need_no_pixel_added() -> None:
    """On whole pixels, the kit's boxes with its + 1 and half-open ones without are the same."""
    rng = np.random.default_rng(5)
    source = random_truth(5)
    builder = DatasetBuilder("pixels", Path("/data"), CLASSES)
    for image in source:
        builder.add_image(f"{image}.jpg", 640, 480)
        for row in range(*source.offsets[image : image + 2]):
            x1, y1, x2, y2 = np.round(source.boxes[row]).tolist()
            builder.add_box(
                (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)), int(source.labels[row]), "", ignore=row % 9 == 0
            )
    dataset = builder.build()
    loose = random_detections(source, 5)
    boxes = np.round(loose.boxes)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = rng.permutation(len(boxes)) / len(boxes)
    predictions = Detections(loose.images, boxes, scores, loose.labels)
    assert_equal(voc_metrics(dataset, predictions), devkit(dataset, predictions, plus_one=True))


def one_image(boxes: list[tuple[float, float, float, float]], difficult: tuple[int, ...] = ()) -> Dataset:
    builder = DatasetBuilder("one", Path("/data"), ("cat",))
    builder.add_image("0.jpg", 640, 480)
    for i, box in enumerate(boxes):
        builder.add_box(box, 0, "", ignore=i in difficult)
    return builder.build()


def found(rows: list[tuple[float, float, float, float, float]]) -> Detections:
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5)
    zeros = np.zeros(len(columns), dtype=np.int64)
    return Detections(zeros, columns[:, :4], columns[:, 4], zeros)


LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (100.0, 0.0, 110.0, 10.0)


def test_worked_example() -> None:
    """TP, FP, TP with two objects: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    result = voc_metrics(one_image([LEFT, RIGHT]), found([(*LEFT, 0.9), (300, 300, 310, 310, 0.8), (*RIGHT, 0.7)]))
    assert result["per_class"]["cat"]["AP11"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert result["per_class"]["cat"]["AP"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (result["mAP11"], result["mAP"]) == tuple(result["per_class"]["cat"].values())


def test_found_twice_is_wrong_even_beside_a_free_object() -> None:
    """COCO would match the second detection with the other object, which it overlaps enough; VOC does not."""
    dataset = one_image([(0, 0, 10, 10), (3, 0, 13, 10)])
    result = voc_metrics(dataset, found([(0, 0, 10, 10, 0.9), (1, 0, 11, 10, 0.8)]))
    assert result["mAP"] == pytest.approx(0.5)
    assert result["mAP11"] == pytest.approx(6 / 11)


def test_difficult_objects_count_neither_way() -> None:
    dataset = one_image([LEFT, RIGHT], difficult=(0,))
    assert voc_metrics(dataset, found([(*LEFT, 0.9), (*LEFT, 0.8), (*RIGHT, 0.7)]))["mAP"] == pytest.approx(1)
    # A small box inside a difficult object is wrong: it overlaps it too little.
    assert voc_metrics(dataset, found([(0, 0, 4, 4, 0.9), (*RIGHT, 0.7)]))["mAP"] == pytest.approx(0.5)


def test_an_overlap_of_exactly_half_is_enough() -> None:
    dataset = one_image([LEFT])
    assert voc_metrics(dataset, found([(0, 0, 10, 5, 0.9)]))["mAP"] == 1
    assert voc_metrics(dataset, found([(0, 0, 10, 4.99, 0.9)]))["mAP"] == 0


def test_three_of_ten_reach_a_recall_of_three_tenths() -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(10)]
    result = voc_metrics(one_image(boxes), found([(*box, 0.9) for box in boxes[:3]]))
    assert result["mAP11"] == pytest.approx(4 / 11)
    assert result["mAP"] == pytest.approx(0.3)


def test_more_than_a_hundred_detections_of_an_image_count() -> None:
    boxes = [(4.0 * (i % 150), 4.0 * (i // 150), 4.0 * (i % 150) + 3, 4.0 * (i // 150) + 3) for i in range(300)]
    result = voc_metrics(one_image(boxes), found([(*box, 0.9) for box in boxes]))
    assert result["mAP"] == pytest.approx(1)


def test_a_region_of_no_class_forgives_every_class() -> None:
    builder = DatasetBuilder("regions", Path("/data"), ("cat", "dog"))
    builder.add_image("0.jpg", 640, 480)
    builder.add_box(LEFT, NO_CLASS, "", ignore=True)
    builder.add_box(RIGHT, 1, "")
    predictions = Detections(
        np.zeros(2, np.int64), np.array([LEFT, RIGHT]), np.array([0.9, 0.8]), np.array([1, 1], dtype=np.int64)
    )
    result = voc_metrics(builder.build(), predictions)
    assert result == {"mAP11": pytest.approx(1), "mAP": 1, "per_class": {"dog": {"AP11": pytest.approx(1), "AP": 1}}}


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = found([])
    assert voc_metrics(one_image([LEFT]), nothing)["mAP"] == 0
    for dataset in (one_image([]), one_image([LEFT], difficult=(0,))):
        for predictions in (nothing, found([(*LEFT, 0.9)])):
            assert voc_metrics(dataset, predictions) == {"mAP11": -1.0, "mAP": -1.0, "per_class": {}}
