"""The page of ``retinanet eval``: what to do next, all metrics, and example images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retinanet.detection.draw import closeup
from retinanet.detection.example_images import Album, draw_example, spread
from retinanet.detections import Detections
from retinanet.evaluation.curves import CONFIDENCE, FEWEST_IMAGES
from retinanet.evaluation.examples import Example, Examples
from retinanet.evaluation.model_evaluation import Evaluation
from retinanet.files import write_text
from retinanet.report import evaluation_sections as sections
from retinanet.report.advice import next_steps
from retinanet.report.html import Figure, counted, image_figure, metric, render
from retinanet.report.svg import TRUE_POSITIVE

_METRICS = {
    "AP": "mean over IoU 0.50–0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects under 32² px",
    "APm": "objects of 32² to 96² px",
    "APl": "objects over 96² px",
    "AR1": "1 detection per image",
    "AR10": "10 detections per image",
    "AR100": "100 detections per image",
    "ARs": "AR100, objects under 32² px",
    "ARm": "AR100, objects of 32² to 96² px",
    "ARl": "AR100, objects over 96² px",
}

# Explanations that differ if all detections count.
_DENSE_METRICS = {
    **_METRICS,
    "AP@100": "COCO's protocol: 100 detections per image and class",
    "AP50@100": "COCO's protocol, at IoU 0.50",
    "AR": "all detections",
    "ARs": "all detections, objects under 32² px",
    "ARm": "all detections, objects of 32² to 96² px",
    "ARl": "all detections, objects over 96² px",
}

_SECTIONS = (
    ("summary", "Average precision and recall"),
    ("classes-section", "Classes"),
    ("errors-section", "Cost of errors"),
    ("precision-recall", "Precision and recall"),
    ("thresholds-section", "Thresholds"),
    ("scores-section", "Scores"),
    ("calibration-section", "Calibration"),
    ("confusion-section", "Confusion"),
    ("slices-section", "Groups of objects"),
    ("missed", "False negatives"),
    ("false-positives", "False positives"),
    ("label-errors", "Likely annotation errors"),
    ("images", "Images"),
)

_LABEL_ERRORS = {
    "class": ("Annotated as another class", "A confident detection of another class lies on the object."),
    "missing": ("Not annotated", "A confident detection lies where no object is annotated."),
    "unfindable": (
        "Never found",
        "No detection of any class and score overlaps these objects; the largest come first.",
    ),
}

# Longer side of a close-up in pixels, and the colors of its boxes: the example, and the box compared with it.
_SIDE = 260
_SUBJECT, _OTHER = "#ffb000", "white"


@dataclass(frozen=True)
class LabelErrors:
    """Likely annotation errors of one kind, with a heading and a sentence about them."""

    title: str
    text: str
    listed: Examples
    figures: list[Figure]


def write_report(path: Path, evaluation: Evaluation, images: int = 12) -> str | None:
    """Write the page of an evaluation as one HTML file.

    Args:
        path: the file to write.
        evaluation: result of :func:`retinanet.evaluate`.
        images: number of example images of each kind.

    Returns:
        A note if some images could not be shown. The page contains the same note.
    """
    analysis, dataset = evaluation.analysis, evaluation.dataset
    album = Album(dataset)
    galleries = {
        "missed": _closeups(album, analysis.missed, images),
        "false_positives": _closeups(album, analysis.false_positives, images),
        "label_errors": [
            LabelErrors(*_LABEL_ERRORS[kind], listed, _closeups(album, listed, images))
            for kind, listed in analysis.label_errors.items()
        ],
        "spread": _spread_images(album, evaluation.predictions, images, analysis.threshold),
    }
    remark = album.remark()
    page = render(
        "evaluation.html",
        title=f"Evaluation of {evaluation.name}",
        name=evaluation.name,
        data=dataset.name,
        counts=_counts(evaluation),
        limits=evaluation.limits,
        remark=remark,
        sections=_SECTIONS,
        steps=next_steps(analysis, evaluation.config),
        cards=_cards(evaluation),
        analysis=analysis,
        confidence=CONFIDENCE,
        fewest_images=FEWEST_IMAGES,
        shown_limit=sections.SHOWN,
        known=sum(each.objects > 0 for each in analysis.classes),
        tp_color=TRUE_POSITIVE,
        classes=sections.class_rows(analysis),
        errors=sections.error_rows(analysis),
        precision_recall=sections.precision_recall_charts(analysis),
        thresholds=sections.thresholds(analysis),
        score_charts=sections.score_charts(analysis),
        score_bins=sections.score_bins(analysis),
        calibration_chart=sections.calibration_chart(analysis),
        calibration_bins=sections.calibration_bins(analysis),
        class_calibration=[each for each in analysis.classes if each.detections],
        confusion=sections.confusion(analysis),
        slices=sections.slice_rows(analysis),
        images=images,
        **galleries,
    )
    write_text(path, page)
    return remark


def _counts(evaluation: Evaluation) -> list[str]:
    dataset = evaluation.dataset
    ignored = int(dataset.ignore.sum())
    return [
        counted(len(dataset), "image", "images"),
        counted(int((~dataset.ignore).sum()), "object", "objects"),
        *([counted(ignored, "ignore region", "ignore regions")] if ignored else []),
        counted(len(dataset.classes), "class", "classes"),
        counted(len(evaluation.predictions.scores), "detection", "detections"),
    ]


def _cards(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Name, value and explanation of each metric."""
    metrics, analysis = evaluation.metrics, evaluation.analysis
    intervals = {"AP": analysis.AP_interval, "AP50": analysis.AP50_interval}
    texts = _DENSE_METRICS if evaluation.limits.counted is None else _METRICS
    cards = []
    for name, value in metrics.summary.items():
        bounds = intervals.get(name)
        explained = texts[name] + (f" ({CONFIDENCE:.0%}: {bounds[0]:.3f}–{bounds[1]:.3f})" if bounds else "")
        cards.append((name, metric(value), explained))
    if metrics.voc:
        cards.append(("VOC mAP", metric(metrics.voc["mAP"]), "Pascal VOC since 2010, at IoU 0.50"))
        cards.append(("11 points", metric(metrics.voc["mAP11"]), "Pascal VOC 2007, at IoU 0.50"))
    return cards


