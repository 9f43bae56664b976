"""A small dataset and a small configuration for whole trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_train_val
from retinanet.data.synthetic import write_sample
from retinanet.recipes import load_recipe


def small_config(**train: Any) -> Config:
    """The default recipe on a network small enough for a test."""
    config = load_recipe("modern")
    return replace(
        config,
        model=replace(config.model, channels=32, subnet_depth=1),
        data=replace(config.data, size=96, workers=0),
        train=replace(config.train, **{"epochs": 1, "batch": 4, "precision": "fp32", **train}),
    )


# The settings of ``small_config`` for the command line, with a checkpoint after every step.
FLAGS = [
    "--model.channels",
    "32",
    "--model.subnet-depth",
    "1",
    "--data.size",
    "96",
    "--data.workers",
    "1",
    "--train.epochs",
    "3",
    "--train.batch",
    "4",
    "--train.precision",
    "fp32",
    "--train.checkpoint-minutes",
    "0.000001",
]


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample_dataset(folder: Path) -> Path:
    """A dataset of 15 images of 96 × 96 pixels in ``folder``: 12 train and 3 val."""
    write_sample(folder / "parts", images=15, seed=3, size=96)
    return folder / "parts"


def train_and_val(parts: Path) -> tuple[Dataset, Dataset]:
    train_set, val_set, _ = read_train_val(parts)
    return train_set, val_set
