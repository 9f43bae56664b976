"""Measure how well a detector's scores rank its boxes by IoU. AP at high IoUs depends on that, AP50 does not.

    python experiments/score_and_fit.py DATA WEIGHTS...

For each detector, print AP50 and AP75 on the val split of DATA, and of its true positives at IoU 0.5 the mean IoU and
Spearman's rank correlation of score and IoU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torchvision.ops import box_iou

from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.detection.loading import load
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.matching import make_scene, match
from retinanet.evaluation.predict import predict


def score_and_fit(dataset: Dataset, predictions: Detections) -> tuple[float, float]:
    """Mean IoU of the true positives, and the rank correlation of their scores and IoUs."""
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    right = np.flatnonzero(matching.tp[0])
    boxes = torch.from_numpy(scene.boxes[right])
    objects = torch.from_numpy(dataset.boxes[matching.objects[0, right]].astype(np.float64))
    overlaps = box_iou(boxes, objects).diagonal().numpy()
    return float(overlaps.mean()), float(spearmanr(scene.scores[right], overlaps).statistic)


def main() -> None:
    """Print a line for each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+", type=Path)
    arguments = parser.parse_args()
    for weights in arguments.weights:
        detector = load(weights)
        dataset = read_split(arguments.data, "val").with_classes(detector.classes)
        predictions = predict(detector, dataset, lambda images: None)
        metrics = coco_metrics(dataset, predictions).summary
        mean, correlation = score_and_fit(dataset, predictions)
        print(
            f"{weights.parent.name}: AP50 {metrics['AP50']:.3f}, AP75 {metrics['AP75']:.3f}; "
            f"mean IoU {mean:.4f}, rank correlation of score and IoU {correlation:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
