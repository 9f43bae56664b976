from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.cocoeval import COCOeval

from retinanet.bench.measure import extra_memory
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.curves import average_precisions
from retinanet.evaluation.matching import (
    LEAST_OVERLAP,
    THRESHOLDS,
    Scene,
    make_scene,
    match,
    match_any_class,
    neighbour_overlaps,
)
from scenes import class_aps, naive_iou, nothing, pycoco, random_detections, random_truth

Found = dict[tuple[int, int, float, tuple[float, ...]], list[tuple[bool, bool]]]


def said_by_pycocotools(evaluation: COCOeval, level: int, area: int) -> Found:
    """Whether each detection, by image, category, score and box, is a true positive and a false positive."""
    bounds = evaluation.params.areaRng[area]
    said: Found = {}
    for each in evaluation.evalImgs:
        if each is None or each["aRng"] != bounds:
            continue
        for k, number in enumerate(each["dtIds"]):
            row = evaluation.cocoDt.anns[number]
            key = (row["image_id"], row["category_id"], row["score"], tuple(np.round(row["bbox"], 3)))
            ignored, matched = bool(each["dtIgnore"][level, k]), each["dtMatches"][level, k] > 0
            said.setdefault(key, []).append((bool(matched) and not ignored, not matched and not ignored))
    return {key: sorted(values) for key, values in said.items()}


