"""Reasons to look up from a training that learns nothing, found in its own log."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

# Objects to have seen before their anchors are counted, and anchors per object that are too few.
_OBJECTS = 50
_TOO_FEW = 0.2

# A loss that has not fallen by this share since the first epoch is flat.
_FLAT = 0.02

# From this epoch on, an AP below this is none.
_EPOCHS, _NO_AP = 3, 0.001


class Matches:
    """Counts objects and the anchors matched to them, and says once if they are too few to learn from."""

    def __init__(self) -> None:
        self._objects = self._foreground = 0
        self._said = False

    def warning(self, objects: int, foreground: int) -> str | None:
        """What is wrong after a step with that many objects and foreground anchors, if it is clear and not said yet."""
        self._objects, self._foreground = self._objects + objects, self._foreground + foreground
        if self._said or self._objects < _OBJECTS:
            return None
        self._said = True
        if self._foreground >= _TOO_FEW * self._objects:
            return None
        return (
            f"only {self._foreground} anchors were matched to the first {self._objects} objects, so most objects teach "
            "nothing: they are too small, too large or too long for the anchors at this size. 'retinanet data inspect' "
            "shows which; try a larger --data.size, --assign.method atss, or anchors of 'retinanet data anchors'"
        )


def why_nothing_is_learnt(lines: Sequence[dict[str, Any]], epoch: int) -> str | None:
    """What the log of a training says after ``epoch`` whole epochs, if nothing is learnt; None if all is well.

    Args:
        lines: of ``metrics.jsonl``.
        epoch: just ended.
    """
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "AP" in line]
    if epoch < _EPOCHS or not evaluations:
        return None
    first = [line["loss"] for line in steps if line["epoch"] <= 1]
    latest = [line["loss"] for line in steps if epoch - 1 < line["epoch"] <= epoch]
    if not first or not latest:
        return None
    before, now = statistics.fmean(first), statistics.fmean(latest)
    none = max(line["AP"] for line in evaluations) < _NO_AP
    if now > (1 - _FLAT) * before:
        return (
            f"the loss has not fallen since the first epoch ({before:.3f} then, {now:.3f} now); the learning rate may "
            "be far off: try --train.find-lr in a new --out"
        )
    if not none:
        return None
    foreground = sum(line["foreground"] for line in steps)
    if foreground == 0:
        return "AP is 0 because no anchor was ever matched to an object; 'retinanet data inspect' shows why"
    return (
        f"AP is still 0 after {epoch} epochs although the loss falls ({before:.3f} in the first epoch, {now:.3f} now): "
        "with few pictures that can be too few steps (more --train.epochs, smaller --train.batch); or val is labelled "
        "in another way than train ('retinanet data inspect' compares them)"
    )
