"""``retinanet eval WEIGHTS DATA``: evaluate one detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinanet.cli.terminal import (
    console,
    describe,
    limit_flag,
    make_folder,
    new_run,
    print_next,
    print_notes,
    quoted,
)
from retinanet.flags import reading_flags

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.evaluation.model_evaluation import Source


def run(
    source: Source,
    data: str,
    out: Path | None,
    split: str,
    settings: Mapping[str, Any],
) -> int:
    """Evaluate ``source`` on ``data``, write the results to ``out``, and print a summary.

    ``settings`` are further arguments of :func:`retinanet.evaluate`.
    """
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

    evaluation = evaluate(source, data, split, console=console, opened=opened, **settings)
    from_file = isinstance(source, DetectionFile)
    write_json(folder / "metrics.json", evaluation.to_dict(), indent=2)
    if not from_file:
        write_json(folder / "detections.json", coco_results(evaluation.predictions, evaluation.dataset))
    for line in evaluation_lines(evaluation):
        console.print(line)
    remark = write_report(folder / "report.html", evaluation)
    print_notes([remark] if remark else [])
    console.print(f"wrote {folder}/metrics.json{' and' if from_file else ', detections.json and'} report.html")
    more = limit_flag(settings["max_detections"])
    if from_file:
        from retinanet.data.formats.train_val import can_train
        from retinanet.report.advice import is_perfect

        if is_perfect(evaluation.analysis) or not can_train(data, options=settings["options"]):
            return 0
        flags = [*reading_flags(settings["options"]), *new_run(Path(data).resolve().stem)]
        print_next(" ".join([f"retinanet train {quoted(data)}", *flags]))
    else:
        print_next(
            f"retinanet detect {quoted(str(source))} {quoted(evaluation.dataset.path(0))} --out detections{more}"
        )
    return 0
