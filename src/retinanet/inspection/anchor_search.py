"""Search for anchors that cover the boxes of a dataset.

Covered is a box whose IoU with some anchor of its image reaches the threshold from which the anchor learns it. That
depends on where the box lies between the anchors, not on the shapes alone, so the search computes the overlap with the
real grid. It is a pattern search: change one number of the anchors, keep what is better, go on with smaller changes.

Reaching the threshold is not all: of two sets of anchors that cover as many boxes, detectors with the closer one are
more precise. Maximising the covered share alone spreads few shapes thinly, each box just within reach of one. So the
search maximises the share that is covered, covered closely and covered very closely, with equal weights. And as AP is a
mean over classes, each class counts alike: a common one must not take the anchors from a rare one.
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

# Differences of ``Coverage.close`` below this are not worth other anchors.
AS_GOOD = 0.005

# Fewer anchors are taken if what is searched for, and the mean IoU, are no more than this below the best.
_EQUAL_CLOSE, _EQUAL_MEAN = 0.001, 0.01

# Side ÷ stride that anchors may have, and largest ratio. Smaller than a stride they leave gaps; an anchor's side of 12
# strides is the most that a position of the pyramid was ever shown to see.
_SIDES = (1.0, 12.0)
_LARGEST_RATIO = 32.0

# So many of the most promising starts are followed; with fewer, some data sets were left far from their best anchors.
_TRIED = 4

# Octaves by which numbers are changed, one after the other.
_STEPS = (0.5, 0.25, 0.12, 0.06, 0.03)


def class_weights(labels: npt.NDArray[np.integer[Any]]) -> Floats:
    """Weights ``(M,)`` under which each class that ``labels`` ``(M,)`` have counts alike; 1 on average."""
    present, row, count = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = (len(labels) / len(present) / count)[row].astype(np.float32)
    return weights


def closer(threshold: float) -> tuple[float, float, float]:
    """``threshold``, and the IoUs at 20 and 40 % of the way from there to 1: 0.5, 0.6 and 0.7."""
    return threshold, 0.8 * threshold + 0.2, 0.6 * threshold + 0.4


@dataclass(frozen=True, order=True)
class Coverage:
    """How well anchors cover boxes; ordered by what the search maximises.

    Attributes:
        close: mean of three shares of the boxes, by weight: those whose best anchor reaches each IoU of :func:`closer`.
        share: boxes whose best anchor reaches the threshold, as a share of all.
        mean: mean IoU of all boxes with their best anchor.
    """

    close: float
    share: float
    mean: float

    @classmethod
    def of(cls, overlaps: Floats, threshold: float, weights: Floats | None = None) -> Coverage:
        """Of IoUs ``(M,)``; those that are NaN do not count. Of the ``weights`` ``(M,)``, only the proportions do."""
        rows = ~np.isnan(overlaps)
        if not rows.any():
            return cls(0.0, 0.0, 0.0)
        known, weights = overlaps[rows], None if weights is None else weights[rows]
        close = [np.average(known >= least, weights=weights) for least in closer(threshold)]
        share, mean = (known >= threshold).mean(), known.mean(dtype=np.float64)
        return cls(float(sum(close)) / len(close), float(share), float(mean))


@dataclass(frozen=True)
class Fit:
    """What the search found.

    Attributes:
        spec: the anchors to take.
        coverage: theirs.
        table: the best coverage for each number of scales and ratios.
    """

    spec: AnchorSpec
    coverage: Coverage
    table: dict[tuple[int, int], Coverage]


def fit_anchors(
    boxes: ScaledBoxes,
    spec: AnchorSpec,
    scales: int = 3,
    ratios: int = 3,
    threshold: float = 0.5,
    progress: Callable[[int], object] = lambda fits: None,
    weights: Floats | None = None,
) -> Fit:
    """The anchors that cover ``boxes`` best (``Coverage.close``); of those that are practically as good, the fewest.

    Sizes stay in proportion to the strides as in ``spec``, unless a size of its own for each level is better by at
    least ``AS_GOOD``. There is no chance in it.

    Args:
        boxes: what to cover; at least one.
        spec: of which ``strides``, ``layout`` and the proportion of ``sizes`` are kept.
        scales: at most so many.
        ratios: at most so many.
        threshold: IoU from which a box is covered.
        progress: called with 1 after each of ``scales × ratios + 2`` fits.
        weights: of the boxes, ``(M,)``, such as :func:`class_weights`.
    """
    search = _Search(boxes, threshold, weights)
    starts = sorted(_starts(boxes, spec, scales, ratios, weights), key=search.coverage, reverse=True)
    best = {(scales, ratios): max((search.improve(start) for start in starts[:_TRIED]), key=search.coverage)}
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
    return Fit(_tidy(chosen), search.coverage(chosen), {key: search.coverage(best[key]) for key in sorted(best)})


def _equal(coverage: Coverage, most: Coverage) -> bool:
    return coverage.close >= most.close - _EQUAL_CLOSE and coverage.mean >= most.mean - _EQUAL_MEAN


def refit(boxes: ScaledBoxes, spec: AnchorSpec, threshold: float = 0.5, weights: Floats | None = None) -> Coverage:
    """What anchors near ``spec``, with as many scales and ratios, cover of ``boxes``."""
    search = _Search(boxes, threshold, weights)
    return search.coverage(search.improve(spec, _STEPS[1:4]))


@dataclass
class _Search:
    """Evaluates anchors on the same boxes again and again; one shape at a time, as most change but a few of them."""

    boxes: ScaledBoxes
    threshold: float
    weights: Floats | None
    _shapes: dict[tuple[int, float, float], Floats] = field(default_factory=dict)
    _nearest: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)

    def coverage(self, spec: AnchorSpec) -> Coverage:
        best = np.zeros(len(self.boxes), dtype=np.float32)
        for level in range(len(spec.strides)):
            for width, height in base_anchors(spec, level)[:, 2:].tolist():
                np.maximum(best, self._overlaps(spec, level, width, height), out=best)
        return Coverage.of(best, self.threshold, self.weights)

    def _overlaps(self, spec: AnchorSpec, level: int, width: float, height: float) -> Floats:
        key = (level, width, height)
        found = self._shapes.pop(key, None)
        if found is None:
            if level not in self._nearest:
                self._nearest[level] = self.boxes.nearest(spec, level)
            found = self.boxes.overlaps(self._nearest[level], (width, height))
        self._shapes[key] = found  # the newest last
        while len(self._shapes) > 4 * len(spec.strides) * spec.per_location:
            del self._shapes[next(iter(self._shapes))]
        return found

    def improve(self, spec: AnchorSpec, steps: tuple[float, ...] = _STEPS, levels: bool = False) -> AnchorSpec:
        """Follow better neighbours until there is none, for each step; with ``levels``, sizes go their own ways."""
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
    """Where to begin: scales evenly over one octave or two, ratios evenly over two octaves or over the boxes'."""
    size = np.maximum(boxes.boxes[:, 2:] - boxes.boxes[:, :2], 0.01)  # scaling may leave a sliver no width at all
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
    """``spec`` without one of its scales or ratios, in every way."""
    values = getattr(spec, name) if spec else ()
    if spec is None or len(values) < 2:
        return []
    return [_with(spec, name, values[:i] + values[i + 1 :]) for i in range(len(values))]


