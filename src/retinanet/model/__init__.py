"""Image batch ``(B, 3, H, W)`` → :class:`Outputs` (logits and deltas per pyramid level), and nothing else."""

from retinanet.model.retinanet import Outputs, RetinaNet

__all__ = ["Outputs", "RetinaNet"]
