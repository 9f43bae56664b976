"""``retinanet eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from retinanet.cli.terminal import console, describe, make_folder, parse, positionals_first, print_next, print_notes
from retinanet.errors import ConfigError
from retinanet.flags import quoted

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.evaluate.ap import Metrics, Predictions
    from retinanet.evaluate.diagnose import Diagnosis


@dataclass(frozen=True)
class Arguments:
    """Measure a detector's average precision on a dataset, or compare two detectors."""

    words: Annotated[
        Positional[tuple[str, ...]], arg(metavar="WEIGHTS [WEIGHTS] DATA", help_behavior_hint="(required)")
    ]
    """WEIGHTS: a .safetensors file of a training, or the name of a bundled model such as person; two to compare them.
    DATA: folder of a COCO, Pascal VOC, YOLO or CSV dataset, or its annotation file."""
    split: str = "val"
    """Which part of DATA."""
    detections: UseAppendAction[tuple[Path, ...]] = ()
    """JSON file of detections that any program wrote, in COCO's result format, instead of WEIGHTS."""
    out: Path | None = None
    """Folder for the results; unset: eval/ beside WEIGHTS or the file, or compare/ beside the second of two."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    device: str = "auto"
    """cpu, cuda, …"""

    @property
    def weights(self) -> tuple[Path, ...]:
        """What comes before DATA."""
        return tuple(map(Path, self.words[:-1]))

    @property
    def dataset(self) -> str:
        """The last word."""
        return self.words[-1]


def run(argv: Sequence[str]) -> int:
    """``retinanet eval WEIGHTS DATA``."""
    arguments = parse(Arguments, positionals_first(argv), "retinanet eval")
    if not arguments.words:
        raise ConfigError("nothing to evaluate; give WEIGHTS DATA, or --detections FILE.json DATA")
    sources = [*arguments.weights, *arguments.detections]
    for weights in arguments.weights:
        if weights.suffix.lower() == ".json":
            raise ConfigError(f"{weights}: a file of detections is given with its flag: --detections {weights}")
    if len(sources) == 2:
        from retinanet.cli import compare

        return compare.run(arguments)
    if len(sources) != 1:
        raise ConfigError(
            f"{len(sources)} detectors before DATA ({arguments.dataset}); name one to measure or two to compare: "
            "WEIGHTS, or --detections FILE.json"
        )

    from retinanet.evaluate import ap
    from retinanet.evaluate.diagnose import diagnose
    from retinanet.evaluate.report import write_report
    from retinanet.evaluate.voc import evaluate_voc
    from retinanet.files import write_json

    [source] = sources
    out = arguments.out or source.parent / "eval"
    dataset, predictions = (_read if arguments.detections else _detect)(arguments, source, out)
    metrics = replace(ap.evaluate(dataset, predictions), voc=evaluate_voc(dataset, predictions))
    diagnosis = diagnose(dataset, predictions)
    write_json(out / "metrics.json", {**metrics.to_dict(), "diagnosis": diagnosis.to_dict()}, indent=2)
    if not arguments.detections:
        write_json(out / "detections.json", predictions.to_coco(dataset))
    _table(metrics)
    _diagnosis(diagnosis)
    remark = write_report(out / "report.html", dataset, predictions, metrics, diagnosis, source)
    print_notes([remark] if remark else [])
    if arguments.detections:
        console.print(f"wrote {out}/metrics.json and report.html")
        print_next(f"retinanet train {quoted(arguments.dataset)} --out runs/{quoted(Path(arguments.dataset).stem)}")
    else:
        console.print(f"wrote {out}/metrics.json, detections.json and report.html")
        print_next(f"retinanet detect {quoted(source)} {quoted(dataset.path(0))} --out detections")
    return 0


def _detect(arguments: Arguments, weights: Path, out: Path) -> tuple[Dataset, Predictions]:
    """Run the detector on the dataset."""
    from retinanet.data.formats.detect import read_eval
    from retinanet.detect.detector import load
    from retinanet.evaluate.predict import predict
    from retinanet.progress import progress_bar

    detector = load(weights, arguments.precision, arguments.device)
    dataset, notes = read_eval(arguments.dataset, arguments.split, detector.info.config.data.val_fraction)
    dataset = dataset.with_classes(detector.classes)
    describe(dataset)
    print_notes(notes)
    make_folder(out)
    with progress_bar(console, "images", len(dataset)) as bar:
        return dataset, predict(detector, dataset, bar.advance)


def _read(arguments: Arguments, file: Path, out: Path) -> tuple[Dataset, Predictions]:
    """Read what another program detected on the dataset."""
    from retinanet.data.formats.detect import read_eval
    from retinanet.evaluate.detections import read_detections

    dataset, notes = read_eval(arguments.dataset, arguments.split)
    describe(dataset)
    predictions, remarks = read_detections(file, dataset)
    print_notes([*notes, *remarks])
    make_folder(out)
    return dataset, predictions


def _table(metrics: Metrics) -> None:
    for kind in ("AP", "AR"):  # two rows of six fit the narrowest terminal
        chosen = {name: value for name, value in metrics.summary.items() if name.startswith(kind)}
        summary = Table(box=None, pad_edge=False)
        for name in chosen:
            summary.add_column(name, justify="right", min_width=5)
        summary.add_row(*(f"{value:.3f}" if value >= 0 else "–" for value in chosen.values()))
        console.print(summary)
    if metrics.per_class:
        console.print(f"Pascal VOC: mAP {metrics.voc['mAP']:.3f}, by 11 points {metrics.voc['mAP11']:.3f}")
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
