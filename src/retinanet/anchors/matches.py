"""The result of an assignment, stored sparsely: only positive and ignored anchors are listed; most are background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND = -1
IGNORE = -2


@dataclass(frozen=True)
class Matches:
    """Positive and ignored anchors of a batch of B images with A anchors each; every other anchor is background.

    Anchors are numbered ``image · A + anchor``. All tensors lie on the CPU, so that their lengths are known without
    waiting for a GPU.

    Attributes:
        images: B.
        anchors: A.
        positive: int64 ``(P,)``, positive anchors in ascending order.
        box: int64 ``(P,)``, the ground-truth box of each positive anchor, as an index into the boxes of all images.
        ignored: int64 ``(I,)``, anchors that are neither positive nor background, in ascending order.
    """

    images: int
    anchors: int
    positive: Tensor
    box: Tensor
    ignored: Tensor

    @classmethod
    def from_dense(cls, matched: Tensor) -> Matches:
        """Convert ``(B, A)`` as :meth:`dense` returns it, on any device."""
        flat = matched.flatten().cpu()
        positive, ignored = (torch.nonzero(kind).squeeze(1) for kind in (flat >= 0, flat == IGNORE))
        return cls(matched.shape[0], matched.shape[1], positive, flat[positive], ignored)

    @classmethod
    def all_ignored(cls, images: int, anchors: int) -> Matches:
        """Matches in which every anchor is ignored."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls(images, anchors, nothing, nothing, torch.arange(images * anchors))

    def dense(self) -> Tensor:
        """int64 ``(B, A)``: index of the box, ``BACKGROUND`` (−1) or ``IGNORE`` (−2)."""
        matched = torch.full((self.images * self.anchors,), BACKGROUND)
        matched[self.positive] = self.box
        matched[self.ignored] = IGNORE
        return matched.view(self.images, self.anchors)

    def __getitem__(self, images: slice) -> Matches:
        """Matches of a contiguous range of the images; ``box`` still refers to the boxes of all images."""
        first, last, step = images.indices(self.images)
        if step != 1:
            raise ValueError(f"images are selected as first:last, not with a step of {step}")
        last = max(first, last)
        limits = torch.tensor([first * self.anchors, last * self.anchors])
        start, end = torch.searchsorted(self.positive, limits).tolist()
        from_ignored, to_ignored = torch.searchsorted(self.ignored, limits).tolist()
        return Matches(
            last - first,
            self.anchors,
            self.positive[start:end] - limits[0],
            self.box[start:end],
            self.ignored[from_ignored:to_ignored] - limits[0],
        )