def said_by_us(scene: Scene, right: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> Found:
    said: Found = {}
    for k, (x1, y1, x2, y2) in enumerate(scene.boxes.tolist()):
        image = int(scene.dataset.image_ids[scene.images[k]])
        box = tuple(np.round([x1, y1, x2 - x1, y2 - y1], 3))
        key = (image, scene.dataset.category_ids[scene.labels[k]], float(scene.scores[k]), box)
        said.setdefault(key, []).append((bool(right[k]), bool(wrong[k])))
    return {key: sorted(values) for key, values in said.items()}


@pytest.mark.parametrize(("seed", "everywhere"), [(0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0)])
def test_each_detection_is_judged_as_pycocotools_judges_it(seed: int, everywhere: float) -> None:
    dataset = random_truth(seed, everywhere=everywhere)
    predictions = random_detections(dataset, seed)
    evaluation = pycoco(dataset, predictions)
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    assert matching.tp.any()
    assert (~matching.tp & ~matching.fp).any()
    assert len(np.unique(scene.scores)) < len(scene.scores) / 2  # many are equal
    for level in range(len(THRESHOLDS)):
        ours = said_by_us(scene, matching.tp[level], matching.fp[level])
        assert ours == said_by_pycocotools(evaluation, level, 0)
    np.testing.assert_allclose(
        average_precisions(scene, matching, scene.totals()), class_aps(evaluation, dataset), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_is_as_if_it_were_of_another_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_truth(seed, everywhere=0.3)
    predictions = random_detections(dataset, seed)
    out = rng.uniform(size=len(dataset.labels)) < 0.5
    leave = rng.uniform(size=len(predictions.scores)) < 0.5
    areas, found_areas = np.where(out, 100.0, 1.0), np.where(leave, 100.0, 1.0)
    evaluation = pycoco(dataset, predictions, areas, found_areas, [(0.0, 10.0)])
    scene = make_scene(dataset, predictions)
    outside = np.zeros(len(scene.scores), dtype=np.bool_)
    for k in range(len(outside)):  # the scene has the detections in another order
        same = (predictions.images == scene.images[k]) & (predictions.labels == scene.labels[k])
        same &= (predictions.boxes.astype(np.float64) == scene.boxes[k]).all(axis=1)
        [row] = np.flatnonzero(same)
        outside[k] = leave[row]
    matching = match(scene, out=out, outside=outside)
    for level in (0, 4, 9):
        ours = said_by_us(scene, matching.tp[level], matching.fp[level])
        assert ours == said_by_pycocotools(evaluation, level, 0)
    totals = scene.totals(out)
    assert totals.sum() == (~out & ~dataset.ignore).sum()
    np.testing.assert_allclose(average_precisions(scene, matching, totals), class_aps(evaluation, dataset), atol=1e-12)


def test_objects_say_who_found_what() -> None:
    builder = DatasetBuilder("two", Path("/data"), ("cat", "dog"), (7, 3))
    builder.add_image("0.jpg", 100, 100, image_id=9)
    builder.add_box((0, 0, 50, 50), NO_CLASS, "", ignore=True)
    builder.add_box((60, 60, 80, 80), 0, "")
    builder.add_image("1.jpg", 100, 100, image_id=4)
    builder.add_box((10, 10, 30, 30), 1, "")
    boxes = [(60, 60, 80, 80), (5, 5, 20, 20), (10, 10, 30, 31), (10, 10, 30, 30), (90, 90, 99, 99)]
    predictions = Detections(
        np.array([0, 0, 1, 1, 1]),
        np.array(boxes, dtype=np.float64),
        np.array([0.5, 0.9, 0.8, 0.7, 0.6]),
        np.array([0, 0, 1, 1, 0]),
    )
    scene = make_scene(builder.build(), predictions)
    assert scene.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert scene.boxes[:, 0].tolist() == [5, 10, 10, 90, 60]
    assert scene.images.tolist() == [0, 1, 1, 1, 0]
    assert scene.labels.tolist() == [0, 1, 1, 0, 0]
    assert scene.totals().tolist() == [1, 1]
    matching = match(scene)
    assert matching.objects[0].tolist() == [0, 2, -1, -1, 1]
    assert matching.tp[0].tolist() == [False, True, False, False, True]
    assert matching.fp[0].tolist() == [False, False, True, True, False]
    assert matching.tp[9].tolist() == [False, True, False, False, True]  # 20 × 20 in 20 × 21: 0.952


@pytest.mark.parametrize("seed", range(3))
def test_any_class_is_greedy(seed: int) -> None:
    dataset = random_truth(seed, ignore=0.0)
    scene = make_scene(dataset, random_detections(dataset, seed))
    matching = match_any_class(scene, 0.5)
    taken: set[int] = set()
    for k in range(len(scene.scores)):
        rows = dataset.rows(int(scene.images[k]))
        free = [row for row in range(rows.start, rows.stop) if row not in taken]
        overlaps = {row: naive_iou(scene.boxes[k], dataset.boxes[row].astype(np.float64)) for row in free}
        best = max(overlaps, key=lambda row: overlaps[row], default=None)
        expected = best if best is not None and overlaps[best] >= 0.5 else -1
        assert matching.objects[0, k] == expected
        taken.add(expected)
    assert (dataset.labels[matching.objects[0][matching.tp[0]]] != scene.labels[matching.tp[0]]).any()


def test_only_the_best_hundred_of_an_image_and_class_count() -> None:
    dataset = random_truth(0, images=3)
    count = 250
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corners, corners + 20], axis=1).astype(np.float32)
    images, labels = np.full(count, 1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    labels[:20] = 1
    predictions = Detections(images, boxes, (rng.permutation(count) / count).astype(np.float32), labels)
    scene = make_scene(dataset, predictions)
    assert np.bincount(scene.labels).tolist() == [100, 20]
    least = scene.scores[scene.labels == 0].min()
    assert (predictions.scores[labels == 0] >= least).sum() == 100
    assert (np.diff(scene.scores) <= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_neighbours(seed: int) -> None:
    dataset = random_truth(seed, most=15)
    scene = make_scene(dataset, random_detections(dataset, seed))
    objects, detections = neighbour_overlaps(scene)
    truth = dataset.boxes.astype(np.float64)

    def second(box: npt.NDArray[np.float64], image: int) -> float:
        rows = dataset.rows(image)
        overlaps = [naive_iou(box, truth[r]) for r in range(rows.start, rows.stop) if not dataset.ignore[r]]
        value = sorted(overlaps)[-2] if len(overlaps) > 1 else 0.0
        return value if value >= LEAST_OVERLAP else 0.0

    counted = np.flatnonzero(~dataset.ignore)
    np.testing.assert_allclose(objects[counted], [second(truth[r], int(scene.object_images[r])) for r in counted])
    expected = [second(box, int(image)) for box, image in zip(scene.boxes, scene.images, strict=True)]
    np.testing.assert_allclose(detections, expected)
    assert (objects[counted] > 0).any()


def test_nothing_to_match() -> None:
    dataset = random_truth(0)
    assert match(make_scene(dataset, nothing())).tp.shape == (10, 0)
    empty: Dataset = dataset.with_boxes(np.zeros(len(dataset.labels), dtype=np.bool_))
    predictions = random_detections(dataset, 0)
    assert match(make_scene(empty, predictions)).fp.all()
    crowds = replace(dataset, ignore=np.ones_like(dataset.ignore))
    matching = match(make_scene(crowds, predictions))
    assert not matching.tp.any()
    assert (matching.objects >= 0).any()


def test_a_crowded_image_is_matched_in_little_memory() -> None:
    builder = DatasetBuilder("crowded", Path("."), ["a"])
    builder.add_image("0.jpg", 2000, 2000)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1950, (5000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 50, (5000, 2))], axis=1).astype(np.float32)
    for box in boxes.tolist():
        builder.add_box(tuple(box), 0, "box")
    found = Detections.of_one_image(boxes, rng.random(5000).astype(np.float32), np.zeros(5000, dtype=np.int64))
    dataset = builder.build()

    def judge() -> None:
        scene = make_scene(dataset, found, limit=5000)
        assert match(scene).tp.all()
        assert match_any_class(scene, 0.5).tp.all()
        neighbour_overlaps(scene)

    taken = extra_memory(judge)
    assert taken is None or taken < 60 * 2**20  # the IoUs of all pairs would take 200 MB
