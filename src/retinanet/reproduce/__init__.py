"""``retinanet reproduce``: reproduce the paper's tables and figures, on COCO or at small scale."""
