"""The page of ``retinanet data inspect``: findings with images, statistics of the splits, and boxes against anchors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retinanet.anchors.grid import make_grid
from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import padded_size, scaled_size
from retinanet.data.images import read_image
from retinanet.detection.draw import closeup
from retinanet.errors import DataError
from retinanet.evaluation.matching import iou
from retinanet.files import write_text
from retinanet.inspection.dataset_inspection import Inspection
from retinanet.inspection.findings import Finding, Kind, Sight, by_kind
from retinanet.inspection.survey import REACHED, Survey
from retinanet.report.anchor_plot import UNREACHED, plot_boxes
from retinanet.report.html import Figure, image_figure, percent, plot_figure, render

# Longer side of an example image, in pixels.
_SIDE = 360

# Number of findings of one kind that are listed, and number that are shown with images.
_LISTED, _SHOWN = 1000, 6

# Number of example boxes that no anchor reaches, and number of rows in the table of classes.
_UNREACHED = 12
_CLASSES = 100


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one kind: their number, the first findings, and images of some of them."""

    kind: Kind
    total: int
    listed: Sequence[Finding]
    figures: list[Figure]


@dataclass(frozen=True)
class SplitRow:
    """Statistics of a split."""

    name: str
    images: int
    empty: int
    boxes: int
    ignored: int
    mean: float
    median: str
    most: int
    imbalance: float


@dataclass(frozen=True)
class ClassRow:
    """A class with its number of boxes in each split, and the width of its bar in rem."""

    name: str
    counts: list[int]
    bar: float


@dataclass(frozen=True)
class ClassTable:
    """The most frequent classes, and the number of classes that are not listed."""

    rows: list[ClassRow]
    more: int


@dataclass(frozen=True)
class UnreachedBoxes:
    """The number of boxes that no anchor reaches, and images of some of these boxes."""

    total: int
    figures: list[Figure]


def write_inspection(path: Path, found: Inspection) -> None:
    """Write the page of an inspection as one HTML file.

    Args:
        path: the file to write.
        found: result of :func:`retinanet.inspection.dataset_inspection.inspect`.
    """
    first = next(iter(found.surveys))
    survey = found.surveys[first]
    page = render(
        "inspection.html",
        title=f"Inspection of {found.name}",
        found=found,
        config=found.config,
        cards=_cards(found),
        findings=[_finding_group(kind, group, found.splits) for kind, group in by_kind(found.findings).items()],
        splits=[_split_row(name, each) for name, each in found.surveys.items()],
        classes=_class_table(found.surveys),
        first=first,
        reached_iou=f"{REACHED:g}",
        plot=plot_figure(plot_boxes(survey, found.config.anchors)) if survey.objects.any() else None,
        coverage=list(survey.coverage()),
        unreached=_unreached_boxes(survey, found.config),
    )
    write_text(path, page)


def _cards(found: Inspection) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the numbers at the top."""
    counts = {s: sum(f.kind.severity == s for f in found.findings) for s in ("error", "warning", "note")}
    surveys = found.surveys.values()
    return [
        ("errors", str(counts["error"]), "training stops, or metrics are invalid"),
        ("warnings", str(counts["warning"]), "accuracy or metrics may suffer"),
        ("notes", str(counts["note"]), "worth knowing"),
        ("images", str(sum(len(s.dataset) for s in surveys)), f"in {len(surveys)} splits"),
        ("boxes", str(sum(int(s.objects.sum()) for s in surveys)), "without ignore regions"),
        ("reached", percent(found.train.reached), f"boxes with an anchor of IoU ≥ {REACHED:g}"),
    ]


def _finding_group(kind: Kind, findings: Sequence[Finding], splits: Mapping[str, Dataset]) -> FindingGroup:
    sights = [sight for finding in [f for f in findings if f.sights][:_SHOWN] for sight in finding.sights]
    figures = [figure for sight in sights if (figure := _sight_figure(sight, splits[sight.split])) is not None]
    return FindingGroup(kind, len(findings), findings[:_LISTED], figures)


def _sight_figure(sight: Sight, dataset: Dataset) -> Figure | None:
    """The image of a finding; ``None`` if it cannot be read. Unreadable images are reported as separate findings."""
    try:
        image = read_image(dataset.path(sight.image), dataset.pixel_range)
    except DataError:
        return None
    boxes = np.array(sight.boxes, dtype=np.float32).reshape(-1, 4)
    colors = [UNREACHED, "white"][: len(boxes)] if sight.closely else ["white"] * len(boxes)
    shown = closeup(image, boxes, colors, _SIDE, sight.closely)
    return image_figure(shown, f"{sight.split}: {dataset.files[sight.image]}", _SIDE)


def _split_row(name: str, survey: Survey) -> SplitRow:
    counts = survey.per_image
    return SplitRow(
        name=name,
        images=len(counts),
        empty=int((counts == 0).sum()),
        boxes=int(counts.sum()),
        ignored=int(survey.dataset.ignore.sum()),
        mean=float(counts.mean()),
        median=f"{np.median(counts):g}",
        most=int(counts.max()),
        imbalance=survey.imbalance,
    )


def _class_table(surveys: Mapping[str, Survey]) -> ClassTable:
    counts = [survey.dataset.class_counts() for survey in surveys.values()]
    totals = {name: sum(each[name] for each in counts) for name in counts[0]}
    most = max([1, *totals.values()])
    shown = sorted(totals, key=lambda name: -totals[name])[:_CLASSES]
    rows = [ClassRow(name, [each[name] for each in counts], 12 * totals[name] / most) for name in shown]
    return ClassTable(rows, len(totals) - len(rows))


def _unreached_boxes(survey: Survey, config: Config) -> UnreachedBoxes:
    """Show some boxes that no anchor reaches, from the lowest to the highest IoU, each with its best anchor."""
    rows = np.flatnonzero(survey.objects & (survey.overlaps < REACHED))
    if len(rows) == 0:
        return UnreachedBoxes(0, [])
    rows = rows[np.argsort(survey.overlaps[rows], kind="stable")]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_UNREACHED, len(rows))).round().astype(int))]
    return UnreachedBoxes(len(rows), list(_unreached_figures(survey, config, chosen.tolist())))


def _unreached_figures(survey: Survey, config: Config, rows: Sequence[int]) -> Iterator[Figure]:
    dataset = survey.dataset
    for row in rows:
        index = int(np.searchsorted(dataset.offsets, row, side="right")) - 1
        width, height = dataset.sizes[index].tolist()
        try:
            image = read_image(dataset.path(index), dataset.pixel_range)
        except DataError:
            continue
        scaled = scaled_size(height, width, config.data)
        factors = np.array([scaled[1] / width, scaled[0] / height] * 2, dtype=np.float32)
        anchors = make_grid(config.anchors, padded_size([scaled], config.data.pad_to)).boxes.numpy().astype(np.float64)
        box = dataset.boxes[row]
        ious = iou((box * factors).astype(np.float64)[None], anchors, np.zeros(len(anchors), dtype=np.bool_))
        both = np.stack([box, anchors[int(ious[0].argmax())] / factors]).astype(np.float32)
        name = dataset.classes[dataset.labels[row]]
        sides = "×".join(f"{side:.0f}" for side in survey.size[row])
        caption = f"{name}, {sides} px, IoU {survey.overlaps[row]:.2f} · {dataset.files[index]}"
        yield image_figure(closeup(image, both, ["white", UNREACHED], _SIDE), caption, _SIDE)
