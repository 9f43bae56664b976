"""``retinanet reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, make_folder, parse
from retinanet.errors import ConfigError
from retinanet.flags import quoted

if TYPE_CHECKING:
    from retinanet.reproduce.order import Order
    from retinanet.reproduce.plan import Plan

# Processes at a time at small scale: two cores are what the budget of a run is made for.
_JOBS = 2


@dataclass(frozen=True)
class Arguments:
    """Run the paper's comparisons again, small on any data or by its recipe on COCO; without NAME, list them."""

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """table1a, table1b, table1c, table1d, table1e, table3, fig1, fig2, fig4, divergence, or all."""
    dataset: Annotated[Positional[str | None], arg(metavar="DATA")] = None
    """Dataset to train on; unset: the sample dataset (small), or only print the commands (paper)."""
    scale: Literal["small", "paper"] = "small"
    """small: minutes a run on two cores; paper: the paper's recipe, which needs COCO and GPUs."""
    seeds: tuple[int, ...] = ()
    """Of each row; unset: 0 1 2 at small scale, 0 at the paper's."""
    jobs: Annotated[int | None, arg(metavar="N")] = None
    """Trainings at a time, each with one thread if several; unset: 2 at small scale, 1 at the paper's."""
    images: int = 1200
    """Pictures that each training sees at small scale; of larger datasets, a part of so many is used."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    """Settings that every row starts from at small scale; unset: the paper's with a small backbone, at 320 pixels."""
    every_row: bool = False
    """Also the rows that are left out by default (all settings of OHEM in table1d)."""
    weights: Annotated[Path | None, arg(metavar="WEIGHTS")] = None
    """Trained model for fig4; unset: the γ = 2 training of table1b."""
    report: bool = False
    """Train nothing; write the results of the runs that are done."""
    out: Path = Path("experiments/results")
    """Folder for NAME.md, NAME.json and NAME.png."""
    runs: Path = Path("runs/reproduce")
    """Folder of the trainings, which go on where they stopped."""


def run(argv: Sequence[str]) -> int:
    """``retinanet reproduce NAME [DATA]``."""
    arguments = parse(Arguments, argv, "retinanet reproduce")
    from retinanet.reproduce.rows import EXPERIMENTS, find_experiments

    if not arguments.name:
        for experiment in EXPERIMENTS.values():
            console.print(f"  {experiment.name:<12}{experiment.summary}")
        console.print(f"  {'all':<12}everything above, rows that they share once")
        return 0
    experiments = find_experiments([arguments.name])
    _check(arguments)

    from retinanet.reproduce.order import Order
    from retinanet.reproduce.run import reproduce

    trains = any(experiment.rows for experiment in experiments)
    default = (0, 1, 2) if arguments.scale == "small" else (0,)
    seeds = tuple(dict.fromkeys(arguments.seeds or default))
    order = Order(
        experiments=experiments,
        plan=_plan(arguments, trains),
        seeds=seeds,
        out=arguments.out,
        every_row=arguments.every_row,
        weights=arguments.weights,
        command=_command(arguments, seeds),
    )
    if arguments.scale == "paper" and trains:
        _print_commands(order)
        if arguments.dataset is None:
            return 0
    make_folder(arguments.out)
    jobs = arguments.jobs or (_JOBS if arguments.scale == "small" else 1)
    reproduce(order, jobs, console, arguments.report)
    return 0


def _check(arguments: Arguments) -> None:
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs is {arguments.jobs}; it must be at least 1")
    if arguments.images < 1:
        raise ConfigError(f"--images is {arguments.images}; it must be at least 1")
    if any(seed < 0 for seed in arguments.seeds):
        raise ConfigError("--seeds: give numbers that are not negative, such as --seeds 0 1 2")
    if arguments.scale == "paper" and arguments.recipe:
        raise ConfigError("--recipe is for --scale small; the paper's scale has the paper's recipe")
    if arguments.weights is not None and arguments.name not in ("fig4", "all"):
        raise ConfigError("--weights is for fig4, which looks at one trained model")


def _plan(arguments: Arguments, trains: bool) -> Plan:
    from retinanet.reproduce.plan import paper_plan, require_coco, small_plan

    if arguments.scale == "paper" or not trains:  # what trains nothing asks no plan for anything
        if arguments.dataset is not None and trains:
            require_coco(arguments.dataset)
        return paper_plan(arguments.dataset or "COCO", arguments.runs)
    return small_plan(arguments.dataset or _sample(arguments.runs), arguments.runs, arguments.images, arguments.recipe)


def _sample(runs: Path) -> Path:
    """The sample dataset, written once."""
    folder = runs / "data" / "sample"
    if not folder.exists():
        from retinanet.data.synthetic import write_sample

        write_sample(folder, images=300, seed=0, size=320)
    return folder


def _command(arguments: Arguments, seeds: Sequence[int]) -> str:
    words = [quoted(Path(arguments.dataset).resolve().name)] if arguments.dataset else []
    words += ["--scale paper"] if arguments.scale == "paper" else []
    words += [f"--seeds {' '.join(map(str, seeds))}"]
    words += [f"--images {arguments.images}"] if arguments.images != Arguments.images else []
    words += [f"--recipe {quoted(arguments.recipe)}"] if arguments.recipe else []
    words += ["--every-row"] if arguments.every_row else []
    words += [f"--weights {quoted(arguments.weights.name)}"] if arguments.weights else []
    return " ".join(words)


def _print_commands(order: Order) -> None:
    from retinanet.reproduce.order import paper_commands

    heading = None
    for experiment, row, command in paper_commands(order):
        if experiment != heading:
            console.print(f"# {experiment.title} ({experiment.where})")
            heading = experiment
        paper = "diverges" if row.diverges else "no number" if row.ap is None else f"AP {row.ap:.1f}"
        speed = f", {row.milliseconds:g} ms on an M40" if row.milliseconds else ""
        console.print(f"# {row.setting}: {paper} in the paper{speed}\n{command}")
