"""One self-contained HTML page about an evaluation: the numbers, and pictures with truth and detections."""

from __future__ import annotations

import html
from pathlib import Path

import torch

from retinanet import page
from retinanet.data.dataset import Dataset
from retinanet.decode import Detections
from retinanet.evaluate.ap import Metrics, Predictions
from retinanet.evaluate.pictures import draw_example, read_example, spread
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


def write_report(
    path: Path,
    dataset: Dataset,
    predictions: Predictions,
    metrics: Metrics,
    weights: Path,
    pictures: int = 12,
    score: float = 0.3,
) -> None:
    """Write the page.

    Args:
        path: where to.
        dataset: what was evaluated on.
        predictions: what was found.
        metrics: how good that is.
        weights: the model's file, for the title.
        pictures: how many examples to show, spread evenly over the dataset.
        score: lowest score drawn.
    """
    shown = spread(len(dataset), pictures)
    figures = "\n".join(_figure(dataset, predictions, index, score) for index in shown)
    boxes = int((~dataset.ignore).sum())
    title = f"{weights} on {dataset.name}"
    body = f"""<h1>{html.escape(title)}</h1>
<p>{len(dataset)} images, {boxes} objects, {len(dataset.classes)} classes, {len(predictions.scores)} detections.</p>
<h2>Average precision and recall</h2>
<div class="numbers">{_numbers(metrics)}</div>
<h2>Classes</h2>
{_classes(metrics)}
<h2>Pictures</h2>
<p>Annotated objects in white, detections with a score of at least {score:g} in colour.</p>
<div class="pictures">
{figures}
</div>"""
    write_text(path, page.document(f"Evaluation of {weights}", body))


def _numbers(metrics: Metrics) -> str:
    return "".join(page.number_card(name, _number(value), _EXPLAINED[name]) for name, value in metrics.summary.items())


def _classes(metrics: Metrics) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{row['boxes']:.0f}</td><td>{row['AP']:.3f}</td><td>{row['AP50']:.3f}</td>"
        f'<td style="text-align:left"><span class="bar" style="width:{10 * row["AP"]:.2f}rem"></span></td></tr>'
        for name, row in sorted(metrics.per_class.items(), key=lambda item: -item[1]["AP"])
    )
    return f"<table><tr><th>class</th><th>objects</th><th>AP</th><th>AP50</th><th></th></tr>{rows}</table>"


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "–"


def _figure(dataset: Dataset, predictions: Predictions, index: int, score: float) -> str:
    mine = (predictions.images == index) & (predictions.scores >= score)
    found = Detections(
        torch.from_numpy(predictions.boxes[mine]),
        torch.from_numpy(predictions.scores[mine]),
        torch.from_numpy(predictions.labels[mine]),
    )
    rows = dataset.rows(index)
    picture = draw_example(read_example(dataset, index), dataset, index, found)
    name = Path(dataset.files[index]).name
    return page.picture(picture, f"{name} · {int((~dataset.ignore[rows]).sum())} objects, {int(mine.sum())} found")
