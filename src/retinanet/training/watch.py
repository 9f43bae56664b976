"""Warnings about a training that learns little or nothing, from its data and from its own log."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.object_counts import objects_per_image
from retinanet.inspection.anchor_coverage import positives
from retinanet.recipes import has_fitted_anchors

# Number of images that are checked before a training, and the fraction of unmatched objects that leads to a warning.
_LOOKED_AT = 100
_TOO_MANY = 0.1

# A loss counts as flat if it has fallen by less than this fraction since the first epoch.
_FLAT = 0.02

# From this epoch on, an AP below this value leads to a warning.
_EPOCHS, _NO_AP = 3, 0.001


def objects_left_out(dataset: Dataset, config: Config) -> str | None:
    """Return a warning if many objects are matched with no anchor, else None.

    Args:
        dataset: the training images, or tiles as images, with crowds treated as in training. Some of those with
            objects are checked.
        config: the settings; ``anchors``, ``assign`` and ``data`` are used.
    """
    images = np.flatnonzero(objects_per_image(dataset))
    looked_at = np.sort(np.random.default_rng(0).permutation(images)[:_LOOKED_AT])
    counts = positives(dataset.subset(looked_at), config)
    objects, left_out = int((counts >= 0).sum()), int((counts == 0).sum())
    if left_out <= _TOO_MANY * objects:
        return None
    whole = config.data.tile is None
    shown = "images" if whole else "tiles"
    advice = [
        "" if has_fitted_anchors(config) else "fit the anchors with 'retinanet data anchors'",
        "try a larger --data.size" if whole else "try a smaller --data.tile or a larger --data.size",
        "" if config.assign.method == "atss" else "use --assign.method atss",
    ]
    return (
        f"{left_out} of {objects} objects ({left_out / objects:.0%}, in {len(looked_at)} {shown}) are matched with no "
        "anchor, so nothing is learned from them: they are too small, too large or too long for the anchors at this "
        f"size; {', or '.join(filter(None, advice))}"
    )


def why_nothing_is_learnt(lines: Sequence[dict[str, Any]], epoch: int, config: Config) -> str | None:
    """Return a warning if the log shows that nothing is learned, else None.

    Args:
        lines: the lines of ``metrics.jsonl``.
        epoch: the epoch that has just ended.
        config: the settings of the training.
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
    no_ap = max(line["AP"] for line in evaluations) < _NO_AP
    if now > (1 - _FLAT) * before:
        advice = "another --train.lr" if config.train.find_lr else "--train.find-lr"
        return (
            f"the loss has not fallen since the first epoch ({before:.3f} then, {now:.3f} now); the learning rate may "
            f"be far off: try {advice} in a new --out"
        )
    if not no_ap:
        return None
    foreground = sum(line["foreground"] for line in steps)
    if foreground == 0:
        return "AP is 0 because no anchor was ever matched to an object; 'retinanet data inspect' shows why"
    return (
        f"AP is still 0 after {epoch} epochs although the loss falls ({before:.3f} in the first epoch, {now:.3f} now): "
        "on few images the reason can be too few steps (raise --train.epochs, lower --train.batch); or val is labeled "
        "differently from train ('retinanet data inspect' compares them)"
    )
