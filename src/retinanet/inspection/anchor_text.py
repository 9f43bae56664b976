"""Lines about an anchor fit for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from retinanet.anchors import make_grid
from retinanet.data.sample import MIN_SIDE
from retinanet.inspection.anchor_fit import AnchorFit
from retinanet.inspection.anchor_search import closer

# Number of classes in the table. It shows the classes that the current anchors cover worst.
_CLASSES = 10

# The table shows the share of boxes that have an anchor with at least each of these IoUs.
_IOUS = (0.4, 0.5, 0.6, 0.7)

# If the share of boxes with an anchor of IoU ≥ 0.7 drops by more than this, a note is shown.
_FEWER_CLOSE = 0.05


def fit_lines(fit: AnchorFit) -> Iterator[str]:
    """Yield the lines: coverage, fitted anchors, fewer anchors, validation, assignment, larger inputs."""
    objects = ~fit.train.ignore
    if fit.sample is not fit.train:
        count = int((~fit.sample.ignore).sum())
        yield f"The search uses {count} boxes of {len(fit.sample)} random images."
    tiny = int((fit.sizes[objects].min(axis=1) < MIN_SIDE).sum())
    if tiny:
        boxes = "1 box has" if tiny == 1 else f"{tiny} boxes have"
        size = fit.config.data.size
        yield f"note: {boxes} a side under {MIN_SIDE:g} pixel at data.size {size} and cannot be learned"
    yield from (f"note: {note}" for note in fit.notes)
    yield from _coverage_lines(fit)
    yield from _anchor_lines(fit)
    yield from _fewer_anchors_lines(fit)
    current, fitted = fit.current, fit.fitted
    if current.val_coverage is not None and fitted.val_coverage is not None:
        shares = f"{current.val_coverage.share:.1%} → {fitted.val_coverage.share:.1%}"
        yield f"Covered boxes in {fit.val.name}, which the fit does not use: {shares}"
    yield from _assignment_lines(fit)
    yield from _input_size_lines(fit)
    if not fit.worthwhile:
        yield "The current anchors fit your boxes as well as the fitted ones (within 0.5%). Keep them."


def _coverage_lines(fit: AnchorFit) -> Iterator[str]:
    """Table of the share of covered boxes: all, by size, by class, and at other IoUs."""
    train, threshold = fit.train, fit.threshold
    objects, area = ~train.ignore, fit.sizes.prod(axis=1)
    yield "Anchors are the fixed boxes that the detector starts from; IoU is the overlap of two boxes, from 0 to 1."
    yield f"A box is covered if an anchor has an IoU ≥ {threshold:g} with it."
    yield f"Covered boxes at data.size {fit.config.data.size}:"
    yield f"  {'':<34}{'boxes':>8}{'current':>9}{'fitted':>9}"
    yield from _share_line(fit, "all", objects, threshold)
    yield from _share_line(fit, "small (under 32×32 pixels)", objects & (area < 32**2), threshold)
    yield from _share_line(fit, "medium", objects & (area >= 32**2) & (area < 96**2), threshold)
    yield from _share_line(fit, "large (96×96 and more)", objects & (area >= 96**2), threshold)
    of_class = [objects & (train.labels == label) for label in range(len(train.classes))]
    used = [label for label, rows in enumerate(of_class) if rows.any()]
    used.sort(key=lambda label: (fit.current.overlaps[of_class[label]] >= threshold).mean())
    for label in used[:_CLASSES] if len(train.classes) > 1 else ():
        name = train.classes[label]
        title = f"class {name if len(name) <= 26 else f'{name[:25]}…'}"
        yield from _share_line(fit, title, of_class[label], threshold)
    if len(used) > _CLASSES:
        yield f"  … and {len(used) - _CLASSES} classes that are covered better"
    for iou in _IOUS:
        yield from _share_line(fit, f"all, with an anchor of IoU ≥ {iou:g}", objects, iou)


def _share_line(fit: AnchorFit, name: str, rows: npt.NDArray[np.bool_], iou: float) -> Iterator[str]:
    """Yield a line with the share of ``rows`` whose best anchor has at least ``iou``. No line if ``rows`` is empty."""
    if rows.any():
        current, fitted = ((anchors.overlaps[rows] >= iou).mean() for anchors in (fit.current, fit.fitted))
        yield f"  {name:<34}{rows.sum():>8}{current:>9.1%}{fitted:>9.1%}"


def _anchor_lines(fit: AnchorFit) -> Iterator[str]:
    """Mean IoU, score of the fit, number of anchors, and the fitted values."""
    current, fitted = fit.current, fit.fitted
    yield f"  {'mean IoU with the best anchor':<42}{current.coverage.mean:>9.3f}{fitted.coverage.mean:>9.3f}"
    yield f"  {'closeness (maximized by the fit)':<42}{current.coverage.close:>9.3f}{fitted.coverage.close:>9.3f}"
    yield f"  {'anchors per location':<42}{current.spec.per_location:>9}{fitted.spec.per_location:>9}"
    height, width = fit.input_size
    counts = [len(make_grid(anchors.spec, fit.input_size).boxes) for anchors in (current, fitted)]
    yield f"  {f'anchors in a {width}×{height} image':<42}{counts[0]:>9}{counts[1]:>9}"
    ious = ", ".join(f"{iou:g}" for iou in closer(fit.threshold))
    equally = ", with the same weight for every class" if (np.bincount(_labels(fit)) > 0).sum() > 1 else ""
    yield f"  Closeness is the mean share of boxes with an anchor of IoU ≥ {ious}{equally}."
    objects = ~fit.train.ignore
    close = [(anchors.overlaps[objects] >= 0.7).mean() for anchors in (current, fitted)]
    if close[1] < close[0] - _FEWER_CLOSE:
        yield "  note: The fitted anchors cover more boxes, but fewer of them closely (IoU ≥ 0.7)."
        yield "  More --scales or --ratios help, at the cost of more anchors."
    for name in ("sizes", "scales", "ratios"):
        yield f"fitted {name}: {', '.join(f'{value:g}' for value in getattr(fitted.spec, name))}"


def _labels(fit: AnchorFit) -> npt.NDArray[np.int32]:
    return fit.train.labels[~fit.train.ignore]


def _fewer_anchors_lines(fit: AnchorFit) -> Iterator[str]:
    """Table of the share of covered boxes for each number of scales and ratios."""
    scales, ratios = max(fit.table)
    if (scales, ratios) == (1, 1):
        return
    yield "Covered boxes with fewer fitted anchors, by number of scales (rows) and ratios (columns):"
    yield "  " + " " * 4 + "".join(f"{r:>8}" for r in range(1, ratios + 1))
    for s in range(1, scales + 1):
        yield f"  {s:>4}" + "".join(f"{fit.table[s, r].share:>8.1%}" for r in range(1, ratios + 1))


def _assignment_lines(fit: AnchorFit) -> Iterator[str]:
    """Number of positive anchors per box with the assignment of the recipe."""
    medians = [int(np.median(anchors.positives)) for anchors in (fit.current, fit.fitted)]
    without = [(anchors.positives == 0).mean() for anchors in (fit.current, fit.fitted)]
    yield (
        f"Positive anchors per box with --assign.method {fit.config.assign.method} (current → fitted): "
        f"median {medians[0]} → {medians[1]}; "
        f"boxes without a positive anchor: {without[0]:.1%} → {without[1]:.1%}"
    )
    if fit.config.assign.method == "atss":
        yield "  ATSS has no fixed IoU threshold. It matches a box with its nearest anchors, even if none covers it."


def _input_size_lines(fit: AnchorFit) -> Iterator[str]:
    """Yield lines on whether a larger input would cover more boxes."""
    size, share = fit.config.data.size, fit.uncovered_share
    if fit.input_is_large_enough:
        yield f"data.size {size} is large enough: the fitted anchors leave only {share:.1%} of the boxes uncovered."
        return
    stride = fit.config.anchors.strides[0]
    small = (fit.sizes[fit.uncovered].min(axis=1) < 2 * stride).mean()
    yield (
        f"The fitted anchors leave {share:.1%} of the boxes uncovered. {small:.0%} of these have a side under "
        f"{2 * stride} pixels, and anchors are at least {stride} pixels apart (level P3)."
    )
    if not fit.larger_inputs:
        yield "A larger --data.size would not help: the shapes of these boxes differ too much for so few anchors."
        return
    needed = f"anchors {stride // 2} pixels apart, which this network (levels P3 to P7) does not have"
    yield f"They need {needed}. Alternatives:"
    for larger, covered in fit.larger_inputs.items():
        yield f"  --data.size {larger} would cover {covered:.1%}, at {(larger / size) ** 2:.1f} × the computation"
    yield "  or cut the images into tiles and train on those"
