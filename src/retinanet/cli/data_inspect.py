"""``retinanet data inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import (
    changed_flags,
    console,
    make_folder,
    new_run,
    option,
    parse,
    print_next,
    quoted,
    unused,
)
from retinanet.config import Config
from retinanet.recipes import load_recipe

if TYPE_CHECKING:
    from retinanet.inspection.dataset_inspection import Inspection

# Codes of findings with which a training stops: those that a repaired copy does not have, and those that it has.
REPAIRED = {"broken-image", "broken-annotation"}
UNUSABLE = {"unreadable-split", "no-objects"}


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
    given = parse(Arguments, argv, "retinanet data inspect", Arguments(dataset=tyro.MISSING, config=base))
    from retinanet.data.formats.open_dataset import open_dataset
    from retinanet.files import write_json
    from retinanet.inspection.dataset_inspection import check_fix_folder, inspect, write_repaired
    from retinanet.inspection.inspection_text import inspection_lines
    from retinanet.report.inspection_page import write_inspection

    open_dataset(given.dataset, given.config.data)  # fail on a wrong path before the output folder is created
    check_fix_folder(given.fix, given.out)
    make_folder(given.out)
    found = inspect(given.dataset, recipe=given.config, console=console)
    write_inspection(page := given.out / "inspect.html", found)
    write_json(given.out / "findings.json", found.to_dict(), indent=1)
    console.print("\n".join(inspection_lines(found, given.fix)))
    console.print(f"wrote {page} (all findings, with images) and {given.out}/findings.json")
    if given.fix is not None:
        changes = write_repaired(found, given.fix, console)
        console.print(
            f"wrote a repaired copy to {given.fix}; {len(changes)} changes, listed in {given.fix / 'changes.txt'}"
        )
    if command := _next(given, base, found):
        print_next(command)
    return 0


def _next(given: Arguments, base: Config, found: Inspection) -> str | None:
    """The command that repairs the data, fits the anchors or trains; ``None`` if no command can be run on the data."""
    from retinanet.data.formats.train_val import can_train

    recipe = [] if given.recipe == "modern" else [f"--recipe {quoted(given.recipe)}"]
    anchors, every = ("data", "anchors", "assign"), [group.name for group in fields(base)]
    codes = {finding.code for finding in found.findings}
    if given.config.data.skip_broken:
        codes -= {"broken-image"}
    if codes & UNUSABLE:
        return None
    if given.fix is None and codes & REPAIRED:
        fixed = unused(Path(f"{found.name}-repaired"))
        flags = changed_flags(given.config, base, every)
        place = f"--out {quoted(given.out)} --fix {quoted(fixed)}"
        return " ".join(["retinanet data inspect", quoted(given.dataset), place, *recipe, *flags])
    reading = given.config.data
    config = replace(given.config, data=replace(reading, tile=reading.tile or found.advised_tile))
    splits = (reading.train, reading.val, reading) if given.fix is None else ()
    if not can_train(given.fix or given.dataset, *splits):
        return None
    data = quoted(given.fix or given.dataset)
    if found.needs_anchors:
        flags = changed_flags(config, base, anchors, reading=given.fix is None)
        return " ".join(["retinanet data anchors", data, *recipe, *flags])
    flags = changed_flags(config, base, every, reading=given.fix is None)
    return " ".join(["retinanet train", data, *recipe, *flags, *new_run()])
