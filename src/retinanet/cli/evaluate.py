"""``retinanet eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, describe, make_folder, parse, print_next, print_notes, quoted

if TYPE_CHECKING:
    from retinanet.evaluate.ap import Metrics
    from retinanet.evaluate.diagnose import Diagnosis


@dataclass(frozen=True)
class Arguments:
    """Measure a detector's average precision on a dataset."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, or the name of a bundled model such as person."""
    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset, or its annotation file."""
    split: str = "val"
    """Which part of DATA."""
    out: Path | None = None
    """Folder for metrics.json, detections.json and report.html; unset: eval/ beside WEIGHTS."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    device: str = "auto"
    """cpu, cuda, …"""


def run(argv: Sequence[str]) -> int:
    """``retinanet eval WEIGHTS DATA``."""
    arguments = parse(Arguments, argv, "retinanet eval")

    from retinanet.data.formats.detect import read_eval
    from retinanet.detect.detector import load
    from retinanet.evaluate import ap, predict
    from retinanet.evaluate.diagnose import diagnose
    from retinanet.evaluate.report import write_report
    from retinanet.files import write_json
    from retinanet.progress import progress_bar

    detector = load(arguments.weights, arguments.precision, arguments.device)
    dataset, notes = read_eval(arguments.dataset, arguments.split, detector.info.config.data.val_fraction)
    dataset = dataset.with_classes(detector.classes)
    describe(dataset)
    print_notes(notes)
    out = arguments.out or arguments.weights.parent / "eval"
    make_folder(out)
    with progress_bar(console, "images", len(dataset)) as bar:
        predictions = predict.predict(detector, dataset, bar.advance)
    metrics = ap.evaluate(dataset, predictions)
    diagnosis = diagnose(dataset, predictions)
    write_json(out / "metrics.json", {**metrics.to_dict(), "diagnosis": diagnosis.to_dict()}, indent=2)
    write_json(out / "detections.json", predictions.to_coco(dataset))
    write_report(out / "report.html", dataset, predictions, metrics, diagnosis, arguments.weights)
    _table(metrics)
    _diagnosis(diagnosis)
    console.print(f"wrote {out}/metrics.json, detections.json and report.html")
    example = dataset.path(0)
    print_next(f"retinanet detect {quoted(arguments.weights)} {quoted(example)} --out detections")
    return 0


def _table(metrics: Metrics) -> None:
    for kind in ("AP", "AR"):  # two rows of six fit the narrowest terminal
        chosen = {name: value for name, value in metrics.summary.items() if name.startswith(kind)}
        summary = Table(box=None, pad_edge=False)
        for name in chosen:
            summary.add_column(name, justify="right", min_width=5)
        summary.add_row(*(f"{value:.3f}" if value >= 0 else "–" for value in chosen.values()))
        console.print(summary)
    if len(metrics.per_class) > 1:
        table = Table(box=None, pad_edge=False)
        for name in ("class", "boxes", "AP", "AP50"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for name, row in sorted(metrics.per_class.items(), key=lambda item: -item[1]["boxes"])[:20]:
            table.add_row(name, f"{row['boxes']:.0f}", f"{row['AP']:.3f}", f"{row['AP50']:.3f}")
        console.print(table)
        if len(metrics.per_class) > 20:
            console.print(f"… and {len(metrics.per_class) - 20} more classes in metrics.json")


def _diagnosis(diagnosis: Diagnosis) -> None:
    from retinanet.evaluate.advice import costliest, describe_error

    kind = costliest(diagnosis)
    said = [describe_error(diagnosis, kind)] if kind else []
    if diagnosis.f1 > 0:
        said.append(f"best threshold: {diagnosis.threshold:.2f} (F1 {diagnosis.f1:.3f})")
    if said:
        console.print("; ".join(said))
