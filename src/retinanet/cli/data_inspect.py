"""``retinanet data inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import changed_flags, console, make_folder, option, parse, print_next, quoted
from retinanet.config import Config
from retinanet.recipes import load_recipe


@dataclass(frozen=True)
class Arguments:
    """Find defects in a dataset, and objects that are hard to detect, before you train on it."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (the format is recognized), or its annotation file."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("inspect")
    """Folder for inspect.html and findings.json."""
    fix: Annotated[Path | None, arg(metavar="OUT")] = None
    """Also write a repaired copy to this folder, in COCO format. DATA is not changed."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings of the planned training: modern, paper, or a YAML file. The flags below replace single settings."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


def run(argv: Sequence[str]) -> int:
    """``retinanet data inspect DATA``."""
    base = load_recipe(option(argv, "--recipe") or "modern")
    arguments = parse(Arguments, argv, "retinanet data inspect", Arguments(dataset=tyro.MISSING, config=base))
    data, out, fix, config = arguments.dataset, arguments.out, arguments.fix, arguments.config

    from retinanet.data.formats.open_dataset import open_dataset
    from retinanet.files import write_json
    from retinanet.inspection.dataset_inspection import check_fix_folder, inspect, write_repaired
    from retinanet.inspection.inspection_text import inspection_lines
    from retinanet.report.inspection_page import write_inspection

    open_dataset(data)  # an invalid path must not leave an empty folder
    check_fix_folder(fix, out)
    make_folder(out)
    found = inspect(data, recipe=config, console=console)
    page = out / "inspect.html"
    write_inspection(page, found)
    write_json(out / "findings.json", found.to_dict(), indent=1)
    console.print("\n".join(inspection_lines(found)))
    console.print(f"wrote {page} (all findings, with images) and {out}/findings.json")
    if fix is not None:
        changes = write_repaired(found, fix, console)
        console.print(f"wrote a repaired copy to {fix}; {len(changes)} changes, listed in {fix / 'changes.txt'}")
    flags = [f"--recipe {quoted(arguments.recipe)}"] if arguments.recipe != "modern" else []
    flags += changed_flags(config, base, ("data", "anchors", "assign"))
    verb = "data anchors" if found.needs_anchors else "train"
    print_next(" ".join([f"retinanet {verb}", quoted(fix or data), *flags]))
    return 0
