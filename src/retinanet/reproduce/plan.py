"""From rows to runs: settings, data and folder of each training. Equal settings are one run, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.detect import read_train_val
from retinanet.errors import DataError
from retinanet.recipes import load_recipe
from retinanet.reproduce.rows import Changes, Row
from retinanet.training.checkpoint import describe_data

Scale = Literal["small", "paper"]

# The base of all rows at small scale, chosen on a quarter of BCCD's train split that was set aside.
SMALL = Path(__file__).parent / "small.yaml"

# At small scale, pictures that a run measures on at most: a seeded part of a larger val split.
_VAL_IMAGES = 400

_COCO_FILES = ("instances_train2017.json", "instances_val2017.json")
_COCO_IMAGES = (118_287, 5_000)


@dataclass(frozen=True)
class Source:
    """A dataset as another process can read it: where, and how many pictures of each split at most."""

    path: str
    train_images: int | None = None
    val_images: int | None = None

    def read(self) -> tuple[Dataset, Dataset]:
        """What to train on and what to measure on."""
        train_set, val_set, _ = read_train_val(self.path)
        return _part(train_set, self.train_images), _part(val_set, self.val_images)


def _part(dataset: Dataset, images: int | None) -> Dataset:
    if images is None or len(dataset) <= images:
        return dataset
    return dataset.split(images / len(dataset), seed=0)[1]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        folder: where it happens.
        config: all settings.
        source: the data.
        images: shown in all.
        name: what differs from the base, and the seed.
    """

    folder: Path
    config: Config
    source: Source
    images: int
    name: str

    def to_dict(self) -> dict[str, Any]:
        """What :mod:`retinanet.reproduce.worker` needs to do it."""
        return {"source": asdict(self.source), "config": self.config.to_dict()}


@dataclass(frozen=True)
class Plan:
    """How rows become runs.

    Attributes:
        scale: which of a row's changes apply.
        base: settings that every row starts from.
        source: the data.
        name: of the data, as folders and pages have it.
        identity: what tells the data apart from others of that name.
        train_images: how many there are to train on.
        val_images: and to measure on.
        runs: the folder of all runs.
    """

    scale: Scale
    base: Config
    source: Source
    name: str
    identity: Any
    train_images: int
    val_images: int
    runs: Path

    def config(self, row: Row, seed: int) -> Config:
        """All settings of a row."""
        further = row.paper if self.scale == "paper" else row.small or {}
        config = changed(self.base, row.changes, further)
        return replace(config, train=replace(config.train, seed=seed))

    def run(self, row: Row, seed: int) -> Run:
        """The training of a row; its folder is named after settings and data, so equal ones share it."""
        config = self.config(row, seed)
        slug = _slug(differences(config, replace(self.base, train=config.train)))
        known = json.dumps([config.to_dict(), self.identity], sort_keys=True, default=list)
        key = hashlib.sha256(known.encode()).hexdigest()[:8]
        folder = self.runs / self.name / f"{slug}-s{seed}-{key}"
        return Run(folder, config, self.source, config.train.epochs * self.train_images, f"{slug}, seed {seed}")

    def all_runs(self, rows: Iterable[Row], seeds: Sequence[int]) -> list[Run]:
        """Every run once, seed after seed, so that a queue that is stopped has whole comparisons."""
        rows = list(rows)
        runs = [self.run(row, seed) for seed in seeds for row in rows]
        return list({run.folder: run for run in runs}.values())


def small_plan(data: str | Path, runs: Path, images: int, recipe: str | None = None) -> Plan:
    """Trainings of about ``images`` pictures on any dataset.

    Args:
        data: the dataset's folder or file.
        runs: the folder of all runs.
        images: pictures that each run sees; of larger datasets a seeded part of so many is used.
        recipe: settings that every row starts from; unset: ``small.yaml``.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: the recipe cannot be used.
    """
    base = load_recipe(recipe or str(SMALL))
    source = Source(str(data), images, _VAL_IMAGES)
    train_set, val_set = source.read()
    epochs = max(1, round(images / len(train_set)))
    base = replace(base, train=replace(base.train, epochs=epochs, eval_every=epochs))
    identity = [describe_data(train_set), describe_data(val_set)]
    name = _plain(Path(data).resolve().name)
    return Plan("small", base, source, name, identity, len(train_set), len(val_set), runs)


def paper_plan(data: str, runs: Path) -> Plan:
    """The paper's trainings on COCO; ``data`` is only named here, :func:`require_coco` looks at it."""
    return Plan("paper", load_recipe("paper"), Source(data), "COCO", "COCO 2017", *_COCO_IMAGES, runs)


def require_coco(data: str) -> None:
    """Refuse to run the paper's comparisons on anything but COCO 2017.

    Raises:
        DataError: the annotation files or the numbers of pictures are not COCO's.
    """
    root = Path(data).expanduser()
    advice = "the paper's numbers belong to COCO 2017; use --scale small for other data"
    for file in _COCO_FILES:
        if not any(os.path.isfile(folder / file) for folder in (root, root / "annotations")):
            raise DataError(f"{data}: there is no annotations/{file}; {advice}")
    train_set, val_set, _ = read_train_val(data)
    counts = (len(train_set), len(val_set))
    if counts != _COCO_IMAGES or len(train_set.classes) != 80:
        raise DataError(
            f"{data}: {counts[0]} train and {counts[1]} val pictures of {len(train_set.classes)} classes, "
            f"not COCO's {_COCO_IMAGES[0]}, {_COCO_IMAGES[1]} and 80; {advice}"
        )


def changed(base: Config, *changes: Changes) -> Config:
    """``base`` with ``changes``, later ones over earlier ones."""
    values = base.to_dict()
    for change in changes:
        for group, settings in change.items():
            values[group] |= settings
    return Config.from_dict(values, "row")


def differences(config: Config, base: Config) -> dict[str, Any]:
    """Settings that differ, as ``{"loss.gamma": 0.5}``."""
    before = base.to_dict()
    return {
        f"{group}.{key}": value
        for group, settings in config.to_dict().items()
        for key, value in settings.items()
        if value != before[group][key]
    }


def _slug(changes: Mapping[str, Any]) -> str:
    words = []
    for name, value in changes.items():
        key = name.rpartition(".")[2]
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, tuple):
            words.append(f"{len(value)}_{key}")
        elif key != "max_size":
            words.append(f"{key}{value:g}")
    return _plain("-".join(words)) or "base"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
