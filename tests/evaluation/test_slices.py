from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from retinanet.data.dataset import Dataset
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.matching import make_scene
from retinanet.evaluation.slices import slice_by_everything
from scenes import class_aps, naive_iou, pycoco, random_detections, random_truth

Box = list[float]
Band = Callable[[Box, int], str]


def bands(dataset: Dataset) -> dict[str, Band]:
    """The group that a box belongs to in each division except size, by the definitions in the docs."""
    boxes = dataset.boxes.astype(np.float64)

    def shape(box: Box, image: int) -> str:
        ratio = (box[2] - box[0]) / (box[3] - box[1])
        names = ["over 3 × as tall as wide", "1.5–3 × as tall", "about square", "1.5–3 × as wide"]
        limits = [1 / 3, 1 / 1.5, 1.5, 3]
        return next((n for n, limit in zip(names, limits, strict=True) if ratio < limit), "over 3 × as wide as tall")

    def objects(image: int) -> list[int]:
        rows = dataset.rows(image)
        return [r for r in range(rows.start, rows.stop) if not dataset.ignore[r]]

    def crowdedness(box: Box, image: int) -> str:
        names = ["1 object in the image", "2–4 objects", "5–9 objects", "10–19 objects"]
        count = len(objects(image))
        return next((n for n, top in zip(names, [2, 5, 10, 20], strict=True) if count < top), "20 objects and more")

    def neighbours(box: Box, image: int) -> str:
        overlaps = sorted(naive_iou(box, boxes[r]) for r in objects(image))
        second = overlaps[-2] if len(overlaps) > 1 else 0.0
        if second < 0.1:
            return "apart from others"
        return "IoU 0.1–0.3 with another" if second < 0.3 else "IoU over 0.3 with another"

    def position(box: Box, image: int) -> str:
        width, height = dataset.sizes[image].tolist()
        if min(box[0], box[1]) <= 2 or box[2] >= width - 2 or box[3] >= height - 2:
            return "touching the border"
        x, y = (box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height
        return "in the middle" if 0.25 <= x <= 0.75 and 0.25 <= y <= 0.75 else "towards the edge"

    return {"shape": shape, "crowdedness": crowdedness, "neighbours": neighbours, "position": position}


@pytest.mark.parametrize("seed", range(3))
def test_each_part_equals_pycocotools(seed: int) -> None:
    """pycocotools selects a group by area: 1 inside the group, 100 outside."""
    dataset = random_truth(seed, images=30, most=14)
    predictions = random_detections(dataset, seed)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    usual = class_aps(pycoco(dataset, predictions), dataset).mean(axis=0)
    slices = slice_by_everything(make_scene(dataset, predictions), 0.5, usual)
    checked = 0
    for group, band in bands(dataset).items():
        mine = [each for each in slices if each.group == group]
        assert sum(each.objects for each in mine) == (~dataset.ignore).sum()
        truth = [band(b, int(i)) for b, i in zip(dataset.boxes.astype(np.float64).tolist(), owner, strict=True)]
        found = [
            band(b, int(i))
            for b, i in zip(predictions.boxes.astype(np.float64).tolist(), predictions.images, strict=True)
        ]
        for each in mine:
            areas, found_areas = (
                np.array([1.0 if n == each.name else 100.0 for n in names]) for names in (truth, found)
            )
            evaluation = pycoco(dataset, predictions, areas, found_areas, [(0.0, 10.0)])
            values = class_aps(evaluation, dataset)
            known = ~np.isnan(values[0])
            assert pytest.approx(values[:, known].mean(), abs=1e-9) == each.AP, each
            assert pytest.approx(values[0, known].mean(), abs=1e-9) == each.AP50, each
            inside = [
                int(k)
                for k, ignored, n in zip(dataset.labels, dataset.ignore, truth, strict=True)
                if not ignored and n == each.name
            ]
            assert pytest.approx(sum(values[:, k].mean() for k in inside) / len(inside)) == each.AP_by_object
            assert pytest.approx(sum(usual[k] for k in inside) / len(inside)) == each.AP_elsewhere
            images = [e for e in evaluation.evalImgs if e is not None]
            scores = np.concatenate([np.array(e["dtScores"]) for e in images])
            ignored = np.concatenate([e["dtIgnore"][0] for e in images]).astype(bool)
            hits = np.concatenate([e["dtMatches"][0] for e in images]) > 0
            assert each.detections == (~ignored).sum()
            assert each.recall == pytest.approx((hits & ~ignored & (scores >= 0.5)).sum() / each.objects)
            checked += 1
    assert checked >= 12


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_those_of_coco(seed: int) -> None:
    dataset = random_truth(seed, images=40)
    predictions = random_detections(dataset, seed)
    dataset.areas[np.flatnonzero(~dataset.ignore)[:6]] = [32.0**2] * 2 + [96.0**2 + 1] * 4  # on a border, and large
    metrics = coco_metrics(dataset, predictions).summary
    usual = class_aps(pycoco(dataset, predictions), dataset).mean(axis=0)
    slices = slice_by_everything(make_scene(dataset, predictions), 0.5, usual)
    sizes = [each for each in slices if each.group == "size"]
    assert [each.name.split(",")[0] for each in sizes] == ["small", "medium", "large"]
    assert [each.AP for each in sizes] == pytest.approx([metrics["APs"], metrics["APm"], metrics["APl"]], abs=1e-9)


def test_no_objects_no_parts() -> None:
    dataset = random_truth(0)
    empty = dataset.with_boxes(np.zeros(len(dataset.labels), dtype=np.bool_))
    assert slice_by_everything(make_scene(empty, random_detections(dataset, 0)), 0.5, np.full(4, np.nan)) == []
