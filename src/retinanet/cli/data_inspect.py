"""``retinanet data inspect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, make_folder, option, parse, print_next
from retinanet.config import Config
from retinanet.errors import ConfigError
from retinanet.flags import changed_flags, quoted
from retinanet.recipes import load_recipe

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.data.doctor import Diagnosis
    from retinanet.data.findings import Finding
    from retinanet.data.survey import Survey

# Settings that what is found depends on.
_GROUPS = ("data", "anchors", "assign")

# Lines the terminal shows of the findings: each kind, and the first places of each while there is room.
_LINES, _PLACES = 32, 2

# Share of reached boxes below which it is worth fitting the anchors.
_REACHED = 0.9


@dataclass(frozen=True)
class Arguments:
    """Say what is wrong or hard to learn in a dataset, before a training spends hours on it."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (recognised by itself), or its annotation file."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("inspect")
    """Folder for inspect.html and findings.json."""
    fix: Annotated[Path | None, arg(metavar="OUT")] = None
    """Also write a repaired copy to this folder, in COCO format; DATA stays as it is."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings of the training to come: modern, paper, or a YAML file; the flags below change single ones."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


def run(argv: Sequence[str]) -> int:
    """``retinanet data inspect DATA``."""
    default = Arguments(dataset=tyro.MISSING, config=load_recipe(option(argv, "--recipe") or "modern"))
    arguments = parse(Arguments, argv, "retinanet data inspect", default=default)
    config = arguments.config

    from retinanet.data.doctor import diagnose, without_unions
    from retinanet.data.findings import by_kind
    from retinanet.data.formats.detect import read_tolerantly, with_shared_classes
    from retinanet.data.inspect_page import write_page
    from retinanet.data.survey import Balance, Survey, coverage_findings
    from retinanet.files import refuse_filled, write_json
    from retinanet.progress import progress_bar

    if arguments.fix is not None:
        if arguments.fix.absolute() == arguments.out.absolute():
            raise ConfigError(f"--fix {arguments.fix} is the folder of the report; choose another")
        refuse_filled(arguments.fix)
    read, failures = read_tolerantly(arguments.dataset, config.data.train, config.data.val)
    read, unions = without_unions(read)
    for split, parts in unions.items():
        console.print(f"{split}: holds the pictures of {' and '.join(parts)}, and is not looked at again")
    splits = with_shared_classes(read)
    make_folder(arguments.out)
    total = sum(map(len, splits.values()))
    with progress_bar(console, "looking at pictures", total) as bar:
        own = {split: dataset.classes for split, dataset in read.items()}
        whole = Path(arguments.dataset).is_dir() and not (config.data.train or config.data.val)
        diagnosis = diagnose(splits, failures, own, config.data, whole, bar.advance)
    with progress_bar(console, "assigning anchors", total) as bar:
        surveys = {split: Survey.of(dataset, config, bar.advance) for split, dataset in splits.items()}
    first = next(iter(surveys))
    findings = [*diagnosis.findings, *coverage_findings(first, surveys[first], config.assign)]

    loss, prior = config.loss, config.model.prior
    focus = (loss.alpha or 0.5, loss.gamma) if loss.classification == "focal" else (0.25, 2.0)
    sentences = Balance.of(surveys[first], prior, *focus).sentences(prior, *focus)
    title = next(iter(splits.values())).name.split(" [")[0]
    write_page(arguments.out / "inspect.html", title, splits, findings, surveys, sentences, config)
    ordered = [finding.to_dict() for found in by_kind(findings).values() for finding in found]
    content = {"splits": {split: survey.to_dict() for split, survey in surveys.items()}, "findings": ordered}
    write_json(arguments.out / "findings.json", content, indent=1)

    _print_surveys(surveys)
    for sentence in sentences:
        console.print(f"  {sentence}")
    _print_findings(findings)
    console.print(f"wrote {arguments.out}/inspect.html (everything, with pictures) and findings.json")
    if arguments.fix is not None:
        _fix(splits, diagnosis, arguments.fix, unions)
    _print_next(arguments, surveys[first])
    return 0


def _print_surveys(surveys: Mapping[str, Survey]) -> None:
    for name, survey in surveys.items():
        counts = survey.per_image
        classes = sorted(survey.dataset.class_counts().items(), key=lambda item: -item[1])
        listed = ", ".join(f"{c} {n}" for c, n in classes[:4]) + (" …" if len(classes) > 4 else "")
        ratio = f", commonest class {survey.imbalance:.1f} × the rarest" if survey.imbalance > 1 else ""
        console.print(
            f"{name}: {len(counts)} images, {int((counts == 0).sum())} of them without objects; "
            f"{int(counts.sum())} boxes{f' ({listed})' if counts.any() else ''}{ratio}"
        )
        groups = [each for each in survey.coverage() if each.by != "class"]
        reached = [f"{each.name.split(' (')[0]} {each.reached:.1%}" for each in groups]
        if groups:
            assigned = f"the settings give one to {groups[0].assigned:.1%}"
            console.print(f"  boxes with an anchor of IoU ≥ 0.5: {', '.join(reached)}; {assigned}")


def _print_findings(findings: Sequence[Finding]) -> None:
    from retinanet.data.findings import by_kind

    groups = list(by_kind(findings).items())
    if not groups:
        console.print("nothing wrong was found")
    room = _LINES - len(groups)
    for kind, found in groups:
        effects = {f.effect or kind.effect for f in found}
        effect = effects.pop() if len(effects) == 1 else kind.effect
        console.print(f"{kind.severity}: {len(found)} × {kind.title}: {effect}")
        shown = found[: max(0, min(_PLACES if room > len(groups) else 1, room))]
        room -= len(shown)
        for finding in shown:
            console.print(f"    {finding.where}: {finding.what}")


def _fix(splits: Mapping[str, Dataset], diagnosis: Diagnosis, out: Path, unions: Mapping[str, object]) -> None:
    from retinanet.data.clean import clean
    from retinanet.data.formats import write_coco
    from retinanet.errors import DataError
    from retinanet.files import write_text
    from retinanet.progress import progress_bar

    repaired, changes = clean(splits, diagnosis)
    if not repaired:
        raise DataError("no picture is left to write")
    with progress_bar(console, "writing images", sum(map(len, repaired.values()))) as bar:
        write_coco.write(repaired, out, progress=bar.advance)
    changes = [*(f"{split}: its pictures are in other splits; left out" for split in unions), *changes]
    write_text(out / "changes.txt", "".join(f"{line}\n" for line in changes))
    console.print(f"wrote a repaired copy to {out}; {len(changes)} changes, listed in {out / 'changes.txt'}")


def _print_next(arguments: Arguments, survey: Survey) -> None:
    config = arguments.config
    flags = [f"--recipe {quoted(arguments.recipe)}"] if arguments.recipe != "modern" else []
    flags += changed_flags(config, load_recipe(arguments.recipe), _GROUPS)
    data = quoted(arguments.fix or arguments.dataset)
    if config.assign.method == "iou" and survey.reached < _REACHED:
        print_next(" ".join(["retinanet data anchors", data, *flags]))
    else:
        print_next(" ".join(["retinanet train", data, *flags]))
