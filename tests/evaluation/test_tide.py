from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retinanet.data.dataset import Dataset
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_evaluation
from retinanet.evaluation.curves import RECALLS
from retinanet.evaluation.matching import Scene, make_scene, match
from retinanet.evaluation.tide import ALL_KINDS, KINDS, find_errors
from scenes import naive_iou, random_detections, random_truth


@pytest.mark.parametrize("seed", range(6))
def test_equals_hotcoco_without_ignore_regions(seed: int) -> None:
    """Without ignore regions, because hotcoco counts a detection that reaches into a crowd as an imprecise box."""
    dataset = random_truth(seed, ignore=0.0)
    predictions = random_detections(dataset, seed)
    # mended detections of another class get a place among equal scores, and that is a matter of taste
    predictions.scores[:] += np.random.default_rng(0).permutation(len(predictions.scores)).astype(np.float32) * 1e-6
    expected = coco_evaluation(dataset, predictions).tide_errors()
    scene = make_scene(dataset, predictions)
    errors = find_errors(scene, match(scene))
    assert {kind: errors.counts[kind] for kind in expected["counts"]} == expected["counts"]
    assert all(expected["counts"].values())
    assert set(errors.costs) == set(expected["delta_ap"]) == set(ALL_KINDS)
    for kind, cost in expected["delta_ap"].items():
        assert errors.costs[kind] == pytest.approx(cost, abs=1e-9), kind


def naive_ap50(rows: list[tuple[float, int, bool]], totals: dict[int, int]) -> float:
    """AP50 of detections given as score, class and whether they are true positives, in the order of the scores."""
    values = []
    for label, total in totals.items():
        if total == 0:
            continue
        right = wrong = 0
        points = []
        for _, k, hit in rows:
            if k == label:
                right, wrong = right + hit, wrong + (not hit)
                points.append((right / total, right / (right + wrong)))
        values.append(sum(max((p for r, p in points if r >= recall), default=0) for recall in RECALLS) / 101)
    return sum(values) / len(values)


def naive_errors(scene: Scene, right: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_], found: set[int]) -> Any:
    """Kinds, objects, missed objects, and AP50 with each kind corrected, computed in plain Python."""
    dataset: Dataset = scene.dataset
    objects = [row for row in range(len(dataset.labels)) if not dataset.ignore[row]]
    kinds: dict[int, str] = {}
    about: dict[int, int] = {}
    for k in np.flatnonzero(wrong).tolist():
        near = {
            r: naive_iou(scene.boxes[k], dataset.boxes[r].astype(float))
            for r in objects
            if scene.object_images[r] == scene.images[k]
        }
        own = {r: v for r, v in near.items() if dataset.labels[r] == scene.labels[k]}
        other = {r: v for r, v in near.items() if dataset.labels[r] != scene.labels[k]}
        best_own, best_other = (max(part, key=lambda r: part[r], default=-1) for part in (own, other))
        if 0.1 <= own.get(best_own, 0) < 0.5:
            kinds[k], about[k] = "Loc", best_own
        elif other.get(best_other, 0) >= 0.5:
            kinds[k], about[k] = "Cls", best_other
        elif own.get(best_own, 0) >= 0.5:
            kinds[k] = "Dupe"
        else:
            kinds[k] = "Bkg" if max(near.values(), default=0) < 0.1 else "Both"
    missed = [r for r in objects if r not in found and r not in about.values()]

    def measure(mended: str) -> float:
        rows, used = [], set(found)
        for k in np.flatnonzero(right | wrong).tolist():
            label, hit = int(scene.labels[k]), bool(right[k])
            target = about.get(k)
            usable = target is not None and target not in used
            if usable and target is not None:
                used.add(target)  # the best of all about it, whatever their kind
            if not hit and (mended == "FP" or kinds[k] == mended):
                if mended not in ("Loc", "Cls") or not usable or target is None:
                    continue
                label, hit = int(dataset.labels[target]), True
            rows.append((float(scene.scores[k]), label, hit))
        gone = {"Miss": missed, "FN": [r for r in objects if r not in found]}.get(mended, [])
        totals = {
            k: sum(dataset.labels[r] == k and r not in gone for r in objects) for k in range(len(dataset.classes))
        }
        return naive_ap50(rows, totals)

    return kinds, about, missed, {kind: measure(kind) - measure("") for kind in ALL_KINDS}


@pytest.mark.parametrize("seed", range(4))
def test_equals_plain_python_with_ignore_regions(seed: int) -> None:
    dataset = random_truth(seed, ignore=0.25, everywhere=0.3)
    scene = make_scene(dataset, random_detections(dataset, seed))
    matching = match(scene)
    errors = find_errors(scene, matching)
    found = set(matching.objects[0][matching.tp[0]].tolist())
    kinds, about, missed, costs = naive_errors(scene, matching.tp[0], matching.fp[0], found)
    assert {k: KINDS[kind] for k, kind in enumerate(errors.kinds) if kind >= 0} == kinds
    assert {k: row for k, row in enumerate(errors.objects.tolist()) if row >= 0} == about
    assert np.flatnonzero(errors.missed).tolist() == missed
    assert errors.costs == pytest.approx(costs, abs=1e-9)
    assert errors.counts["FP"] == sum(errors.counts[kind] for kind in KINDS) == matching.fp[0].sum()


def test_missing_everything_costs_everything() -> None:
    dataset = random_truth(0, ignore=0.0)
    none = Detections(*(part[:0] for part in vars(random_detections(dataset, 0)).values()))
    scene = make_scene(dataset, none)
    errors = find_errors(scene, match(scene))
    assert errors.counts["Miss"] == errors.counts["FN"] == len(dataset.labels)
    assert errors.costs["Miss"] == errors.costs["FN"] == 1
    empty = dataset.with_boxes(np.zeros(len(dataset.labels), dtype=np.bool_))
    scene = make_scene(empty, random_detections(dataset, 0))
    assert np.isnan(list(find_errors(scene, match(scene)).costs.values())).all()


def test_a_perfect_detector_has_no_errors() -> None:
    dataset = random_truth(0, ignore=0.0)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    scores = np.linspace(0.9, 0.5, len(owner)).astype(np.float32)
    scene = make_scene(dataset, Detections(owner, dataset.boxes, scores, dataset.labels.astype(np.int64)))
    errors = find_errors(scene, match(scene))
    assert set(errors.counts.values()) == {0}
    assert set(errors.costs.values()) == {0.0}
