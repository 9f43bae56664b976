"""(logits, labels) and (deltas, boxes) → scalar losses."""

from retinanet.losses.boxes import box_loss
from retinanet.losses.detection import Losses, detection_losses
from retinanet.losses.focal import focal_loss, sigmoid_focal_loss

__all__ = ["Losses", "box_loss", "detection_losses", "focal_loss", "sigmoid_focal_loss"]
