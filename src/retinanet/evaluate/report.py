"""One self-contained HTML page about an evaluation: what to do next, the numbers behind it, and pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from retinanet import page
from retinanet.data.dataset import Dataset
from retinanet.detections import Detections
from retinanet.evaluate import sections
from retinanet.evaluate.advice import next_steps
from retinanet.evaluate.ap import Metrics, Predictions
from retinanet.evaluate.curves import CONFIDENCE
from retinanet.evaluate.diagnose import Diagnosis
from retinanet.evaluate.examples import Example, Examples
from retinanet.evaluate.pictures import Album, draw_example, spread
from retinanet.files import write_text

_EXPLAINED = {
    "AP": "mean over IoU 0.50–0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects under 32² px",
    "APm": "32² to 96² px",
    "APl": "over 96² px",
    "AR1": "recall with 1 detection an image",
    "AR10": "with 10",
    "AR100": "with 100",
    "ARs": "with 100, under 32² px",
    "ARm": "with 100, 32² to 96² px",
    "ARl": "with 100, over 96² px",
}

# Of galleries: longer side of a picture in pixels, and how they are marked.
_SIDE = 260
_SUBJECT, _OTHER = "#ffb000", "white"

_LABEL_ERRORS = {
    "class": ("Annotated as another class", "A sure detection of another class lies on the object."),
    "missing": ("Not annotated", "A sure detection where nothing is annotated."),
    "unfindable": ("Never found", "Annotated, but no detection of any class and score overlaps it. The largest first."),
}


def write_report(
    path: Path,
    dataset: Dataset,
    predictions: Predictions,
    metrics: Metrics,
    diagnosis: Diagnosis,
    weights: Path | str,
    pictures: int = 12,
) -> str | None:
    """Write the page; pictures that cannot be shown are left out, and the page says so.

    Args:
        path: where to.
        dataset: what was evaluated on.
        predictions: what was found.
        metrics: how good that is.
        diagnosis: what lies behind the metrics.
        weights: the model's file, for the title.
        pictures: how many pictures to show of each kind.

    Returns:
        A remark on the pictures that were left out, if there are any.
    """
    album = Album(dataset)
    boxes = int((~dataset.ignore).sum())
    ignored = int(dataset.ignore.sum())
    counts = [
        f"{len(dataset)} images, {boxes} objects",
        *([f"{ignored} ignore regions"] if ignored else []),
        f"{len(dataset.classes)} {'class' if len(dataset.classes) == 1 else 'classes'}",
        f"{len(predictions.scores)} detections",
    ]
    parts = [
        ("next", "What to do next", _steps(diagnosis)),
        ("summary", "Average precision and recall", _numbers(metrics, diagnosis)),
        ("classes-section", "Classes", sections.classes(diagnosis)),
        ("errors-section", "What errors cost", sections.errors(diagnosis)),
        ("precision-recall", "Precision and recall", sections.precision_recall(diagnosis)),
        ("thresholds-section", "Thresholds", sections.thresholds(diagnosis)),
        ("scores-section", "Scores", sections.scores(diagnosis)),
        ("calibration-section", "Calibration", sections.calibration(diagnosis)),
        ("confusion-section", "Confusion", sections.confusion(diagnosis)),
        ("slices-section", "Kinds of objects", sections.slices(diagnosis)),
        ("missed", "Missed objects", _missed(album, diagnosis, pictures)),
        ("false-positives", "False positives", _false_positives(album, diagnosis, pictures)),
        ("label-errors", "Likely errors of the annotations", _label_errors(album, diagnosis, pictures)),
        ("pictures", "Pictures", _spread(album, predictions, pictures, diagnosis.threshold)),
    ]
    links = " · ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in parts[1:])
    body = "\n".join(f'<section id="{name}"><h2>{title}</h2>\n{content}</section>' for name, title, content in parts)
    title = html.escape(f"{weights} on {dataset.name}")
    remark = album.remark()
    note = f"\n<p>{html.escape(remark)}</p>" if remark else ""
    text = f"<h1>{title}</h1>\n<p>{', '.join(counts)}.</p>{note}\n<nav>{links}</nav>\n{body}"
    write_text(path, page.document(f"Evaluation of {weights}", text))
    return remark


def _steps(diagnosis: Diagnosis) -> str:
    return "<ol>" + "".join(f"<li>{html.escape(step)}</li>" for step in next_steps(diagnosis)) + "</ol>"


def _numbers(metrics: Metrics, diagnosis: Diagnosis) -> str:
    intervals = {"AP": diagnosis.AP_interval, "AP50": diagnosis.AP50_interval}
    cards = []
    for name, value in metrics.summary.items():
        bounds = intervals.get(name)
        explained = _EXPLAINED[name] + (f" ({CONFIDENCE:.0%}: {bounds[0]:.3f}–{bounds[1]:.3f})" if bounds else "")
        cards.append(_card(name, value, explained))
    if metrics.voc:
        cards.append(_card("VOC mAP", metrics.voc["mAP"], "Pascal VOC since 2010, at IoU 0.50"))
        cards.append(_card("11 points", metrics.voc["mAP11"], "the same as in VOC 2007"))
    return f'<div class="numbers">{"".join(cards)}</div>'


def _card(name: str, value: float, explained: str) -> str:
    return page.number_card(name, f"{value:.3f}" if value >= 0 else "–", explained)


def _missed(album: Album, diagnosis: Diagnosis, pictures: int) -> str:
    text = (
        f"{diagnosis.missed.total} objects have no detection of their class with a score of at least "
        f"{diagnosis.threshold:.2f} and an IoU of at least 0.5. The largest first, the classes in turn; the object in "
        "orange, the detection that is nearest in white."
    )
    return f"<p>{text}</p>{_gallery(album, diagnosis.missed, pictures)}"


def _false_positives(album: Album, diagnosis: Diagnosis, pictures: int) -> str:
    text = (
        f"{diagnosis.false_positives.total} detections with a score of at least {diagnosis.threshold:.2f} are wrong at "
        "an IoU of 0.5. The surest first; the detection in orange, the object it may be about in white."
    )
    return f"<p>{text}</p>{_gallery(album, diagnosis.false_positives, pictures)}"


def _label_errors(album: Album, diagnosis: Diagnosis, pictures: int) -> str:
    parts = [
        "<p>Where a detector is sure and the annotation says otherwise, either may be wrong. A detection is sure if at "
        "least nine of ten detections of its class with that score or more are right.</p>"
    ]
    for kind, found in diagnosis.label_errors.items():
        title, text = _LABEL_ERRORS[kind]
        gallery = _gallery(album, found, pictures)
        parts.append(
            f"<h3>{title}: {found.total}</h3><p>{text}</p>{gallery}" if found.total else f"<h3>{title}: 0</h3>"
        )
    return "".join(parts)


def _gallery(album: Album, found: Examples, pictures: int) -> str:
    figures = "".join(_closeups(album, found.shown[:pictures]))
    more = found.total - len(found.shown[:pictures])
    rest = f"<p>… and {more} more; metrics.json lists the first {len(found.shown)}.</p>" if more else ""
    return f'<div class="pictures small">{figures}</div>{rest}' if figures else ""


def _closeups(album: Album, shown: tuple[Example, ...]) -> Iterator[str]:
    dataset = album.dataset
    for example in shown:
        picture = album.picture(example.image)
        if picture is None:
            continue
        others = [] if example.other is None else [example.other]
        colors = [*([_OTHER] * len(others)), _SUBJECT]
        image = page.closeup(picture, [*others, example.box], colors, _SIDE)
        score = "" if example.score is None else f" {example.score:.2f}"
        name = Path(dataset.files[example.image]).name
        yield page.picture(image, f"{dataset.classes[example.label]}{score}: {example.text} · {name}", _SIDE)


def _spread(album: Album, predictions: Predictions, pictures: int, score: float) -> str:
    chosen = spread(len(album.dataset), pictures)
    figures = "\n".join(figure for index in chosen if (figure := _figure(album, predictions, index, score)))
    text = f"Annotated objects in white, detections with a score of at least {score:.2f} in colour."
    return f'<p>{text}</p><div class="pictures">\n{figures}\n</div>'


def _figure(album: Album, predictions: Predictions, index: int, score: float) -> str:
    dataset, image = album.dataset, album.picture(index)
    if image is None:
        return ""
    mine = (predictions.images == index) & (predictions.scores >= score)
    found = Detections.of_one_image(predictions.boxes[mine], predictions.scores[mine], predictions.labels[mine])
    rows = dataset.rows(index)
    picture = draw_example(image, dataset, index, found)
    name = Path(dataset.files[index]).name
    return page.picture(picture, f"{name} · {int((~dataset.ignore[rows]).sum())} objects, {int(mine.sum())} found")
