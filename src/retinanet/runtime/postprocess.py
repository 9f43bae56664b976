"""Outputs → detections in NumPy, with the results of :func:`retinanet.postprocess.postprocess`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retinanet.box_suppression import suppress_boxes
from retinanet.decode_config import DecodeConfig, ResolvedDecodeConfig
from retinanet.detections import Detections

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# As in retinanet.anchors.coding.
_MAX_LOG_SCALE = math.log(1000 / 16)


class Outputs(NamedTuple):
    """The network's predictions for B images.

    Attributes:
        logits: float32 ``(B, A_l, K)`` of each level.
        deltas: float32 ``(B, A_l, 4)`` of each level.
    """

    logits: Sequence[Floats]
    deltas: Sequence[Floats]

    @classmethod
    def of(cls, named: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Order the outputs of an exported network: ``logits_0``, ``logits_1`` …, ``deltas_0`` …"""
        levels = len(named) // 2
        return cls([named[f"logits_{i}"] for i in range(levels)], [named[f"deltas_{i}"] for i in range(levels)])


class _Candidates(NamedTuple):
    """Candidates of an image for suppression, best first; and whether the image reached ``top_k``, or is damaged."""

    boxes: Floats
    logits: Floats
    labels: Ints
    cut: bool
    nonfinite: bool


def postprocess(
    outputs: Outputs,
    anchors: Sequence[Floats],
    image_sizes: Sequence[tuple[int, int]],
    config: DecodeConfig | None = None,
    padded: tuple[int, int] | None = None,
) -> list[Detections]:
    """Convert outputs to the detections of each image; see :func:`retinanet.postprocess.postprocess`.

    Args:
        outputs: the network's predictions for B images.
        anchors: the anchors of each level, float32 ``(A_l, 4)``.
        image_sizes: ``(height, width)`` of each image inside the padded batch.
        config: thresholds and limits; the paper's by default.
        padded: ``(height, width)`` of the batch, to which boxes are clipped if ``config.clip`` is ``padded``; unset:
            the largest sides of the images.
    """
    settings = (config or DecodeConfig()).resolved()
    padded = padded or (max((h for h, _ in image_sizes), default=0), max((w for _, w in image_sizes), default=0))
    results = []
    for image, size in enumerate(image_sizes):
        one = Outputs([level[image] for level in outputs.logits], [level[image] for level in outputs.deltas])
        candidates = _select(one, anchors, padded if settings.clip == "padded" else size, settings)
        found = _suppress(candidates, settings)
        limited = candidates.cut or len(found) >= settings.max_detections
        found = found.clipped(*size) if settings.clip == "after_nms" else found
        results.append(replace(found, limited=_position(limited), nonfinite=_position(candidates.nonfinite)))
    return results


def _position(marked: bool) -> Ints:
    """The position of a single image if it is marked, else nothing."""
    return np.zeros(int(marked), dtype=np.int64)


def _select(
    outputs: Outputs, anchors: Sequence[Floats], size: tuple[int, int], config: ResolvedDecodeConfig
) -> _Candidates:
    """Select the best predictions of each level above the threshold, decode them, and clip the boxes to ``size``."""
    # Comparing logits avoids the sigmoid for the 99% of anchors that are below the threshold.
    lowest = np.float32(math.log(config.score / (1 - config.score)) if config.score > 0 else -math.inf)
    levels = []
    cut = nonfinite = False
    for logits, deltas, boxes in zip(outputs.logits, outputs.deltas, anchors, strict=True):
        scores = logits.reshape(-1)
        highest = scores.max()
        if highest <= lowest:
            continue
        nonfinite |= not np.isfinite(highest)
        position = np.flatnonzero((scores > lowest) & (scores < np.inf))
        chosen = position[_highest(scores[position], config.top_k)]
        anchor = chosen // logits.shape[-1]
        box = decode_boxes(deltas[anchor], boxes[anchor], config.size_limit)
        if not np.isfinite(box).all():  # these boxes displaced others among the ``top_k``
            nonfinite = True
            sound = np.asarray(np.isfinite(decode_boxes(deltas, boxes, config.size_limit)).all(axis=1))
            position = position[sound[position // logits.shape[-1]]]
            chosen = position[_highest(scores[position], config.top_k)]
            anchor = chosen // logits.shape[-1]
            box = decode_boxes(deltas[anchor], boxes[anchor], config.size_limit)
        cut |= len(position) >= config.top_k < len(scores)
        levels.append((scores[chosen], chosen % logits.shape[-1], box))
    if not levels:
        nothing = np.zeros(0, dtype=np.float32)
        return _Candidates(nothing.reshape(0, 4), nothing, np.zeros(0, dtype=np.int64), cut, nonfinite)
    logit, label, box = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    if config.clip != "after_nms":
        height, width = size
        # as in retinanet.postprocess.clipped_to_input
        pixel = np.array([0, 0, 1, 1] if config.clip == "padded" else [0, 0, 0, 0], dtype=np.float32)
        limits = np.array([width, height] * 2, dtype=np.float32)
        box = np.clip(box, pixel, limits - pixel[::-1])
    inside = (box[:, 2:] > box[:, :2]).all(axis=1)  # some area is left
    usable = np.flatnonzero(inside)
    order = usable[np.argsort(-logit[usable], kind="stable")]
    return _Candidates(box[order], logit[order], label[order], cut, nonfinite)


def _highest(values: Floats, count: int) -> Ints:
    """Positions of the ``count`` highest values, ascending; of equal values at the limit, those that come first."""
    if len(values) <= count:
        return np.arange(len(values))
    limit = np.partition(values, len(values) - count)[len(values) - count]
    chosen = np.flatnonzero(values > limit)
    equal = np.flatnonzero(values == limit)[: count - len(chosen)]
    return np.sort(np.concatenate([chosen, equal]))


def decode_boxes(deltas: Floats, anchors: Floats, limit: Literal["above", "both", "none"] = "above") -> Floats:
    """Return the boxes ``(n, 4)`` ``xyxy`` that deltas describe; see :func:`retinanet.anchors.decode_boxes`."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller leaves out boxes that are not finite
        size = anchors[:, 2:] - anchors[:, :2]
        center = anchors[:, :2] + np.float32(0.5) * size
        new_center = center + deltas[:, :2] * size
        log_scale = deltas[:, 2:]
        if limit != "none":
            log_scale = np.minimum(log_scale, np.float32(_MAX_LOG_SCALE))
        if limit == "both":
            log_scale = np.maximum(log_scale, np.float32(-_MAX_LOG_SCALE))
        half = np.float32(0.5) * size * np.exp(log_scale)
        return np.concatenate([new_center - half, new_center + half], axis=1)


def _suppress(candidates: _Candidates, config: ResolvedDecodeConfig) -> Detections:
    """Drop boxes that overlap a better box of their class."""
    # Boxes are shifted by class, by more than the extent of all boxes, so that boxes of different classes never
    # overlap. In float32 the shift would reduce the precision.
    apart = candidates.boxes.astype(np.float64)
    apart += (candidates.labels * (apart.max(initial=0) - apart.min(initial=0) + 1))[:, None]
    keep = suppress_boxes(apart, config.nms, config.max_detections)
    return Detections.of_one_image(candidates.boxes[keep], _sigmoid(candidates.logits[keep]), candidates.labels[keep])


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(-x) is infinite for low scores, which become 0
        scores: Floats = np.float32(1) / (np.float32(1) + np.exp(-logits))
    return scores
