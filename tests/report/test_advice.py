from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.analysis import analyze
from retinanet.recipes import load_recipe
from retinanet.report.advice import costliest, next_steps
from scenes import one_cat, random_detections, random_truth


def test_advice_names_the_costliest_error() -> None:
    dataset = random_truth(1)
    predictions = random_detections(dataset, 1)
    analysis = analyze(dataset, predictions, resamples=20)
    costs = {kind: analysis.errors.costs[kind] for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")}
    worst = max(costs, key=lambda kind: costs[kind])
    assert costliest(analysis) == worst
    steps = next_steps(analysis)
    assert f"({worst})" in steps[0]
    assert f"{costs[worst]:.3f} AP50" in steps[0]
    assert f"threshold of {analysis.threshold:.2f}" in steps[1]
    assert 2 <= len(steps) <= 4
    assert costliest(analyze(*one_cat(), resamples=5)) is None


def test_nothing_is_advised_after_a_perfect_result() -> None:
    dataset = one_cat()[0]
    found = Detections(
        np.zeros(1, np.int64), dataset.boxes.copy(), np.full(1, 0.6, np.float32), dataset.labels.astype(np.int64)
    )
    analysis = analyze(dataset, found, resamples=5)
    assert pytest.approx(1) == analysis.AP
    steps = next_steps(analysis, load_recipe("paper"))
    assert steps[0].startswith("Every object is found with a precise box")
    assert all("retinanet" not in step and "--" not in step and "Do not" not in step for step in steps)


def test_advice_is_not_what_the_training_did() -> None:
    """Fitted anchors are not advised to a detector that has them, and no setting to another program's."""
    dataset = random_truth(1)
    miss = Detections(
        np.zeros(1, np.int64),
        dataset.boxes[:1].copy(),
        np.full(1, 0.9, np.float32),
        dataset.labels[:1].astype(np.int64),
    )
    analysis = analyze(dataset, miss, resamples=5)
    assert costliest(analysis) == "Miss"
    paper = load_recipe("paper")
    fitted = replace(paper, anchors=replace(paper.anchors, scales=(1.0, 1.1)))
    assert "or anchors fitted to your boxes (retinanet data anchors)" in next_steps(analysis, paper)[0]
    assert next_steps(analysis, fitted)[0].endswith("In a new training, try larger images (--data.size, now 800).")
    assert "--data.size" not in next_steps(analysis)[0]


def two_sizes(small_found: bool) -> tuple[Dataset, Detections]:
    """20 large and 20 small cats, 19 small dogs and one large dog. All but the large dog are found, and the small cats
    only if ``small_found``.
    """
    builder, found = DatasetBuilder("sizes", Path("/data"), ("cat", "dog"), (1, 2)), []
    large, small = (10.0, 10.0, 130.0, 130.0), (150.0, 20.0, 170.0, 40.0)
    for image in range(20):
        builder.add_image(f"{image}.jpg", 400, 400)
        low = (200.0, 200.0, 320.0, 320.0) if image == 0 else (200.0, 200.0, 220.0, 220.0)
        for box, label in ((large, 0), (small, 0), (low, 1)):
            builder.add_box(box, label, "")
            if (box, image) != (low, 0) and (small_found or box != small):
                found.append((image, box, label))
    images, boxes, labels = zip(*found, strict=True)
    scores = np.full(len(found), 0.9, np.float32)
    return builder.build(), Detections(
        np.array(images, np.int64), np.array(boxes, np.float32), scores, np.array(labels, np.int64)
    )


def test_advice_blames_no_part_for_one_object_of_a_rare_class() -> None:
    analysis = analyze(*two_sizes(small_found=True), resamples=5)
    [large] = [each for each in analysis.slices if each.name.startswith("large")]
    assert pytest.approx(0.5) == large.AP  # as COCO counts: perfect for 20 cats, nothing for one dog
    assert not any("weakest" in step for step in next_steps(analysis))
    analysis = analyze(*two_sizes(small_found=False), resamples=5)
    [step] = [step for step in next_steps(analysis) if "weakest" in step]
    assert step.startswith("The weakest group is “size: small, under 32² px” (39 of 60 objects): its AP is 0.")
