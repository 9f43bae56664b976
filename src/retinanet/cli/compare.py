"""``retinanet eval WEIGHTS WEIGHTS DATA``: compare two detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinanet.cli.terminal import (
    console,
    describe,
    limit_flag,
    make_folder,
    print_next,
    print_notes,
    quoted,
)
from retinanet.flags import reading_flags

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.evaluation.model_evaluation import Source


def run(
    a: Source,
    b: Source,
    data: str,
    out: Path | None,
    split: str,
    settings: Mapping[str, Any],
) -> int:
    """Compare ``a`` and ``b`` on ``data``, write the results to ``out``, and print a summary.

    ``settings`` are further arguments of :func:`retinanet.compare`.
    """
    from retinanet.evaluation.detections import DetectionFile
    from retinanet.evaluation.model_comparison import compare
    from retinanet.files import write_json
    from retinanet.report.comparison_page import write_comparison
    from retinanet.report.terminal import comparison_lines

    folder = out or Path(str(b)).parent / "compare"

    def opened(dataset: Dataset, notes: Sequence[str]) -> None:
        describe(dataset)
        print_notes(notes)
        make_folder(folder)

    comparison = compare(a, b, data, split, console=console, opened=opened, **settings)
    write_json(folder / "compare.json", comparison.to_dict(), indent=2)
    remark = write_comparison(folder / "compare.html", comparison)
    for line in comparison_lines(comparison):
        console.print(line)
    print_notes([remark] if remark else [])
    console.print(f"wrote {folder}/compare.json and compare.html")
    better = b if comparison.total["AP"].delta >= 0 else a
    flag = "--detections " if isinstance(better, DetectionFile) else ""
    chosen = f" --split {quoted(split)}" if split != "val" else ""
    chosen += limit_flag(settings["max_detections"])
    command = f"retinanet eval {flag}{quoted(str(better))} {quoted(data)}{chosen}"
    print_next(" ".join([command, *reading_flags(settings["options"])]))
    return 0
