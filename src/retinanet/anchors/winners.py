"""Which of the boxes that want an anchor gets it."""

from __future__ import annotations

import torch
from torch import Tensor


def take_highest(anchor: Tensor, overlap: Tensor, box: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Each anchor goes to the box of highest overlap, of equals to the first.

    Args:
        anchor: int64 ``(N,)``, anchor of each pair.
        overlap: float ``(N,)``; a pair of negative overlap takes no part.
        box: int64 ``(N,)``, box of each pair.
        anchors: how many there are.

    Returns:
        highest overlap ``(anchors,)`` (−1 where nobody wants it) and int64 ``(anchors,)``, the box that has it (or 0).
    """
    best = overlap.new_full((anchors,), -1).scatter_reduce(0, anchor, overlap, "amax")
    nobody = torch.iinfo(torch.int64).max
    candidate = torch.where((overlap == best[anchor]) & (overlap >= 0), box, nobody)
    first = torch.full((anchors,), nobody, device=box.device).scatter_reduce(0, anchor, candidate, "amin")
    return best, torch.where(first == nobody, 0, first)
