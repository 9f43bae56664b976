"""The page of ``retinanet data inspect``: findings with pictures, numbers, and boxes against anchors."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchvision.ops import box_iou

from retinanet import page
from retinanet.anchors.grid import base_anchors, make_grid
from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.findings import Finding, Kind, Sight, by_kind
from retinanet.data.images import read_image
from retinanet.data.survey import REACHED, Survey
from retinanet.data.transforms import PAD_TO, scaled_size
from retinanet.errors import DataError
from retinanet.files import write_text

# Longer side of a shown picture, in pixels.
_SIDE = 360

# Of one kind: findings listed, and findings pictured.
_LISTED, _PICTURED = 1000, 6

_UNREACHED = 12
_CLASSES = 100
_POINTS = 5000
_BOXES, _MISSED, _ANCHORS = "#1f6f8b", "#e0a100", "#c8553d"


def write_page(
    path: Path,
    title: str,
    splits: Mapping[str, Dataset],
    findings: Sequence[Finding],
    surveys: Mapping[str, Survey],
    sentences: Sequence[str],
    config: Config,
) -> None:
    """Write the page.

    Args:
        path: where to.
        title: what was inspected.
        splits: the splits as the findings number their pictures.
        findings: what was found.
        surveys: of each split.
        sentences: about foreground and background.
        config: the settings of the training to come.
    """
    first = next(iter(surveys))
    survey = surveys[first]
    inspected = f"at data.size {config.data.size}, assignment {config.assign.method}"
    body = f"""<h1>{html.escape(title)}</h1>
