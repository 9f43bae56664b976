"""Where predictions live: the anchor grid, the assignment of ground truth to it, and the coding of boxes."""

from retinanet.anchors.assign import BACKGROUND, IGNORE, assign, assign_batch
from retinanet.anchors.coding import decode, encode
from retinanet.anchors.grid import AnchorGrid, make_grid
from retinanet.config import AnchorSpec

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "AnchorGrid",
    "AnchorSpec",
    "assign",
    "assign_batch",
    "decode",
    "encode",
    "make_grid",
]
