"""Search for anchors that cover the boxes of a dataset.

A box is covered if its IoU with an anchor of its image reaches the threshold from which that anchor is positive. The
IoU depends not only on the shapes but also on the position of the box between the anchors, so the search computes the
IoU with the real grid. It is a pattern search: it changes one number of the anchors at a time, keeps improvements, and
continues with smaller changes.

The share of covered boxes alone is not a good objective. If two sets of anchors cover the same share, the set with the
higher IoU gives more precise detections. The share alone also favors few shapes that just reach every box. So the
search maximizes the mean of three shares, at the threshold and at two higher IoUs. As AP is a mean over classes, each
class has the same weight, so that a frequent class does not take the anchors of a rare one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.anchors.grid import base_anchors
from retinanet.config import AnchorSpec
from retinanet.inspection.anchor_coverage import Floats, ScaledBoxes

# A gain in ``AnchorCoverage.close`` below this does not justify changing the anchors.
AS_GOOD = 0.005

# Fewer anchors are preferred if ``close`` and the mean IoU are at most this much below the best.
_EQUAL_CLOSE, _EQUAL_MEAN = 0.001, 0.01

# Bounds of an anchor's side in strides. Anchors smaller than a stride leave gaps. No experiment has tested whether a
# level can detect objects with anchors larger than 12 strides.
_SIDES = (1.0, 12.0)
_LARGEST_RATIO = 32.0

# Number of starting points from which the search runs. With fewer, some datasets end far from their best anchors.
_STARTS = 4

# Step sizes of the search in octaves.
_STEPS = (0.5, 0.25, 0.12, 0.06, 0.03)


def class_weights(labels: npt.NDArray[np.integer[Any]]) -> Floats:
    """Weights ``(M,)`` that give each class in ``labels`` ``(M,)`` the same total weight; their mean is 1."""
    present, row, count = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = (len(labels) / len(present) / count)[row].astype(np.float32)
    return weights


def closer(threshold: float) -> tuple[float, float, float]:
    """Return ``threshold`` and the IoUs at 20% and 40% of the way from it to 1, such as 0.5, 0.6 and 0.7."""
    return threshold, 0.8 * threshold + 0.2, 0.6 * threshold + 0.4


@dataclass(frozen=True, order=True)
class AnchorCoverage:
    """How well anchors cover boxes; ordered by the objective of the search.

    Attributes:
        close: objective of the search. For each IoU of :func:`closer`, take the weighted share of boxes whose best
            anchor reaches that IoU; ``close`` is the mean of these shares.
        share: share of the boxes whose best anchor reaches the threshold.
        mean: mean IoU of the boxes with their best anchor.
    """

    close: float
    share: float
    mean: float

    @classmethod
    def of(cls, overlaps: Floats, threshold: float, weights: Floats | None = None) -> AnchorCoverage:
        """Summarize the best IoUs ``(M,)`` of the boxes, without NaN, with the relative ``weights`` ``(M,)``."""
        rows = ~np.isnan(overlaps)
        if not rows.any():
            return cls(0.0, 0.0, 0.0)
        known, weights = overlaps[rows], None if weights is None else weights[rows]
        close = [np.average(known >= least, weights=weights) for least in closer(threshold)]
        share, mean = (known >= threshold).mean(), known.mean(dtype=np.float64)
        return cls(float(sum(close)) / len(close), float(share), float(mean))


@dataclass(frozen=True)
class SearchResult:
    """Result of the search.

    Attributes:
        spec: the best anchors.
        coverage: their coverage.
        table: the best coverage for each number of scales and ratios.
    """

    spec: AnchorSpec
    coverage: AnchorCoverage
    table: dict[tuple[int, int], AnchorCoverage]


def search_anchors(
    boxes: ScaledBoxes,
    spec: AnchorSpec,
    scales: int = 3,
    ratios: int = 3,
    threshold: float = 0.5,
    progress: Callable[[int], object] = lambda fits: None,
    weights: Floats | None = None,
) -> SearchResult:
    """Find the anchors that cover ``boxes`` best. Among nearly equal solutions, prefer the fewest anchors.

    The sizes keep the proportions of ``spec.sizes``, unless independent sizes per level are better by at least
    ``AS_GOOD``. The search is deterministic.

    Args:
        boxes: at least one box.
        spec: its ``strides``, ``layout`` and proportions of ``sizes`` are kept.
        scales: largest number of scales.
        ratios: largest number of ratios.
        threshold: IoU from which a box is covered.
        progress: called with the number of fits just done; the total is ``scales × ratios + 2``.
        weights: weights of the boxes, ``(M,)``, such as :func:`class_weights` returns.
    """
    search = _Search(boxes, threshold, weights)
    starts = sorted(_starts(boxes, spec, scales, ratios, weights), key=search.coverage, reverse=True)
    best = {(scales, ratios): max((search.improve(start) for start in starts[:_STARTS]), key=search.coverage)}
    progress(2)
    for s in range(scales, 0, -1):
        for r in range(ratios, 0, -1):
            fewer = [*_without(best.get((s + 1, r)), "scales"), *_without(best.get((s, r + 1)), "ratios")]
            if fewer:
                best[s, r] = search.improve(max(fewer, key=search.coverage), _STEPS[1:])
                progress(1)
    most = max(search.coverage(each) for each in best.values())
    enough = [each for each in best.values() if _equal(search.coverage(each), most)]
    chosen = min(enough, key=lambda each: (each.per_location, -search.coverage(each).mean))
    free = search.improve(chosen, _STEPS[1:], levels=True)
    progress(1)
    if search.coverage(free).close >= search.coverage(chosen).close + AS_GOOD:
        chosen = free
    return SearchResult(
        _tidy(chosen), search.coverage(chosen), {key: search.coverage(best[key]) for key in sorted(best)}
    )


def _equal(coverage: AnchorCoverage, most: AnchorCoverage) -> bool:
    return coverage.close >= most.close - _EQUAL_CLOSE and coverage.mean >= most.mean - _EQUAL_MEAN


def refit(
    boxes: ScaledBoxes, spec: AnchorSpec, threshold: float = 0.5, weights: Floats | None = None
) -> AnchorCoverage:
    """Coverage of ``boxes`` by the best anchors near ``spec``, with the same number of scales and ratios."""
    search = _Search(boxes, threshold, weights)
    return search.coverage(search.improve(spec, _STEPS[1:4]))


@dataclass
class _Search:
    """Evaluates many anchors on the same boxes. IoUs are cached by shape, because a move changes few shapes."""

    boxes: ScaledBoxes
    threshold: float
    weights: Floats | None
    _shapes: dict[tuple[int, float, float], Floats] = field(default_factory=dict)
    _nearest: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)

    def coverage(self, spec: AnchorSpec) -> AnchorCoverage:
        best = np.zeros(len(self.boxes), dtype=np.float32)
        for level in range(len(spec.strides)):
            base = base_anchors(spec, level)
            for width, height in ((base[:, 2:] - base[:, :2]) / 2).tolist():
                np.maximum(best, self._overlaps(spec, level, width, height), out=best)
        return AnchorCoverage.of(best, self.threshold, self.weights)

    def _overlaps(self, spec: AnchorSpec, level: int, width: float, height: float) -> Floats:
        key = (level, width, height)
        found = self._shapes.pop(key, None)
        if found is None:
            if level not in self._nearest:
                self._nearest[level] = self.boxes.nearest(spec, level)
            found = self.boxes.overlaps(self._nearest[level], (width, height))
        self._shapes[key] = found  # the most recently used shape is last
        while len(self._shapes) > 4 * len(spec.strides) * spec.per_location:
            del self._shapes[next(iter(self._shapes))]
        return found

    def improve(self, spec: AnchorSpec, steps: tuple[float, ...] = _STEPS, levels: bool = False) -> AnchorSpec:
        """Move to better neighbors until none is better, for each step size. With ``levels``, each size moves alone."""
        best = self.coverage(spec)
        for step in steps:
            for _ in range(4):  # rounds
                before = best
                for move in range(_moves(spec, levels)):
                    for factor in (2**step, 2**-step):
                        changed = _moved(spec, move, factor)
                        if not _allowed(changed):
                            continue
                        coverage = self.coverage(changed)
                        if coverage > best:
                            spec, best = changed, coverage
                            break
                if best.close - before.close < 1e-4 and best.mean - before.mean < 1e-4:
                    break
        return spec


def _starts(
    boxes: ScaledBoxes, spec: AnchorSpec, scales: int, ratios: int, weights: Floats | None
) -> Iterator[AnchorSpec]:
    """Yield starting points: scales over one or two octaves, ratios over two octaves or at quantiles of the boxes."""
    size = np.maximum(boxes.boxes[:, 2:] - boxes.boxes[:, :2], 0.01)  # scaling may leave a width of 0
    shape = np.log2(size[:, 1] / size[:, 0])
    spread = 2.0 ** np.linspace(-1, 1, ratios) if ratios > 1 else np.ones(1)
    own = 2.0 ** np.quantile(shape, (np.arange(ratios) + 0.5) / ratios, weights=weights, method="inverted_cdf")
    for choice in (spread, own.clip(1 / _LARGEST_RATIO, _LARGEST_RATIO)):
        for side in (2.0, 2.8, 4.0):
            factor = side / (spec.sizes[0] / spec.strides[0])
            sizes = tuple(value * factor for value in spec.sizes)
            for octaves in (1, 2) if scales > 1 else (1,):
                steps = tuple(2 ** (octaves * i / scales) for i in range(scales))
                yield _rounded(replace(spec, sizes=sizes, scales=steps, ratios=tuple(choice.tolist())))
    if len(spec.scales) == scales and len(spec.ratios) == ratios:
        yield spec


def _without(spec: AnchorSpec | None, name: str) -> list[AnchorSpec]:
    """All variants of ``spec`` with one scale or ratio removed."""
    values = getattr(spec, name) if spec else ()
    if spec is None or len(values) < 2:
        return []
    return [_with(spec, name, values[:i] + values[i + 1 :]) for i in range(len(values))]


def _moves(spec: AnchorSpec, levels: bool) -> int:
    return 1 + len(spec.scales) + len(spec.ratios) + (len(spec.sizes) if levels else 0)


def _moved(spec: AnchorSpec, move: int, factor: float) -> AnchorSpec:
    """Multiply the number that ``move`` selects by ``factor``. Move 0 multiplies all sizes."""
    if move == 0:
        return _rounded(replace(spec, sizes=tuple(size * factor for size in spec.sizes)))
    move -= 1
    for name in ("scales", "ratios", "sizes"):
        values = list(getattr(spec, name))
        if move < len(values):
            values[move] *= factor
            return _rounded(_with(spec, name, tuple(values)))
        move -= len(values)
    raise IndexError(move)


def _with(spec: AnchorSpec, name: str, values: tuple[float, ...]) -> AnchorSpec:
    changes: dict[str, Any] = {name: values}
    return replace(spec, **changes)


def _rounded(spec: AnchorSpec) -> AnchorSpec:
    """Round to four significant digits, as in the recipe file."""
    for name in ("sizes", "scales", "ratios"):
        spec = _with(spec, name, tuple(float(f"{value:.4g}") for value in getattr(spec, name)))
    return spec


def _allowed(spec: AnchorSpec) -> bool:
    sides = [size / stride for size, stride in zip(spec.sizes, spec.strides, strict=True)]
    fits = _SIDES[0] <= min(sides) * min(spec.scales) and max(sides) * max(spec.scales) <= _SIDES[1]
    return fits and max(*spec.ratios, *(1 / ratio for ratio in spec.ratios)) <= _LARGEST_RATIO


def _tidy(spec: AnchorSpec) -> AnchorSpec:
    """Normalize the anchors: smallest scale 1, scales and ratios in ascending order."""
    unit = min(spec.scales)
    return _rounded(
        replace(
            spec,
            sizes=tuple(size * unit for size in spec.sizes),
            scales=tuple(sorted(scale / unit for scale in spec.scales)),
            ratios=tuple(sorted(spec.ratios)),
        )
    )