<p>{", ".join(map(html.escape, surveys))}; {html.escape(inspected)}.</p>
<div class="numbers">{_numbers(findings, surveys)}</div>
<h2>Findings</h2>
{"".join(_kind(kind, found, splits) for kind, found in by_kind(findings).items()) or "<p>None.</p>"}
<h2>Splits</h2>
{_splits(surveys)}
<h2>Classes</h2>
{_classes(surveys)}
<h2>Boxes and anchors in {html.escape(first)}</h2>
<p>Sizes are in pixels of the network's input. A box is reached if an anchor has an IoU of at least {REACHED:g} with it;
assigned if the settings ({html.escape(config.assign.method)}) give it at least one anchor.</p>
{page.plot(_plots(survey, config)) if survey.objects.any() else "<p>There is no box.</p>"}
{_coverage(survey)}
{_unreached(survey, config)}
<h2>Foreground and background in {html.escape(first)}</h2>
<ul>{"".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)}</ul>
"""
    write_text(path, page.document(f"Inspection of {title}", body))


def _numbers(findings: Sequence[Finding], surveys: Mapping[str, Survey]) -> str:
    counts = {s: sum(f.kind.severity == s for f in findings) for s in ("error", "warning", "note")}
    reached = next(iter(surveys.values())).reached
    cards = [
        ("errors", str(counts["error"]), "training would stop or go wrong"),
        ("warnings", str(counts["warning"]), "it would learn or measure something wrong"),
        ("notes", str(counts["note"]), "worth knowing"),
        ("images", str(sum(len(s.dataset) for s in surveys.values())), f"in {len(surveys)} splits"),
        ("boxes", str(sum(int(s.objects.sum()) for s in surveys.values())), "without ignore regions"),
        ("reached", _share(reached), f"boxes with an anchor of IoU ≥ {REACHED:g}"),
    ]
    return "".join(page.number_card(*card) for card in cards)


def _kind(kind: Kind, found: Sequence[Finding], splits: Mapping[str, Dataset]) -> str:
    lines = "".join(f"<li>{html.escape(_line(finding))}</li>" for finding in found[:_LISTED])
    more = f"<li>… and {len(found) - _LISTED} more in findings.json</li>" if len(found) > _LISTED else ""
    figures = "".join(_sights(finding, splits) for finding in [f for f in found if f.sights][:_PICTURED])
    opened = " open" if kind.severity != "note" else ""
    pictures = f'<div class="pictures small">{figures}</div>' if figures else ""
    return (
        f'<details{opened}><summary><span class="{kind.severity}">{kind.severity}</span> '
        f"{len(found)} × {html.escape(kind.title)}: <small>{html.escape(kind.effect)}</small></summary>"
        f"{pictures}<ul>{lines}{more}</ul></details>\n"
    )


def _line(finding: Finding) -> str:
    return f"{finding.where}: {finding.what}" + (f" ({finding.effect})" if finding.effect else "")


def _sights(finding: Finding, splits: Mapping[str, Dataset]) -> str:
    return "".join(_sight(sight, splits[sight.split]) for sight in finding.sights)


def _sight(sight: Sight, dataset: Dataset) -> str:
    try:
        image = read_image(dataset.path(sight.image), tuple(dataset.sizes[sight.image].tolist()))
    except DataError:  # a finding of its own
        return ""
    caption = f"{sight.split}: {dataset.files[sight.image]}"
    boxes = np.array(sight.boxes, dtype=np.float32).reshape(-1, 4)
    colors = [_MISSED, "white"][: len(boxes)] if sight.closely else ["white"] * len(boxes)
    return page.picture(page.closeup(image, boxes, colors, _SIDE, sight.closely), caption, _SIDE)


def _splits(surveys: Mapping[str, Survey]) -> str:
    rows = []
    for name, survey in surveys.items():
        counts = survey.per_image
        cells = [
            html.escape(name),
            str(len(counts)),
            str(int((counts == 0).sum())),
            str(int(counts.sum())),
            str(int(survey.dataset.ignore.sum())),
            f"{counts.mean():.1f}",
            f"{np.median(counts):g}",
            str(int(counts.max())),
            f"{survey.imbalance:.1f} : 1" if not math.isnan(survey.imbalance) else "–",
        ]
        rows.append(cells)
    head = ["split", "images", "without objects", "boxes", "ignore regions", "boxes an image", "median", "most"]
    return _table([*head, "commonest : rarest class"], rows)


def _classes(surveys: Mapping[str, Survey]) -> str:
    counts = {name: survey.dataset.class_counts() for name, survey in surveys.items()}
    totals = {c: sum(each[c] for each in counts.values()) for c in next(iter(counts.values()))}
    shown = sorted(totals, key=lambda c: -totals[c])[:_CLASSES]
    most = max([1, *totals.values()])
    rows = [
        [
            html.escape(name),
            *(str(each[name]) for each in counts.values()),
            f'<span class="bar" style="width:{12 * totals[name] / most:.2f}rem"></span>',
        ]
        for name in shown
    ]
    more = f"<p>… and {len(totals) - _CLASSES} more in findings.json</p>" if len(totals) > _CLASSES else ""
    return _table(["class", *map(html.escape, counts), ""], rows) + more


def _coverage(survey: Survey) -> str:
    rows = [
        [html.escape(each.name), str(each.boxes), _share(each.reached), _share(each.assigned)]
        for each in survey.coverage()
    ]
    return _table(["", "boxes", "reached", "assigned"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + f"</tr>{lines}</table>"


def _share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _unreached(survey: Survey, config: Config) -> str:
    """Crops of boxes that no anchor reaches, from the worst to the best, each with its best anchor."""
    rows = np.flatnonzero(survey.objects & (survey.overlaps < REACHED))
    if len(rows) == 0:
        return "<p>Every box is reached.</p>"
    rows = rows[np.argsort(survey.overlaps[rows], kind="stable")]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_UNREACHED, len(rows))).round().astype(int))]
    figures = "".join(_unreached_figures(survey, config, chosen.tolist()))
    return (
        f"<p>{len(rows)} boxes are not reached. Some of them, from the worst to the best: the box in white, its best "
        f'anchor in orange.</p><div class="pictures small">{figures}</div>'
    )


def _unreached_figures(survey: Survey, config: Config, rows: Sequence[int]) -> Iterator[str]:
    dataset = survey.dataset
    for row in rows:
        index = int(np.searchsorted(dataset.offsets, row, side="right")) - 1
        width, height = dataset.sizes[index].tolist()
        try:
            image = read_image(dataset.path(index), (width, height))
        except DataError:
            continue
        scaled = scaled_size(height, width, config.data)
        factors = np.array([scaled[1] / width, scaled[0] / height] * 2, dtype=np.float32)
        down, across = (-(-side // PAD_TO) * PAD_TO for side in scaled)
        anchors = make_grid(config.anchors, (down, across)).boxes
        box = dataset.boxes[row]
        best = int(box_iou(torch.from_numpy(box * factors)[None], anchors)[0].argmax())
        both = np.stack([box, anchors[best].numpy() / factors])
        name = dataset.classes[dataset.labels[row]]
        sides = "×".join(f"{side:.0f}" for side in survey.size[row])
        caption = f"{name}, {sides} px, IoU {survey.overlaps[row]:.2f} · {dataset.files[index]}"
        yield page.picture(page.closeup(image, both, ["white", _MISSED], _SIDE), caption, _SIDE)


def _plots(survey: Survey, config: Config) -> Figure:
    figure = Figure(figsize=(12, 9), layout="constrained")
    (shapes, sides), (ratios, counts) = figure.subplots(2, 2)
    size, reached = survey.size[survey.objects], survey.overlaps[survey.objects] >= REACHED
    bases = [base_anchors(config.anchors, level).numpy() for level in range(len(config.anchors.sizes))]
    anchors = np.concatenate([base[:, 2:] - base[:, :2] for base in bases])
    shown = np.random.default_rng(0).permutation(len(size))[:_POINTS]
    for mask, color, label in ((reached, _BOXES, "boxes, reached"), (~reached, _MISSED, "boxes, not reached")):
        points = size[shown][mask[shown]]
        shapes.scatter(*points.T, s=6, alpha=0.4, linewidths=0, color=color, label=label)
    shapes.scatter(*anchors.T, marker="D", s=24, color=_ANCHORS, edgecolors="white", linewidths=0.6, label="anchors")
    shapes.set(xscale="log", yscale="log", xlabel="width in pixels of the network's input", ylabel="height")
    shapes.legend(frameon=False, fontsize=8)
    _histogram(sides, np.sqrt(size.prod(axis=1)), np.sqrt(anchors.prod(axis=1)), reached)
    sides.set(xlabel="size of the boxes, √(width × height), in pixels; red: anchors", ylabel="boxes")
    _histogram(ratios, size[:, 1] / size[:, 0], np.array(config.anchors.ratios), reached)
    ratios.set(xlabel="aspect ratio, height / width; red: anchors", ylabel="boxes")
    per_image = survey.per_image
    counts.hist(per_image, bins=np.arange(0, min(int(per_image.max()), 100) + 2) - 0.5, color=_BOXES)
    counts.set(xlabel="boxes in an image", ylabel="images")
    for axes in (shapes, sides, ratios, counts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure


def _histogram(
    axes: Axes, values: npt.NDArray[np.float32], anchors: npt.NDArray[np.float64], reached: npt.NDArray[np.bool_]
) -> None:
    """Boxes by a logarithmic measure, those that are reached below; anchors as lines."""
    low, high = np.log2(max(float(values.min()), 1e-3)), np.log2(float(values.max()))
    bins = (2 ** np.linspace(low - 0.05, high + 0.05, 40)).tolist()
    parts = [values[reached], values[~reached]]
    axes.hist(parts, bins=bins, stacked=True, color=[_BOXES, _MISSED], label=["reached", "not reached"])
    for anchor in np.unique(anchors.round(3)):
        axes.axvline(anchor, color=_ANCHORS, linewidth=0.8, alpha=0.7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)
