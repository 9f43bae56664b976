"""``retinanet train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, option, parse, print_next
from retinanet.config import Config
from retinanet.flags import quoted, reading_flags
from retinanet.recipes import DEFAULT_RECIPE, load_recipe


@dataclass(frozen=True)
class Arguments:
    """Train a detector on your images."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (the format is recognized), or its annotation file."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/retinanet")
    """Folder for weights, metrics and curves."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = DEFAULT_RECIPE
    """Settings to start from: modern, paper, or a YAML file. The flags below change single settings."""
    resume: bool = False
    """Resume the run in --out. The result equals that of an uninterrupted run."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


def run(argv: Sequence[str]) -> int:
    """Run ``retinanet train DATA --out RUN``."""
    default = Arguments(dataset=tyro.MISSING, config=_default_settings(argv))
    arguments = parse(Arguments, argv, "retinanet train", default=default)

    from retinanet.training.api import train
    from retinanet.training.distributed import started_as_main

    result = train(arguments.dataset, arguments.out, arguments.config, arguments.resume, console)
    if started_as_main():
        print_next(_next(arguments, result.best))
    return 0


def _next(arguments: Arguments, best: Path) -> str:
    """The command that evaluates the weights on the val images of the training."""
    data = arguments.config.data
    if data.train and not data.val:
        from retinanet.data.formats.open_dataset import open_dataset

        opened = open_dataset(arguments.dataset, data)
        if opened.resolve("val") is None:  # eval could not hold out the same images of a split other than train
            image = opened.read_override(data.train, "train").path(0)
            return f"retinanet detect {quoted(best)} {quoted(image)}"
    words = ["retinanet eval", quoted(best), quoted(arguments.dataset)]
    split = [f"--split {quoted(data.val)}"] if data.val else []
    return " ".join([*words, *split, *reading_flags(data)])


def _default_settings(argv: Sequence[str]) -> Config:
    """The defaults of the flags: the recipe's settings, or the run's settings with ``--resume``.

    With ``--model.init``, the settings of the network are those of the detector that it names.
    """
    last = Path(option(argv, "--out") or Arguments.out) / "last.safetensors"
    recipe = option(argv, "--recipe")
    if "--resume" in argv and recipe is None and last.exists():
        from retinanet.zoo.weights import read_info

        return read_info(last).config
    config = load_recipe(DEFAULT_RECIPE if recipe is None else recipe)
    init = option(argv, "--model.init") or config.model.init
    if init is None or "--help" in argv:
        return config
    from retinanet.training.fine_tuning import starting_config

    return starting_config(config, {"model.init": init})
