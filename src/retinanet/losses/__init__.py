"""(logits, labels) and (deltas, boxes) → scalar losses."""

from retinanet.losses.boxes import box_loss
from retinanet.losses.classification import (
    focal_loss,
    focal_star_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from retinanet.losses.detection import Losses, Normalizer, detection_losses
from retinanet.losses.mining import ohem_loss

__all__ = [
    "Losses",
    "Normalizer",
    "box_loss",
    "detection_losses",
    "focal_loss",
    "focal_star_loss",
    "ohem_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "varifocal_loss",
]