def _closeups(album: Album, listed: Examples, images: int) -> list[Figure]:
    figures = (_closeup(album, example) for example in listed.shown[:images])
    return [figure for figure in figures if figure is not None]


def _closeup(album: Album, example: Example) -> Figure | None:
    image = album.image(example.image)
    if image is None:
        return None
    others = [] if example.other is None else [example.other]
    colors = [*([_OTHER] * len(others)), _SUBJECT]
    shown = closeup(image, [*others, example.box], colors, _SIDE)
    score = "" if example.score is None else f" {example.score:.2f}"
    file = Path(album.dataset.files[example.image]).name
    return image_figure(shown, f"{album.dataset.classes[example.label]}{score}: {example.text} · {file}", _SIDE)


def _spread_images(album: Album, predictions: Detections, images: int, score: float) -> list[Figure]:
    figures = (_whole_image(album, predictions, index, score) for index in spread(len(album.dataset), images))
    return [figure for figure in figures if figure is not None]


def _whole_image(album: Album, predictions: Detections, index: int, score: float) -> Figure | None:
    dataset, image = album.dataset, album.image(index)
    if image is None:
        return None
    mine = (predictions.images == index) & (predictions.scores >= score)
    objects = int((~dataset.ignore[dataset.rows(index)]).sum())
    caption = f"{Path(dataset.files[index]).name} · {objects} objects, {int(mine.sum())} detections"
    return image_figure(draw_example(image, dataset, index, predictions.take(mine)), caption)
