from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.evaluate.ap import SUMMARY, Predictions, evaluate

CLASSES = ("cat", "dog", "fox", "owl")


def truth(seed: int, category_ids: tuple[int, ...] = (1, 2, 3, 4), images: int = 25, crowds: bool = True) -> Dataset:
    """Objects of all sizes and three classes (there is no owl); some images are empty, some objects crowds."""
    rng = np.random.default_rng(seed)
    builder = DatasetBuilder("random", Path("/data"), CLASSES, category_ids)
    for image in range(images):
        builder.add_image(f"{image}.jpg", 640, 480, image_id=1000 - 7 * image)
        for _ in range(0 if image % 6 == 0 else int(rng.integers(1, 14))):
            side = np.exp(rng.uniform(np.log(6), np.log(300), 2))
            x, y = rng.uniform(0, [640, 480] - np.minimum(side, [600, 440]))
            box = (float(x), float(y), float(min(640, x + side[0])), float(min(480, y + side[1])))
            area = (box[2] - box[0]) * (box[3] - box[1]) * float(rng.uniform(0.4, 1))  # of a mask, as in COCO
            builder.add_box(box, int(rng.integers(0, 3)), "", ignore=crowds and rng.uniform() < 0.1, area=area)
    return builder.build()


def detections(dataset: Dataset, seed: int) -> Predictions:
    """Most objects found roughly, some twice or as another class, and noise."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    found = rng.uniform(size=len(owner)) < 0.8
    again = rng.uniform(size=len(owner)) < 0.3
    rows = np.concatenate([np.nonzero(found)[0], np.nonzero(again)[0]])
    boxes = dataset.boxes[rows]
    side = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    boxes = boxes + rng.normal(0, 0.08, boxes.shape) * side
    labels = np.where(rng.uniform(size=len(rows)) < 0.9, dataset.labels[rows], rng.integers(0, 4, len(rows)))
    noise = 60 * len(dataset)
    corner = rng.uniform(0, 400, (noise, 2))
    boxes = np.concatenate([boxes, np.concatenate([corner, corner + rng.uniform(5, 200, (noise, 2))], axis=1)])
    count = len(boxes)
    scores = np.concatenate([rng.uniform(0.3, 1, len(rows)), rng.uniform(0, 0.7, noise)])
    return Predictions(
        images=np.concatenate([owner[rows], rng.integers(0, len(dataset), noise)]).astype(np.int64),
        boxes=boxes.astype(np.float32).reshape(count, 4),
        scores=scores.astype(np.float32),
        labels=np.concatenate([labels, rng.integers(0, 4, noise)]).astype(np.int64),
    )


def reference(dataset: Dataset, predictions: Predictions) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """pycocotools' 12 numbers, and AP and AP50 of each class."""
    annotations = []
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    for i, (x1, y1, x2, y2) in enumerate(dataset.boxes.astype(np.float64).tolist()):
        annotations.append(
            {
                "id": i + 1,
                "image_id": int(dataset.image_ids[owner[i]]),
                "category_id": dataset.category_ids[dataset.labels[i]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(dataset.areas[i]),
                "iscrowd": int(dataset.ignore[i]),
            }
        )
    results = []
    for image, box, score, label in zip(
        predictions.images.tolist(),
        predictions.boxes.astype(np.float64).tolist(),
        predictions.scores.tolist(),
        predictions.labels.tolist(),
        strict=True,
    ):
        results.append(
            {
                "image_id": int(dataset.image_ids[image]),
                "category_id": dataset.category_ids[label],
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": int(i), "width": 640, "height": 480} for i in dataset.image_ids],
            "categories": [{"id": k, "name": c} for k, c in zip(dataset.category_ids, dataset.classes, strict=True)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = {}
    for position, category in enumerate(evaluation.params.catIds):
        curve = precision[:, :, position]
        if (curve > -1).any():
            name = dataset.classes[dataset.category_ids.index(category)]
            per_class[name] = {"AP": curve[curve > -1].mean(), "AP50": curve[0][curve[0] > -1].mean()}
    return evaluation.stats, per_class


@pytest.mark.parametrize(
    ("seed", "category_ids"), [(0, (1, 2, 3, 4)), (1, (1, 2, 3, 4)), (2, (90, 17, 3, 44)), (3, (4, 3, 2, 1))]
)
def test_equals_pycocotools(seed: int, category_ids: tuple[int, ...]) -> None:
    dataset = truth(seed, category_ids)
    predictions = detections(dataset, seed)
    expected, per_class = reference(dataset, predictions)
    assert 0.05 < expected[0] < 0.95
    assert dataset.ignore.any()
    metrics = evaluate(dataset, predictions)
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
    dataset = truth(4, crowds=False)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    scores = np.linspace(0.9, 0.5, len(owner)).astype(np.float32)
    metrics = evaluate(dataset, Predictions(owner, dataset.boxes, scores, dataset.labels.astype(np.int64)))
    assert metrics.summary["AP"] == pytest.approx(1)
    assert metrics.summary["AR100"] == pytest.approx(1)
    assert all(values["AP"] == pytest.approx(1) for values in metrics.per_class.values())


def nothing() -> Predictions:
    empty = np.zeros(0)
    return Predictions(
        empty.astype(np.int64), np.zeros((0, 4), dtype=np.float32), empty.astype(np.float32), empty.astype(np.int64)
    )


def test_no_detections() -> None:
    metrics = evaluate(truth(5), nothing())
    assert list(metrics.summary.values()) == [0.0] * 12
    assert {values["AP"] for values in metrics.per_class.values()} == {0.0}


@pytest.mark.parametrize("found", [True, False])
def test_no_ground_truth(found: bool) -> None:
    builder = DatasetBuilder("empty", Path("/data"), CLASSES)
    for image in range(3):
        builder.add_image(f"{image}.jpg", 640, 480)
    dataset = builder.build()
    metrics = evaluate(dataset, detections(dataset, 0) if found else nothing())
    assert list(metrics.summary.values()) == [-1.0] * 12
    assert metrics.per_class == {}


def test_only_crowds() -> None:
    builder = DatasetBuilder("crowds", Path("/data"), CLASSES)
    builder.add_image("0.jpg", 640, 480)
    builder.add_box((10, 10, 200, 200), 0, "", ignore=True)
    dataset = builder.build()
    predictions = detections(dataset, 0)
    expected, _ = reference(dataset, predictions)
    metrics = evaluate(dataset, predictions)
    np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-6)
    assert metrics.per_class == {}


def test_coco_results_name_images_and_categories_by_their_ids() -> None:
    dataset = truth(2, (90, 17, 3, 44))
    predictions = detections(dataset, 2)
    results = predictions.to_coco(dataset)
    assert len(results) == len(predictions.scores)
    for i in (0, 5, len(results) - 1):
        x1, y1, x2, y2 = predictions.boxes[i].tolist()
        assert results[i]["image_id"] == 1000 - 7 * predictions.images[i]
        assert results[i]["category_id"] == (90, 17, 3, 44)[predictions.labels[i]]
        assert results[i]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
        assert results[i]["score"] == pytest.approx(float(predictions.scores[i]), abs=1e-6)
        assert isinstance(results[i]["image_id"], int)


@pytest.mark.parametrize(("seed", "category_ids"), [(6, (1, 2, 3, 4)), (7, (90, 17, 3, 44))])
def test_a_region_of_no_class_forgives_every_class(seed: int, category_ids: tuple[int, ...]) -> None:
    """pycocotools knows no such regions; one crowd of each category at the same place says the same."""
    rng = np.random.default_rng(seed)
    plain = truth(seed, category_ids)
    regions = rng.uniform([0, 0, 320, 240], [320, 240, 640, 480], (len(plain), 4)).round().tolist()
    built = []
    for labels in ([NO_CLASS], list(range(len(CLASSES)))):
        builder = DatasetBuilder("regions", Path("/data"), CLASSES, category_ids)
        for image in plain:
            builder.add_image(f"{image}.jpg", 640, 480, image_id=int(plain.image_ids[image]))
            if image % 3:  # between the objects, not after them
                for label in labels:
                    builder.add_box(regions[image], label, "", ignore=True)
            for row in range(*plain.offsets[image : image + 2]):
                label, crowd = int(plain.labels[row]), bool(plain.ignore[row])
                builder.add_box(tuple(plain.boxes[row].tolist()), label, "", ignore=crowd, area=float(plain.areas[row]))
        built.append(builder.build())
    dataset, expanded = built
    assert (dataset.labels == NO_CLASS).sum() > 10
    assert len(expanded.labels) == len(dataset.labels) + 3 * (dataset.labels == NO_CLASS).sum()
    predictions = detections(plain, seed)
    expected, per_class = reference(expanded, predictions)
    metrics = evaluate(dataset, predictions)
    np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-6)
    without = evaluate(plain, predictions)
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
    metrics = evaluate(dataset, detections(dataset, 0))
    assert list(metrics.summary.values()) == [-1.0] * 12
    assert metrics.per_class == {}
