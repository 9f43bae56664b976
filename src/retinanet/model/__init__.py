"""Image batch ``(B, 3, H, W)`` → :class:`Outputs` (logits and deltas per pyramid level), and nothing else."""

from retinanet.optional_packages import hidden

with hidden("wandb"):  # timm imports it where it is installed, which took a third of the start of a command
    import timm  # noqa: F401

from retinanet.model.retinanet import Outputs, RetinaNet

__all__ = ["Outputs", "RetinaNet"]
