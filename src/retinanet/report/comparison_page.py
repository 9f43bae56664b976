"""The page of ``retinanet eval A B``: how two detectors differ, how certain the difference is, and example images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.detection.draw import draw_boxes
from retinanet.detection.example_images import Album
from retinanet.evaluation.compare import RESAMPLES, Change, Comparison, most_different
from retinanet.evaluation.matching import Ints
from retinanet.files import write_text
from retinanet.report.html import Figure, counted, image_figure, render, signed

# Colors of Okabe and Ito, which color-blind people can tell apart.
COLORS = {"tp": "#56B4E9", "fp": "#E69F00", "missed": "#F0E442"}

_NOT_COMPARED = ("a class of A only", "a class of B only", "a class of neither")


@dataclass(frozen=True)
class Whisker:
    """Positions and color of the interval of a difference, in a drawing of 160 pixels."""

    low: str
    middle: str
    high: str
    color: str


@dataclass(frozen=True)
class ClassRow:
    """A class with its changes. The whisker is ``None`` if there is no interval."""

    name: str
    AP: Change
    AP50: Change
    objects: int
    whisker: Whisker | None


@dataclass(frozen=True)
class Outcome:
    """A detector's result on an image: positions of detections in the scene, and rows of the dataset's boxes."""

    tp: Ints
    fp: Ints
    found: Ints
    missed: Ints


@dataclass(frozen=True)
class Side:
    """The result of one detector on an image: a caption, and a figure unless the image cannot be shown."""

    caption: str
    figure: Figure | None


@dataclass(frozen=True)
class Pair:
    """An image with the detections of A and of B."""

    file: str
    sides: list[Side]


def write_comparison(path: Path, comparison: Comparison, images: int = 6) -> str | None:
    """Write the page of a comparison as one HTML file.

    Args:
        path: the file to write.
        comparison: result of :func:`retinanet.compare`.
        images: number of images to show where B makes fewer mistakes, and where A makes fewer.

    Returns:
        A note if some images could not be shown. The page contains the same note.
    """
    album = Album(comparison.dataset)
    titles = ("B makes fewer mistakes", "A makes fewer mistakes")
    pairs = [[_pair(comparison, album, i) for i in chosen] for chosen in most_different(comparison, images)]
    reach = _reach(comparison)
    dataset = comparison.dataset
    remark = album.remark()
    page = render(
        "comparison.html",
        title=f"{comparison.names[0]} and {comparison.names[1]} compared",
        comparison=comparison,
        counts=[
            counted(len(dataset), "image", "images"),
            counted(int((~dataset.ignore).sum()), "object", "objects"),
            counted(len(comparison.per_class), "class", "classes"),
        ],
        verdict=verdict(comparison.total["AP"]),
        protocol=comparison.limits[0].protocol(),
        limit_notes=[(name, note) for name, each in zip("AB", comparison.limits, strict=True) for note in each.notes()],
        resamples=RESAMPLES,
        not_compared=[pair for pair in zip(comparison.only, _NOT_COMPARED, strict=True) if pair[0]],
        classes=_class_rows(comparison, reach),
        reach=f"{reach:.2g}",
        metrics=[
            (name, *(each.summary[name] for each in comparison.metrics)) for name in comparison.metrics[0].summary
        ],
        scores=[each.score for each in comparison.mistakes],
        colors=COLORS,
        images=list(zip(titles, pairs, strict=True)),
        remark=remark,
    )
    write_text(path, page)
    return remark


def verdict(change: Change) -> str:
    """Say in a sentence which detector has the better AP, and how certain the difference is."""
    if np.isnan(change.delta):
        return "There are no objects, so nothing can be measured."
    if change.low == change.high == change.delta == 0:
        return "There is no difference: both detectors have the same AP on every resample of the images."
    interval = f"the 95% interval of ΔAP is {signed(change.low)} to {signed(change.high)}"
    if change.low > 0 or change.high < 0:
        if f"{abs(change.delta):.3f}" == "0.000":
            return f"The two APs are equal up to rounding: {interval}."
        winner, share = ("B", change.better) if change.delta > 0 else ("A", change.worse)
        better = f"{winner} is better by {abs(change.delta):.3f} AP"
        return f"{better}: {interval}, and {winner} is better in {share:.1%} of the resamples."
    return (
        f"These images do not show which detector is better: {interval}, which includes 0; "
        f"B is better in {change.better:.1%} of the resamples."
    )


def outcome_of(comparison: Comparison, side: int, image: int) -> Outcome:
    """Find the true positives, false positives and false negatives of A (0) or B (1) in an image."""
    dataset, scene, matching = comparison.dataset, comparison.scenes[side], comparison.matchings[side]
    here = (scene.images == image) & (scene.scores >= comparison.mistakes[side].score)
    tp, fp = (np.flatnonzero(here & kind[0]) for kind in (matching.tp, matching.fp))
    found = matching.objects[0, tp]
    objects = np.arange(dataset.offsets[image], dataset.offsets[image + 1])
    missed = objects[~dataset.ignore[objects] & np.isin(objects, found, invert=True)]
    return Outcome(tp, fp, found, missed)


def draw_outcome(
    image: npt.NDArray[np.uint8], comparison: Comparison, side: int, outcome: Outcome
) -> npt.NDArray[np.uint8]:
    """Draw the boxes of an outcome on a copy of ``image``, in ``COLORS``."""
    objects, boxes = comparison.dataset.boxes, comparison.scenes[side].boxes
    line = max(1, round(max(image.shape) / 200))  # the same width on the page, whatever the image size
    for color, outlines in (
        ("white", objects[outcome.found]),
        (COLORS["tp"], boxes[outcome.tp]),
        (COLORS["fp"], boxes[outcome.fp]),
        (COLORS["missed"], objects[outcome.missed]),
    ):
        # Black edges make a bright line visible on a bright image.
        image = draw_boxes(image, np.add(outlines, (-1, -1, 1, 1)), "black", width=line + 2)
        image = draw_boxes(image, outlines, color, width=line)
    return image


def _reach(comparison: Comparison) -> float:
    """The scale of the whiskers: the largest absolute bound of any interval, at least 0.01."""
    changes = [row["AP"] for row in comparison.per_class.values()]
    return max([0.01, *(abs(v) for change in changes for v in (change.low, change.high) if not np.isnan(v))])


def _class_rows(comparison: Comparison, reach: float) -> list[ClassRow]:
    """The classes, sorted by the gain of B, largest first."""
    counts = comparison.dataset.class_counts()
    rows = [
        ClassRow(name, row["AP"], row["AP50"], counts[name], _whisker(row["AP"], reach))
        for name, row in comparison.per_class.items()
    ]
    return sorted(rows, key=lambda row: -row.AP.delta)


def _whisker(change: Change, reach: float) -> Whisker | None:
    if np.isnan(change.low):
        return None
    low, middle, high = (f"{80 + 76 * value / reach:.1f}" for value in (change.low, change.delta, change.high))
    certain = change.low > 0 or change.high < 0
    return Whisker(low, middle, high, "#8888" if not certain else "#1f8fb8" if change.delta > 0 else "#c77700")


def _pair(comparison: Comparison, album: Album, index: int) -> Pair:
    image = album.image(index)
    sides = []
    for side, letter in enumerate("AB"):
        outcome = outcome_of(comparison, side, index)
        missed = _per_class(comparison.dataset.labels[outcome.missed], comparison)
        fp = _per_class(comparison.scenes[side].labels[outcome.fp], comparison)
        caption = f"{letter}: false negatives {missed}; false positives {fp}"
        figure = None if image is None else image_figure(draw_outcome(image, comparison, side, outcome), caption)
        sides.append(Side(caption, figure))
    return Pair(Path(comparison.dataset.files[index]).name, sides)


def _per_class(labels: npt.NDArray[np.integer], comparison: Comparison) -> str:
    """The number of labels, followed by the number per class if there are several classes."""
    classes = comparison.dataset.classes
    counts = [(int(n), classes[k]) for k, n in enumerate(np.bincount(labels, minlength=len(classes))) if n]
    named = ", ".join(f"{n} {name}" for n, name in counts)
    return f"{len(labels)} ({named})" if counts and len(classes) > 1 else str(len(labels))
