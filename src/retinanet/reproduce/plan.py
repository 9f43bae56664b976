"""Plan the trainings of a request: settings, data and folder of each run, and the command that repeats it.

Rows with equal settings share one run, even across experiments.
"""

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
from retinanet.data.formats.train_val import read_train_val
from retinanet.errors import DataError
from retinanet.flags import changed_flags, quoted
from retinanet.recipes import load_recipe
from retinanet.reproduce.options import Options
from retinanet.reproduce.rows import Changes, Experiment, Row
from retinanet.training.checkpoint import describe_data

Scale = Literal["small", "paper"]

GROUPS = ("model", "anchors", "assign", "loss", "data", "train", "decode")

# The base of all rows at small scale. It was chosen on a held-out quarter of BCCD's train split.
SMALL = Path(__file__).parent / "small.yaml"

# Largest number of images in val at small scale. A larger val split is replaced by a seeded subset.
_VAL_IMAGES = 400

_COCO_FILES = ("instances_train2017.json", "instances_val2017.json")
COCO_IMAGES = (118_287, 5_000)


@dataclass(frozen=True)
class DataSource:
    """A description of a dataset for another process: its path and the largest number of images of each split."""

    path: str
    train_images: int | None = None
    val_images: int | None = None

    def read(self) -> tuple[Dataset, Dataset]:
        """Read train and val."""
        train_set, val_set, _ = read_train_val(self.path)
        return _subset(train_set, self.train_images), _subset(val_set, self.val_images)


def _subset(dataset: Dataset, images: int | None) -> Dataset:
    if images is None or len(dataset) <= images:
        return dataset
    return dataset.split(images / len(dataset), seed=0)[1]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        folder: the output folder of the training.
        config: all settings.
        source: the data.
        images: number of images shown, counted with repetition.
        name: the settings that differ from the base, and the seed.
    """

    folder: Path
    config: Config
    source: DataSource
    images: int
    name: str

    def to_dict(self) -> dict[str, Any]:
        """The content of ``run.json``, which :mod:`retinanet.reproduce.worker` reads."""
        return {"source": asdict(self.source), "config": self.config.to_dict()}


@dataclass(frozen=True)
class Plan:
    """How rows become runs.

    Attributes:
        scale: small or paper; it selects which changes of a row apply.
        base: the settings that every row starts from.
        source: the data.
        name: name of the data in folders and on pages.
        identity: distinguishes the data from other data of the same name.
        train_images: number of images in train.
        val_images: number of images in val.
        runs: the folder of all runs.
    """

    scale: Scale
    base: Config
    source: DataSource
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
        """The training of a row. Its folder is named after settings and data, so that equal trainings share it."""
        config = self.config(row, seed)
        slug = _slug(differences(config, replace(self.base, train=config.train)))
        known = json.dumps([config.to_dict(), self.identity], sort_keys=True, default=list)
        key = hashlib.sha256(known.encode()).hexdigest()[:8]
        folder = self.runs / self.name / f"{slug}-s{seed}-{key}"
        return Run(folder, config, self.source, config.train.epochs * self.train_images, f"{slug}, seed {seed}")

    def all_runs(self, rows: Iterable[Row], seeds: Sequence[int]) -> list[Run]:
        """Every run once, sorted by seed, so that an interrupted queue has finished all rows for the first seeds."""
        rows = list(rows)
        runs = [self.run(row, seed) for seed in seeds for row in rows]
        return list({run.folder: run for run in runs}.values())

    def flags(self, row: Row) -> str:
        """The changes of a row, as flags of ``retinanet train``."""
        seed = self.base.train.seed
        return " ".join(changed_flags(self.config(row, seed), self.config(Row("", None), seed), GROUPS))


@dataclass(frozen=True)
class Request:
    """The experiments to reproduce, and how.

    Attributes:
        experiments: the tables and figures.
        plan: how rows become runs.
        seeds: seeds of each row.
        out: folder of the results.
        every_row: include the rows that are left out by default.
        weights: a trained model for Figure 4. Unset: Figure 4 uses the run of its row.
        command: the arguments after ``retinanet reproduce NAME`` that repeat this request. The pages print them.
    """

    experiments: Sequence[Experiment]
    plan: Plan
    seeds: Sequence[int]
    out: Path
    every_row: bool = False
    weights: Path | None = None
    command: str = ""

    def rows(self, experiment: Experiment) -> tuple[Row, ...]:
        """The rows of an experiment that are trained."""
        if self.weights is not None and experiment.name == "fig4":
            return ()
        return experiment.chosen(self.every_row, self.plan.scale == "small")

    def runs(self) -> list[Run]:
        """Every required training, once."""
        single = [e for e in self.experiments if e.name == "fig4"]  # Figure 4 shows one model: one seed
        rows = [row for e in self.experiments if e.name != "fig4" for row in self.rows(e)]
        runs = self.plan.all_runs(rows, self.seeds)
        runs += [run for e in single for run in self.plan.all_runs(self.rows(e), self.seeds[:1])]
        return list({run.folder: run for run in runs}.values())


def make_request(experiments: Sequence[Experiment], options: Options) -> Request:
    """Plan these experiments with the options of the command line.

    Raises:
        DataError: the dataset cannot be used, or is not COCO at the paper's scale.
        ConfigError: the recipe cannot be used.
    """
    if options.scale == "small" and any(experiment.rows for experiment in experiments):
        data = options.dataset or _sample_dataset(options.runs)
        plan = small_plan(data, options.runs, options.images, options.recipe)
    else:
        if options.dataset is not None and any(experiment.rows for experiment in experiments):
            require_coco(options.dataset)
        plan = paper_plan(options.dataset or "COCO", options.runs)  # experiments without training do not use it
    return Request(
        experiments=experiments,
        plan=plan,
        seeds=options.distinct_seeds(),
        out=options.out,
        every_row=options.every_row,
        weights=options.weights,
        command=options.command(),
    )


def _sample_dataset(runs: Path) -> Path:
    """The folder of the sample dataset, which is written on the first call."""
    folder = runs / "data" / "sample"
    if not folder.exists():
        from retinanet.data.synthetic import write_sample

        write_sample(folder, images=300, seed=0, size=320)
    return folder


def paper_commands(request: Request) -> list[tuple[Experiment, Row, str]]:
    """The command ``retinanet train …`` of each row and seed on COCO."""
    found = []
    for experiment in request.experiments:
        for row in request.rows(experiment):
            for seed in request.seeds:
                run = request.plan.run(row, seed)
                changes = [text for text in (request.plan.flags(row), f"--train.seed {seed}" * (seed != 0)) if text]
                start = ["retinanet train", quoted(run.source.path), "--recipe paper", *changes]
                found.append((experiment, row, " ".join([*start, f"--out {quoted(run.folder)}"])))
    return found


def small_plan(data: str | Path, runs: Path, images: int, recipe: str | None = None) -> Plan:
    """Plan trainings of about ``images`` images each, on any dataset.

    Args:
        data: the dataset's folder or file.
        runs: the folder of all runs.
        images: number of images that each run sees. A larger dataset is replaced by a seeded subset of this size.
        recipe: settings that every row starts from. Unset: ``small.yaml``.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: the recipe cannot be used.
    """
    base = load_recipe(recipe or str(SMALL))
    source = DataSource(str(data), images, _VAL_IMAGES)
    train_set, val_set = source.read()
    epochs = max(1, round(images / len(train_set)))
    base = replace(base, train=replace(base.train, epochs=epochs, eval_every=epochs))
    identity = [describe_data(train_set), describe_data(val_set)]
    name = _file_name(Path(data).resolve().name)
    return Plan("small", base, source, name, identity, len(train_set), len(val_set), runs)


def paper_plan(data: str, runs: Path) -> Plan:
    """Plan the paper's trainings on COCO. This does not read ``data``. :func:`require_coco` checks the dataset."""
    return Plan("paper", load_recipe("paper"), DataSource(data), "COCO", "COCO 2017", *COCO_IMAGES, runs)


