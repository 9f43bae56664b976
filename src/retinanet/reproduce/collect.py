"""Collect the results of an experiment from its finished runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from retinanet.flags import changed_flags
from retinanet.machine import cores, processor
from retinanet.model_info import ModelInfo
from retinanet.progress import progress_bar
from retinanet.recipes import load_recipe
from retinanet.reproduce import measure
from retinanet.reproduce.plan import GROUPS, Plan, Request, Run
from retinanet.reproduce.results import MeasuredRow, Results, outcome
from retinanet.reproduce.rows import Experiment, Row
from retinanet.zoo.weights import find_weights, read_info


def collect(request: Request, experiment: Experiment, console: Console) -> Results:
    """Collect the results of an experiment. Runs that have not ended are left out."""
    plan, seeds = request.plan, list(request.seeds)
    trains = bool(experiment.rows)
    rows = [_measured_row(plan, row, seeds) for row in request.rows(experiment)] if experiment.name != "fig4" else []
    if experiment.name != "divergence":  # only the page of divergence shows the losses of single steps
        rows = [replace(row, runs=[replace(run, losses=[]) for run in row.runs]) for row in rows]
    measures: dict[str, Callable[[Request, Experiment, Console], dict[str, Any]]] = {
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
        command=f"retinanet reproduce {experiment.name} {request.command if trains else ''}".strip(),
        scale=plan.scale if trains else "no training",
        data=plan.name if trains else "no data",
        train_images=plan.train_images if trains else 0,
        val_images=plan.val_images if trains else 0,
        base=plan.base.to_dict(),
        base_flags=" ".join(changed_flags(plan.base, load_recipe("paper"), GROUPS)),
        machine=f"{cores()} cores ({processor()}), torch {torch.__version__}",
        seeds=seeds,
        rows=rows,
        extra=measures[experiment.name](request, experiment, console) if experiment.name in measures else {},
    )


def _measured_row(plan: Plan, row: Row, seeds: Iterable[int]) -> MeasuredRow:
    runs = [found for seed in seeds if (found := outcome(plan.run(row, seed))) is not None]
    name = row.name(plan.scale == "small")
    return MeasuredRow(name, row.ap, plan.flags(row), row.milliseconds, row.diverges, runs)


def _speed(request: Request, experiment: Experiment, console: Console) -> dict[str, Any]:
    """Time the first trained seed of each row. The speed does not depend on the seed."""
    _, val_set = request.plan.source.read()
    found = {}
    for row in request.rows(experiment):
        runs = [run for seed in request.seeds if (run := request.plan.run(row, seed)) and _has_weights(run)]
        if runs:
            name = row.name(request.plan.scale == "small")
            console.print(f"timing {name}")
            found[name] = measure.milliseconds(runs[0].folder / "last.safetensors", val_set)
    return {"speed": found}


def _distribution(request: Request, experiment: Experiment, console: Console) -> dict[str, Any]:
    weights = request.weights
    if weights is None:
        run = request.plan.run(request.rows(experiment)[0], request.seeds[0])
        if not _has_weights(run):
            return {}
        weights = run.folder / "last.safetensors"
    _, val_set = request.plan.source.read()
    with progress_bar(console, "images", len(val_set)) as bar:
        found = measure.loss_distribution(weights, val_set, bar.advance)
    return {"distribution": {**found, "model": _description(read_info(find_weights(weights)))}}


def _description(model: ModelInfo) -> str:
    """Describe how a model was trained, and its AP."""
    known, decode = load_recipe("paper"), model.config.decode
    # The limits follow the data, so they are no changes of the recipe.
    limited = replace(known.decode, top_k=decode.top_k, max_detections=decode.max_detections)
    known = replace(known, decode=limited)
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


def _has_weights(run: Run) -> bool:
    found = outcome(run)
    return found is not None and found.ap is not None
