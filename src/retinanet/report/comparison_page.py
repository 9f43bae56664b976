"""One self-contained HTML page about two detectors: what changed, how sure that is, and the pictures that show it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.detect.draw import draw_boxes
from retinanet.detect.example_images import Album
from retinanet.evaluation.compare import RESAMPLES, Change, Comparison, most_different
from retinanet.evaluation.matching import Ints
from retinanet.files import write_text
from retinanet.report import html as page

# Okabe and Ito's colours, which colour-blind people tell apart.
_RIGHT, _WRONG, _MISSED = "#56B4E9", "#E69F00", "#F0E442"

_STYLE = """<style>
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .5rem; margin: 0 0 1.4rem; }
.wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; } .numbers + .numbers { margin-top: .6rem; }
.verdict { font-size: 1.1rem; border-left: .3rem solid #1f8fb8; padding-left: .8rem; }
.names { overflow-wrap: anywhere; }
.key { border: .2rem solid; border-radius: .2rem; padding: 0 .3rem; background: #444; color: #fff; }
svg { display: block; }
</style>"""


def write_comparison(path: Path, comparison: Comparison, pictures: int = 6) -> str | None:
    """Write the page; pictures that cannot be shown are left out, and the page says so.

    Args:
        path: where to.
        comparison: what it is about.
        pictures: how many images to show where B makes fewer mistakes, and how many where A does.

    Returns:
        A remark on the pictures that were left out, if there are any.
    """
    album = Album(comparison.dataset)
    a, b = (html.escape(name) for name in comparison.names)
    data, classes = comparison.dataset, len(comparison.per_class)
    objects = int((~data.ignore).sum())
    body = f"""{_STYLE}<h1>Two detectors on {html.escape(data.name)}</h1>
<p class="names"><b>A</b> is {a}<br><b>B</b> is {b}<br>
{len(data)} images, {objects} objects, {classes} {"class" if classes == 1 else "classes"}; {_detections(comparison)}</p>
<p class="verdict">{html.escape(verdict(comparison.total["AP"]))}</p>
{"".join(f'<div class="numbers">{_cards(*item)}</div>' for item in comparison.total.items())}
<p><small>Δ is B minus A. Intervals and shares: the images were drawn anew, with replacement, {RESAMPLES} times, and
both detectors measured on each draw; 95 of 100 draws lie in the interval. They say how much depends on which images
these are. They do not say how much depends on the luck of a training: for that, train more than once.</small></p>
{_not_compared(comparison)}
<h2>Classes</h2>
<div class="wide">{_classes(comparison)}</div>
<h2>All numbers</h2>
<div class="wide">{_summary(comparison)}</div>
{_pictures(comparison, album, pictures)}"""
    write_text(path, page.document(f"{comparison.names[0]} and {comparison.names[1]} compared", body))
    return album.remark()


def verdict(change: Change) -> str:
    """A sentence about ΔAP."""
    if np.isnan(change.delta):
        return "There is no object to measure with."
    if change.low == change.high == change.delta == 0:
        return "There is no difference: both have the same AP on every draw of the images."
    interval = f"the interval of ΔAP is {signed(change.low)} to {signed(change.high)}"
    if change.low > 0 or change.high < 0:
        winner, share = ("B", change.better) if change.delta > 0 else ("A", change.worse)
        return (
            f"{winner} is better by {abs(change.delta):.3f} AP: {interval}, and {winner} wins {share:.1%} of the draws."
        )
    return f"These images do not tell which is better: {interval} and holds 0; B wins {change.better:.1%} of the draws."


def _cards(name: str, change: Change) -> str:
    interval = f"{signed(change.low)} to {signed(change.high)}" if not np.isnan(change.low) else ""
    share = f"{change.better:.1%}" if not np.isnan(change.better) else "–"
    return "".join(
        [
            page.number_card(f"{name} of A", number(change.a), ""),
            page.number_card(f"{name} of B", number(change.b), ""),
            page.number_card(f"Δ{name}", signed(change.delta), interval),
            page.number_card("B better", share, f"of draws, in {name}"),
        ]
    )


def _detections(comparison: Comparison) -> str:
    a, b = comparison.detections
    return f"{a} detections of A, {b} of B"


def _not_compared(comparison: Comparison) -> str:
    reasons = ("known to A alone", "known to B alone", "known to neither")
    lines = [
        f"{', '.join(map(html.escape, names))} ({reason})"
        for names, reason in zip(comparison.only, reasons, strict=True)
        if names
    ]
    return f"<p>Not compared: {'; '.join(lines)}.</p>" if lines else ""


def _classes(comparison: Comparison) -> str:
    counts = comparison.dataset.class_counts()
    order = sorted(comparison.per_class.items(), key=lambda item: -item[1]["AP"].delta)
    reach = max([0.01, *(abs(v) for _, row in order for v in (row["AP"].low, row["AP"].high) if not np.isnan(v))])
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{signed(row['AP'].delta)}</td><td>{_whisker(row['AP'], reach)}</td>"
        f"<td>{signed(row['AP'].low)} to {signed(row['AP'].high)}</td><td>{number(row['AP'].a)}</td>"
        f"<td>{number(row['AP'].b)}</td><td>{signed(row['AP50'].delta)}</td><td>{counts[name]}</td></tr>"
        for name, row in order
    )
    scale = f"−{reach:.2g} … 0 … +{reach:.2g}"
    return (
        f"<table><tr><th>class</th><th>ΔAP</th><th>{scale}</th><th>interval</th><th>AP of A</th><th>AP of B</th>"
        f"<th>ΔAP50</th><th>objects</th></tr>{rows}</table>"
    )


def _whisker(change: Change, reach: float) -> str:
    """The interval of a difference as a line, the difference as a dot, and zero as a mark."""
    if np.isnan(change.low):
        return "–"
    x = [80 + 76 * v / reach for v in (change.low, change.delta, change.high)]
    sure = change.low > 0 or change.high < 0
    color = "#8888" if not sure else "#1f8fb8" if change.delta > 0 else "#c77700"
    return (
        '<svg width="160" height="16" viewBox="0 0 160 16" role="img" aria-label="interval">'
        '<line x1="80" x2="80" y1="0" y2="16" stroke="currentColor" stroke-opacity=".5"/>'
        f'<line x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="8" y2="8" stroke="{color}" stroke-width="4"/>'
        f'<circle cx="{x[1]:.1f}" cy="8" r="4" fill="{color}" stroke="currentColor"/></svg>'
    )


def _summary(comparison: Comparison) -> str:
    a, b = (metrics.summary for metrics in comparison.metrics)
    rows = "".join(
        f"<tr><td>{name}</td><td>{number(a[name])}</td><td>{number(b[name])}</td>"
        f"<td>{signed(b[name] - a[name]) if a[name] >= 0 else '–'}</td></tr>"
        for name in a
    )
    return f"<table><tr><th></th><th>A</th><th>B</th><th>difference</th></tr>{rows}</table>"


def _pictures(comparison: Comparison, album: Album, count: int) -> str:
    scores = [m.score for m in comparison.mistakes]
    text = f"""<h2>Pictures where they differ most</h2>
<p>Each detector at the score where its F1 at IoU 0.5 is best here: {scores[0]:.2f} for A, {scores[1]:.2f} for B.
Detections in <span class="key" style="border-color:{_RIGHT}">blue</span> are right, with the object they found in
<span class="key" style="border-color:white">white</span>;
<span class="key" style="border-color:{_WRONG}">orange</span> detections are wrong,
<span class="key" style="border-color:{_MISSED}">yellow</span> objects are missed.</p>"""
    titles = ("B makes fewer mistakes", "A makes fewer mistakes")
    for title, images in zip(titles, most_different(comparison, count), strict=True):
        pairs = "\n".join(_pair(comparison, album, image) for image in images)
        text += f"<h3>{title}</h3>{pairs or '<p>In no picture.</p>'}"
    remark = album.remark()
    return text + (f"<p>{html.escape(remark)}</p>" if remark else "")


@dataclass(frozen=True)
class _Seen:
    """What a detector makes of an image: positions of its detections in the scene, and rows of the dataset's boxes."""

    right: Ints
    wrong: Ints
    found: Ints
    missed: Ints

    @classmethod
    def of(cls, comparison: Comparison, side: int, image: int) -> _Seen:
        dataset, scene, matching = comparison.dataset, comparison.scenes[side], comparison.matchings[side]
        here = (scene.images == image) & (scene.scores >= comparison.mistakes[side].score)
        right, wrong = (np.flatnonzero(here & verdict[0]) for verdict in (matching.tp, matching.fp))
        found = matching.objects[0, right]
        objects = np.arange(dataset.offsets[image], dataset.offsets[image + 1])
        missed = objects[~dataset.ignore[objects] & np.isin(objects, found, invert=True)]
        return cls(right, wrong, found, missed)


def _pair(comparison: Comparison, album: Album, image: int) -> str:
    picture = album.image(image)
    figures = []
    for side, letter in enumerate("AB"):
        seen = _Seen.of(comparison, side, image)
        missed = _counted(comparison.dataset.labels[seen.missed], comparison)
        wrong = _counted(comparison.scenes[side].labels[seen.wrong], comparison)
        caption = f"{letter}: missed {missed}; wrong {wrong}"
        if picture is None:
            figures.append(f"<p>{caption}</p>")
        else:
            figures.append(page.picture(_drawn(picture, comparison, side, seen), caption))
    name = html.escape(Path(comparison.dataset.files[image]).name)
    return f'<p class="names"><b>{name}</b></p><div class="pair">{"".join(figures)}</div>'


def _drawn(picture: npt.NDArray[np.uint8], comparison: Comparison, side: int, seen: _Seen) -> npt.NDArray[np.uint8]:
    objects, boxes = comparison.dataset.boxes, comparison.scenes[side].boxes
    line = max(1, round(max(picture.shape) / 200))  # as wide on the page whatever the picture's size
    for color, outlines in (
        ("white", objects[seen.found]),
        (_RIGHT, boxes[seen.right]),
        (_WRONG, boxes[seen.wrong]),
        (_MISSED, objects[seen.missed]),
    ):
        # A black edge on each side, so that a bright line shows on a bright picture.
        picture = draw_boxes(picture, np.add(outlines, (-1, -1, 1, 1)), "black", width=line + 2)
        picture = draw_boxes(picture, outlines, color, width=line)
    return picture


def _counted(labels: npt.NDArray[np.integer], comparison: Comparison) -> str:
    """How many, and, where there are several classes, how many of each."""
    classes = comparison.dataset.classes
    counts = [(int(n), classes[k]) for k, n in enumerate(np.bincount(labels, minlength=len(classes))) if n]
    named = ", ".join(f"{n} {name}" for n, name in counts)
    return f"{len(labels)} ({named})" if counts and len(classes) > 1 else str(len(labels))


def number(value: float) -> str:
    """A number from 0 to 1, or a dash for one that could not be measured."""
    return f"{value:.3f}" if value >= 0 else "–"


def signed(value: float) -> str:
    """A difference with its sign, or a dash for one that could not be measured."""
    return "–" if np.isnan(value) else f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"
