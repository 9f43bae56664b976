"""``retinanet reproduce``: train what is missing, then write a table, a plot and the numbers of each experiment."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console

from retinanet.errors import RetinaNetError
from retinanet.files import write_text
from retinanet.reproduce import figures, tables
from retinanet.reproduce.collect import collect
from retinanet.reproduce.order import Order
from retinanet.reproduce.results import refuse_fewer_runs, refuse_other_results
from retinanet.reproduce.rows import Experiment
from retinanet.reproduce.training import train_missing


def reproduce(order: Order, jobs: int, console: Console, report: bool = False) -> None:
    """Train what is missing unless only a ``report`` is wanted, then write the results of every experiment.

    Raises:
        ConfigError: nothing could be trained, because of the settings or the machine.
        RetinaNetError: the folder holds results of other data, or cannot be written.
    """
    plan = order.plan
    settings = {"base": plan.base.to_dict(), "train_images": plan.train_images, "val_images": plan.val_images}
    for experiment in order.experiments:  # now, and not after hours
        if order.rows(experiment):  # fig4 of given weights has none: nothing of the base is in it
            refuse_other_results(order.out / f"{experiment.name}.json", plan.name, plan.scale, order.seeds, settings)
    failures = [] if report else train_missing(order.runs(), jobs, console)
    for experiment in order.experiments:
        write_results(order, experiment, console)
    if failures:
        raise RetinaNetError(
            f"{len(failures)} runs have no result; the first: {failures[0]}; the same command tries again"
        )


def write_results(order: Order, experiment: Experiment, console: Console) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` from the runs that are done.

    Raises:
        RetinaNetError: the folder holds results of other data or of more runs, or cannot be written.
    """
    path = order.out / f"{experiment.name}.json"
    results = collect(order, experiment, console)
    refuse_other_results(path, results.data, results.scale, results.seeds)
    refuse_fewer_runs(path, results)
    write_text(path, as_json(results.to_dict()))
    write_text(path.with_suffix(".md"), tables.page(results))
    figures.draw(results, path.with_suffix(".png"))
    console.print(f"wrote {path.with_suffix('.md')}, .json and .png")


def as_json(value: Any) -> str:
    """JSON with a line for each value, but with lists of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\d\s.,eE+-]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"
