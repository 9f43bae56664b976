"""From runs to results: what was measured for an experiment, as far as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from retinanet.flags import changed_flags
from retinanet.hardware import cores, processor
from retinanet.progress import progress_bar
from retinanet.recipes import load_recipe
from retinanet.reproduce import measure
from retinanet.reproduce.order import GROUPS, Order, flags
from retinanet.reproduce.plan import Plan, Run
from retinanet.reproduce.results import Measured, Results, outcome
from retinanet.reproduce.rows import Experiment, Row
from retinanet.zoo.weights import ModelInfo, read_info


def collect(order: Order, experiment: Experiment, console: Console) -> Results:
    """What was measured for an experiment, as far as it was."""
    plan, seeds = order.plan, list(order.seeds)
    trains = bool(experiment.rows)
    rows = [_measured(plan, row, seeds) for row in order.rows(experiment)] if experiment.name != "fig4" else []
    if experiment.name != "divergence":  # the only one that shows the losses of single steps
        rows = [replace(row, runs=[replace(run, losses=[]) for run in row.runs]) for row in rows]
    measures: dict[str, Callable[[Order, Experiment, Console], dict[str, Any]]] = {
        "fig1": lambda *_: measure.loss_curves(),
        "fig2": _speed,
        "fig4": _distribution,
    }
    return Results(
        name=experiment.name,
        title=experiment.title,
        claim=experiment.claim,
        where=experiment.where,
        note=experiment.note if plan.scale == "small" else "",
        command=" ".join(
            ["retinanet reproduce", experiment.name, *([order.command] if trains and order.command else [])]
        ),
        scale=plan.scale if trains else "no training",
        data=plan.name if trains else "no data",
        train_images=plan.train_images if trains else 0,
        val_images=plan.val_images if trains else 0,
        base=plan.base.to_dict(),
        base_flags=" ".join(changed_flags(plan.base, load_recipe("paper"), GROUPS)),
        machine=f"{cores()} cores ({processor()}), torch {torch.__version__}",
        seeds=seeds,
        rows=rows,
        extra=measures[experiment.name](order, experiment, console) if experiment.name in measures else {},
    )


def _measured(plan: Plan, row: Row, seeds: Iterable[int]) -> Measured:
    runs = [found for seed in seeds if (found := outcome(plan.run(row, seed))) is not None]
    return Measured(row.name(plan.scale == "small"), row.ap, flags(plan, row), row.milliseconds, row.diverges, runs)


def _speed(order: Order, experiment: Experiment, console: Console) -> dict[str, Any]:
    """Milliseconds of the first trained seed of each row; speed does not depend on the seed."""
    _, val_set = order.plan.source.read()
    found = {}
    for row in order.rows(experiment):
        runs = [run for seed in order.seeds if (run := order.plan.run(row, seed)) and _trained(run)]
        if runs:
            name = row.name(order.plan.scale == "small")
            console.print(f"timing {name}")
            found[name] = measure.milliseconds(runs[0].folder / "last.safetensors", val_set)
    return {"speed": found}


def _distribution(order: Order, experiment: Experiment, console: Console) -> dict[str, Any]:
    weights = order.weights
    if weights is None:
        run = order.plan.run(order.rows(experiment)[0], order.seeds[0])
        if not _trained(run):
            return {}
        weights = run.folder / "last.safetensors"
    _, val_set = order.plan.source.read()
    with progress_bar(console, "pictures", len(val_set)) as bar:
        found = measure.loss_distribution(weights, val_set, bar.advance)
    return {"distribution": {**found, "model": _described(read_info(weights))}}


def _described(model: ModelInfo) -> str:
    """How a model was trained, and how good it is."""
    known = load_recipe("paper")
    changes = " ".join(changed_flags(model.config, known, GROUPS))
    epochs = model.progress.get("epoch")
    ap = model.metrics.get("AP")
    return ", ".join(
        [
            f"the recipe `paper` with `{changes}`" if changes else "the recipe `paper`",
            *([f"after {epochs:g} epochs"] if isinstance(epochs, int | float) else []),
            *([f"AP {100 * ap:.1f}"] if isinstance(ap, float) else []),
        ]
    )


def _trained(run: Run) -> bool:
    found = outcome(run)
    return found is not None and found.ap is not None
