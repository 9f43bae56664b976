"""``retinanet eval WEIGHTS DATA``: evaluate one detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retinanet.cli.terminal import console, describe, make_folder, print_next, print_notes, quoted
from retinanet.flags import reading_flags

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.evaluation.model_evaluation import Source
    from retinanet.hardware import Precision
    from retinanet.read_options import ReadOptions


def run(
    source: Source, data: str, out: Path | None, split: str, precision: Precision, device: str, options: ReadOptions
) -> int:
    """Evaluate ``source`` on ``data``, write the results to ``out``, and print a summary."""
    from retinanet.evaluation.coco_ap import coco_results
    from retinanet.evaluation.detections import DetectionFile
    from retinanet.evaluation.model_evaluation import evaluate
    from retinanet.files import write_json
    from retinanet.report.evaluation_page import write_report
    from retinanet.report.terminal import evaluation_lines

    folder = out or Path(str(source)).parent / "eval"

    def opened(dataset: Dataset, notes: Sequence[str]) -> None:
        describe(dataset)
        print_notes(notes)
        make_folder(folder)

    evaluation = evaluate(source, data, split, precision, device, console, opened, options)
    from_file = isinstance(source, DetectionFile)
    write_json(folder / "metrics.json", evaluation.to_dict(), indent=2)
    if not from_file:
        write_json(folder / "detections.json", coco_results(evaluation.predictions, evaluation.dataset))
    for line in evaluation_lines(evaluation):
        console.print(line)
    remark = write_report(folder / "report.html", evaluation)
    print_notes([remark] if remark else [])
    console.print(f"wrote {folder}/metrics.json{' and' if from_file else ', detections.json and'} report.html")
    if from_file:
        flags = "".join(f" {flag}" for flag in reading_flags(options))
        print_next(f"retinanet train {quoted(data)} --out runs/{quoted(Path(data).stem)}{flags}")
    else:
        print_next(f"retinanet detect {quoted(str(source))} {quoted(evaluation.dataset.path(0))} --out detections")
    return 0