def _moves(spec: AnchorSpec, levels: bool) -> int:
    return 1 + len(spec.scales) + len(spec.ratios) + (len(spec.sizes) if levels else 0)


def _moved(spec: AnchorSpec, move: int, factor: float) -> AnchorSpec:
    """One number ``factor`` times as large; move 0 is all sizes at once."""
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
    """Four digits, which is what people read and files hold."""
    for name in ("sizes", "scales", "ratios"):
        spec = _with(spec, name, tuple(float(f"{value:.4g}") for value in getattr(spec, name)))
    return spec


def _allowed(spec: AnchorSpec) -> bool:
    sides = [size / stride for size, stride in zip(spec.sizes, spec.strides, strict=True)]
    fits = _SIDES[0] <= min(sides) * min(spec.scales) and max(sides) * max(spec.scales) <= _SIDES[1]
    return fits and max(*spec.ratios, *(1 / ratio for ratio in spec.ratios)) <= _LARGEST_RATIO


def _tidy(spec: AnchorSpec) -> AnchorSpec:
    """The same anchors, to 4 digits: the smallest scale 1, all in order."""
    unit = min(spec.scales)
    return _rounded(
        replace(
            spec,
            sizes=tuple(size * unit for size in spec.sizes),
            scales=tuple(sorted(scale / unit for scale in spec.scales)),
            ratios=tuple(sorted(spec.ratios)),
        )
    )
