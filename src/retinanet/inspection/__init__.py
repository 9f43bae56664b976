"""Inspection of a dataset before a training: defects, statistics, and how well the anchors cover its boxes."""

from retinanet.inspection.anchor_fit import AnchorFit, fit_anchors
from retinanet.inspection.dataset_inspection import Inspection, inspect, write_repaired
from retinanet.inspection.findings import Finding

__all__ = ["AnchorFit", "Finding", "Inspection", "fit_anchors", "inspect", "write_repaired"]
