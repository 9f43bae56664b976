"""Reasons to look up from a training that learns little or nothing: found in its data, or in its own log."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.inspection.anchor_coverage import positives

# Images whose anchors are assigned before a training, and the share of objects without one that is too large.
_LOOKED_AT = 100
_TOO_MANY = 0.1

# A loss that has not fallen by this share since the first epoch is flat.
_FLAT = 0.02

# From this epoch on, an AP below this is none.
_EPOCHS, _NO_AP = 3, 0.001


def objects_left_out(dataset: Dataset, config: Config) -> str | None:
    """What to say before a training whose anchors leave out many of the objects; None if they don't.

    Args:
        dataset: what is trained on, of which some images are looked at; its crowds are treated as training does.
        config: of which ``anchors``, ``assign`` and ``data`` count.
    """
    looked_at = np.sort(np.random.default_rng(0).permutation(len(dataset))[:_LOOKED_AT])
    counts = positives(dataset.subset(looked_at), config)
    objects, left_out = int((counts >= 0).sum()), int((counts == 0).sum())
    if left_out <= _TOO_MANY * objects:
        return None
    return (
        f"{left_out} of {objects} objects ({left_out / objects:.0%}, in the {len(looked_at)} images looked at) get no "
        "anchor and teach nothing: they are too small, too large or too long for the anchors at this size. 'retinanet "
        "data anchors' fits anchors to them; or try a larger --data.size, or --assign.method atss"
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
