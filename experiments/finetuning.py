"""Train on BCCD's three classes from the bundled detector ``person`` and from an ImageNet backbone, and compare the AP.

    python experiments/finetuning.py DATA [--jobs 2] [--seeds 0 1 2] [--rates 2e-3]
    python experiments/finetuning.py DATA --report

Both starts have the same network, recipe, number of images and learning rates; only the initial weights differ. Each
training is a process with one thread. Finished trainings are not repeated, and interrupted trainings are resumed. The
log is ``runs/experiments/finetuning.jsonl``; ``results/finetuning.json`` and ``results/finetuning.md`` are written
from it at the end, or by ``--report``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retinanet.config import Config
from retinanet.files import write_json
from retinanet.recipes import resolve
from retinanet.training.fine_tuning import starting_config
from retinanet.training.loop import train_on
from retinanet.zoo.weights import find_weights, read_info
from runs import MAX_SIZE, RESULTS, SIZE, load_sets, read_log, run_queue

STARTS = ("person", "ImageNet")
EPOCHS, RATES = 5, (2e-3,)  # the learning rate of the recipe
RUNS = Path("runs/experiments")
LOG = RUNS / "finetuning.jsonl"


def settings(start: str, lr: float, seed: int) -> Config:
    """The recipe ``modern`` with the network of ``person``, whose weights are used if ``start`` is ``person``."""
    wanted = {
        "model.channels": read_info(find_weights("person")).config.model.channels,
        "data.size": SIZE,
        "data.max_size": MAX_SIZE,
        "data.workers": 0,
        "data.verify": "never",
        "train.epochs": EPOCHS,
        "train.lr": lr,
        "train.seed": seed,
    }
    if start == "person":
        wanted["model.init"] = "person"
    return resolve(starting_config(resolve("modern"), wanted), wanted)


def one(data: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Train once; return the metrics after the last epoch, and the AP after each epoch."""

    torch.set_num_threads(1)
    train_set, val_set = load_sets(data, "bccd", screening=False)
    out = RUNS / f"finetuning-{spec['start']}-{spec['lr']:g}-{spec['seed']}"
    began = time.process_time()
    train_on(settings(**spec), train_set, val_set, out, resume=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [line for line in lines if "AP" in line]
    numbers = {key: round(evaluations[-1][key], 4) for key in ("AP", "AP50", "AP75")}
    return {
        **numbers,
        "AP of epochs": [round(line["AP"], 4) for line in evaluations],
        "images": EPOCHS * len(train_set),
        "CPU seconds": round(time.process_time() - began),
    }


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The content of ``results/finetuning.md``, from the lines of the log."""
    epochs = " | ".join(f"epoch {epoch}" for epoch in range(1, EPOCHS + 1))
    rows = [f"| start | learning rate | seeds | AP | AP50 | AP75 | {epochs} |", "|---" * (6 + EPOCHS) + "|"]
    for rate in sorted({line["spec"]["lr"] for line in lines}, reverse=True):
        for start in STARTS:
            runs = [line for line in lines if (line["spec"]["start"], line["spec"]["lr"]) == (start, rate)]
            if not runs:
                continue
            seeds = ", ".join(str(seed) for seed in sorted(line["spec"]["seed"] for line in runs))
            spreads = [spread([line[key] for line in runs]) for key in ("AP", "AP50", "AP75")]
            curve = zip(*(line["AP of epochs"] for line in runs), strict=True)
            means = [f"{statistics.mean(values):.3f}" for values in curve]
            rows.append("| " + " | ".join([start, f"{rate:g}", seeds, *spreads, *means]) + " |")
    return TEXT.format(rows="\n".join(rows), epochs=EPOCHS, size=SIZE, images=lines[0]["images"] if lines else 0)


def spread(values: Sequence[float]) -> str:
    """The mean of the seeds, and their range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


TEXT = """# Fine-tuning a detector, and training from ImageNet

BCCD, three classes, {epochs} epochs ({images} training images) at {size} pixels with the recipe `modern`, evaluated on
the 87 images of val. The starts have the same network (EfficientNet-Lite0, 128 channels) and the same settings. They
differ only in the initial weights: the bundled detector `person` (`--model.init person`; its class is not one of
BCCD's, so the last convolution of the classification subnet starts anew), or an ImageNet backbone. Each row is the
mean over the seeds, with the range in brackets, of the weights after the last epoch; no epoch was chosen. The last
columns are the mean AP after each epoch.

    python experiments/finetuning.py DATA

{rows}
"""


def main() -> None:
    """Run the missing trainings and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.data, arguments.one)))
        return
    if not arguments.report:
        RUNS.mkdir(parents=True, exist_ok=True)
        order = [(rate, seed, start) for rate in arguments.rates for seed in arguments.seeds for start in STARTS]
        specs = [{"start": start, "lr": rate, "seed": seed} for rate, seed, start in order]
        run_queue(Path(__file__), specs, LOG, arguments.jobs, [str(arguments.data)])
    lines = read_log(LOG)
    write_json(RESULTS / "finetuning.json", {"epochs": EPOCHS, "size": SIZE, "runs": lines}, indent=1)
    (RESULTS / "finetuning.md").write_text(report(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
