"""``retinanet bench``: compare the speed of this package with torchvision's on this machine."""
