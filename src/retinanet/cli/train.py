"""``retinanet train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, describe, make_folder, option, parse, print_next, print_notes
from retinanet.config import Config
from retinanet.files import quoted
from retinanet.recipes import load_recipe

if TYPE_CHECKING:
    from retinanet.train.distributed import Processes


@dataclass(frozen=True)
class Arguments:
    """Train a detector on your pictures."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (recognised by itself), or its annotation file."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/retinanet")
    """Folder for weights, metrics and curves."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings to start from: modern, paper, or a YAML file; the flags below change single ones."""
    resume: bool = False
    """Go on with the run in --out; the result is what an uninterrupted run gives."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


def run(argv: Sequence[str]) -> int:
    """``retinanet train DATA --out RUN``."""
    default = Arguments(dataset=tyro.MISSING, config=_starting_config(argv))
    arguments = parse(Arguments, argv, "retinanet train", default=default)

    from retinanet.train.distributed import joined_processes

    with joined_processes() as processes:
        return _train(arguments, processes)


def _train(arguments: Arguments, processes: Processes) -> int:
    from rich.console import Console

    from retinanet.data.formats.detect import read_train_val
    from retinanet.data.verify import verify_images
    from retinanet.files import claimed
    from retinanet.model.backbone import require_backbone
    from retinanet.progress import progress_bar
    from retinanet.train.checkpoint import check_same_settings, refuse_other_run, with_found_rate
    from retinanet.train.loop import train
    from retinanet.train.tracking import require_trackers
    from retinanet.zoo.weights import read_info

    config = arguments.config
    speaker = console if processes.first else Console(quiet=True)
    # What can be refused now is not refused after the images were checked, which can take minutes.
    if processes.first and arguments.out.is_dir():
        with claimed(arguments.out):
            pass
    refuse_other_run(arguments.out, arguments.resume)
    last = arguments.out / "last.safetensors"
    if last.exists():
        config = with_found_rate(config, read_info(last))
        check_same_settings(last, read_info(last), config)
    require_backbone(config.model.backbone)
    require_trackers(config.train.track)
    best = arguments.out / "best.safetensors"
    train_set, val_set, notes = read_train_val(
        arguments.dataset, config.data.train, config.data.val, config.data.val_fraction
    )
    if config.data.verify:
        together = (processes.share, processes.gather)
        with progress_bar(speaker, "checking images", (len(train_set) + len(val_set)) // processes.count) as bar:
            train_set, train_notes = verify_images(train_set, config.data.skip_broken, bar.advance, *together)
            val_set, val_notes = verify_images(val_set, config.data.skip_broken, bar.advance, *together)
            notes = [*notes, *train_notes, *val_notes]
    if processes.first:
        for dataset in (train_set, val_set):
            describe(dataset)
        print_notes(notes)
    make_folder(arguments.out)
    result = train(config, train_set, val_set, arguments.out, arguments.resume, speaker, processes)
    metrics = result.metrics
    if result.unreadable:
        images, times = len(result.unreadable), sum(result.unreadable.values())
        speaker.print(f"{images} images could not be read ({times} times in all); others took their places")
    if result.seconds == 0:
        speaker.print(f"{arguments.out} is already finished ({result.finished}); to train anew, choose another --out")
    elif "epochs are done" not in result.finished:
        speaker.print(f"stopped early: {result.finished}")
    speaker.print(
        f"best AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f} on {val_set.name} "
        f"after {result.seconds:.0f} s of training; curves in {arguments.out / 'curves.png'}"
    )
    flags = f" --split {config.data.val}" if config.data.val else ""
    if processes.first:
        print_next(f"retinanet eval {quoted(best)} {quoted(arguments.dataset)}{flags}")
    return 0


def _starting_config(argv: Sequence[str]) -> Config:
    """Defaults of the flags: the recipe's settings, or on ``--resume`` those of the run that is there."""
    last = Path(option(argv, "--out") or Arguments.out) / "last.safetensors"
    recipe = option(argv, "--recipe")
    if "--resume" in argv and last.exists() and recipe is None:
        from retinanet.zoo.weights import read_info

        return read_info(last).config
    return load_recipe("modern" if recipe is None else recipe)
