"""This package and torchvision side by side on this machine: ``retinanet bench``."""
