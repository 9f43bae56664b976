"""``retinanet reproduce``: the paper's tables and figures again, with its settings on COCO or small on any data."""
