"""Named settings, as YAML: differences from the defaults in ``retinanet/config.py``."""