def require_coco(data: str) -> None:
    """Refuse any dataset but COCO 2017.

    Raises:
        DataError: the annotation files or the numbers of images are not those of COCO 2017.
    """
    root = Path(data).expanduser()
    advice = "the paper's numbers are for COCO 2017; use --scale small for other data"
    for file in _COCO_FILES:
        if not any(os.path.isfile(folder / file) for folder in (root, root / "annotations")):
            raise DataError(f"{data}: there is no annotations/{file}; {advice}")
    train_set, val_set, _ = read_train_val(data)
    counts = (len(train_set), len(val_set))
    if counts != COCO_IMAGES or len(train_set.classes) != 80:
        raise DataError(
            f"{data}: {counts[0]} train and {counts[1]} val images of {len(train_set.classes)} classes, "
            f"but COCO 2017 has {COCO_IMAGES[0]}, {COCO_IMAGES[1]} and 80; {advice}"
        )


def changed(base: Config, *changes: Changes) -> Config:
    """Apply ``changes`` to ``base``, later ones over earlier ones."""
    values = base.to_dict()
    for change in changes:
        for group, settings in change.items():
            values[group] |= settings
    return Config.from_dict(values, "row")


def differences(config: Config, base: Config) -> dict[str, Any]:
    """The settings of ``config`` that differ from ``base``, as ``{"loss.gamma": 0.5}``."""
    before = base.to_dict()
    return {
        f"{group}.{key}": value
        for group, settings in config.to_dict().items()
        for key, value in settings.items()
        if value != before[group][key]
    }


def _slug(changes: Mapping[str, Any]) -> str:
    """A file name that lists these settings."""
    words = []
    for name, value in changes.items():
        key = name.rpartition(".")[2]
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, tuple):
            words.append(f"{len(value)}_{key}")
        elif key != "max_size":
            words.append(f"{key}{value:g}")
    return _file_name("-".join(words)) or "base"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
