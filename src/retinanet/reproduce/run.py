"""Reproduce experiments: train the missing runs, then write a table, a plot and the numbers of each experiment."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console

from retinanet.errors import RetinaNetError
from retinanet.files import write_text
from retinanet.reproduce import figures, tables
from retinanet.reproduce.collect import collect
from retinanet.reproduce.plan import Request, paper_commands
from retinanet.reproduce.results import refuse_fewer_runs, refuse_other_results
from retinanet.reproduce.rows import Experiment
from retinanet.reproduce.training import train_missing


def reproduce(request: Request, jobs: int, console: Console, report: bool = False) -> None:
    """Train the missing runs (unless ``report`` is set), then write the results of every experiment.

    Raises:
        ConfigError: nothing could be trained, because of the settings or the machine.
        RetinaNetError: the folder holds results of other data, or cannot be written.
    """
    plan = request.plan
    settings = {"base": plan.base.to_dict(), "train_images": plan.train_images, "val_images": plan.val_images}
    for experiment in request.experiments:  # check before hours of training
        if request.rows(experiment):  # Figure 4 with --weights has no rows and does not depend on the base
            refuse_other_results(
                request.out / f"{experiment.name}.json", plan.name, plan.scale, request.seeds, settings
            )
    failures = [] if report else train_missing(request.runs(), jobs, console)
    for experiment in request.experiments:
        write_results(request, experiment, console)
    if failures:
        raise RetinaNetError(f"{len(failures)} runs failed, first {failures[0]}; run the same command to try again")


def print_commands(request: Request, console: Console) -> None:
    """Print the training command of every row, with the paper's results as comments."""
    heading = None
    for experiment, row, command in paper_commands(request):
        if experiment != heading:
            console.print(f"# {experiment.title} ({experiment.where})")
            heading = experiment
        paper = "diverges" if row.diverges else "no number" if row.ap is None else f"AP {row.ap:.1f}"
        speed = f", {row.milliseconds:g} ms on an M40" if row.milliseconds else ""
        console.print(f"# {row.setting}: {paper} in the paper{speed}\n{command}")


def write_results(request: Request, experiment: Experiment, console: Console) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` from the finished runs.

    Raises:
        RetinaNetError: the folder holds results of other data or of more runs, or cannot be written.
    """
    path = request.out / f"{experiment.name}.json"
    results = collect(request, experiment, console)
    refuse_other_results(path, results.data, results.scale, results.seeds)
    refuse_fewer_runs(path, results)
    write_text(path, as_json(results.to_dict()))
    write_text(path.with_suffix(".md"), tables.page(results))
    figures.draw(results, path.with_suffix(".png"))
    console.print(f"wrote {path.with_suffix('.md')}, .json and .png")


def as_json(value: Any) -> str:
    """Format JSON with a line for each value, and with each list of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\d\s.,eE+-]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"
