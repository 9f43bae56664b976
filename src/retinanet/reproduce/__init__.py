"""``retinanet reproduce``: repeat the paper's tables and figures, on COCO as in the paper, or at small scale."""
