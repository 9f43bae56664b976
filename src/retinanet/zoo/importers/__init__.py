"""Weights that other implementations trained, as detectors of this one."""

from retinanet.zoo.importers.torchvision import from_torchvision

__all__ = ["from_torchvision"]
