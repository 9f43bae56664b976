"""One self-contained HTML page about an evaluation: the numbers, and pictures with truth and detections."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.decode import Detections
from retinanet.evaluate.ap import Metrics, Predictions
from retinanet.evaluate.pictures import draw_example, read_example, shrunk, spread
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

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; }
.numbers div { border: 1px solid #8885; border-radius: .5rem; padding: .5rem .7rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.numbers small, p small { opacity: .7; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
.bar { display: inline-block; height: .7rem; background: #1f8fb8; border-radius: .2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; border-radius: .4rem; } figcaption { font-size: .85rem; opacity: .8; }
"""


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
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {html.escape(str(weights))}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(str(weights))} on {html.escape(dataset.name)}</h1>
<p>{len(dataset)} images, {boxes} objects, {len(dataset.classes)} classes, {len(predictions.scores)} detections.</p>
<h2>Average precision and recall</h2>
<div class="numbers">{_numbers(metrics)}</div>
<h2>Classes</h2>
{_classes(metrics)}
<h2>Pictures</h2>
<p>Annotated objects in white, detections with a score of at least {score:g} in colour.</p>
<div class="pictures">
{figures}
</div></body></html>
"""
    write_text(path, page)


def _numbers(metrics: Metrics) -> str:
    return "".join(
        f"<div><small>{name}</small><b>{_number(value)}</b><small>{_EXPLAINED[name]}</small></div>"
        for name, value in metrics.summary.items()
    )


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
    name = html.escape(Path(dataset.files[index]).name)
    caption = f"{name} · {int((~dataset.ignore[rows]).sum())} objects, {int(mine.sum())} found"
    return f'<figure><img loading="lazy" alt="" src="{_data_url(picture)}"><figcaption>{caption}</figcaption></figure>'


def _data_url(image: npt.NDArray[np.uint8], longest: int = 720) -> str:
    buffer = io.BytesIO()
    Image.fromarray(shrunk(image, longest)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
