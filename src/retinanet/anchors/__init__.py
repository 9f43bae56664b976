"""The anchor grid, the assignment of ground-truth boxes to it, and the encoding of boxes relative to it."""

from retinanet.anchors.assign import assign, assign_batch, match_batch
from retinanet.anchors.coding import decode_boxes, encode
from retinanet.anchors.grid import AnchorGrid, make_grid
from retinanet.anchors.matches import BACKGROUND, IGNORE, Matches
from retinanet.config import AnchorSpec

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "AnchorGrid",
    "AnchorSpec",
    "Matches",
    "assign",
    "assign_batch",
    "decode_boxes",
    "encode",
    "make_grid",
    "match_batch",
]
