"""Fit the anchors to the boxes of a dataset, and measure the current and the fitted anchors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from retinanet.config import AnchorSpec, Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_train_val
from retinanet.errors import ConfigError, DataError
from retinanet.files import write_text
from retinanet.inspection.anchor_coverage import Floats, ScaledBoxes, best_overlaps, positives
from retinanet.inspection.anchor_search import AS_GOOD, AnchorCoverage, class_weights, refit, search_anchors
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import progress_bar
from retinanet.recipes import RECIPES, resolve

# Number of boxes for the search. It is large enough to estimate the share of covered boxes to half a percent.
_ENOUGH = 10_000

# If the share of covered boxes is below this, larger inputs are tried.
_WELL_COVERED = 0.98

# Factors by which data.size is enlarged, and the largest value of data.size that is tried.
_LARGER, _LARGEST_SIZE = (1.5, 2.0), 8192

# Largest number of scales, and largest number of ratios.
_MOST = 6


@dataclass(frozen=True, eq=False)
class MeasuredAnchors:
    """Anchors, and how well they cover the boxes of train and val.

    Attributes:
        spec: the anchors.
        overlaps: float32 ``(M,)``, IoU of each box of train with its best anchor; NaN for ignore regions.
        coverage: coverage of the boxes of train, with the same weight for every class.
        val_coverage: coverage of the boxes of val; ``None`` if val has no boxes.
        positives: number of positive anchors of each object in the images of the search.
    """

    spec: AnchorSpec
    overlaps: Floats
    coverage: AnchorCoverage
    val_coverage: AnchorCoverage | None
    positives: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class AnchorFit:
    """Result of fitting the anchors to a dataset.

    Attributes:
        train: the split that the anchors are fitted to, with crowds treated as in training.
        val: the validation split.
        sample: the images of train that the search uses.
        notes: remarks about how train and val were read.
        config: the settings that were used, with the current anchors.
        sizes: float32 ``(M, 2)``, width and height of the boxes of train in pixels of the network's input.
        input_size: median height and width of the network's input.
        current: the anchors of the settings.
        fitted: the best anchors that were found.
        table: the best coverage for each number of scales and ratios.
        larger_inputs: for each larger ``data.size``, the share of boxes that anchors fitted to that size cover. Empty
            if the current input is large enough, or if no larger input covers more boxes.
    """

    train: Dataset
    val: Dataset
    sample: Dataset
    notes: list[str]
    config: Config
    sizes: Floats
    input_size: tuple[int, int]
    current: MeasuredAnchors
    fitted: MeasuredAnchors
    table: dict[tuple[int, int], AnchorCoverage]
    larger_inputs: dict[int, float]

    def __repr__(self) -> str:
        before, after = self.current.coverage.share, self.fitted.coverage.share
        return f"<AnchorFit to {self.train.name}: covered boxes {before:.1%} → {after:.1%}>"

    @property
    def threshold(self) -> float:
        """IoU from which a box is covered."""
        return self.config.assign.foreground

    @property
    def uncovered(self) -> npt.NDArray[np.bool_]:
        """Mask of the boxes of train that the fitted anchors leave uncovered: bool ``(M,)``."""
        return ~self.train.ignore & (self.fitted.overlaps < self.threshold)

    @property
    def uncovered_share(self) -> float:
        """Share of the boxes of train that the fitted anchors leave uncovered."""
        return float(self.uncovered.sum() / (~self.train.ignore).sum())

    @property
    def input_is_large_enough(self) -> bool:
        """Whether the fitted anchors cover nearly all boxes at the current ``data.size``."""
        return self.uncovered_share <= 1 - _WELL_COVERED

    @property
    def plot_inputs(self) -> tuple[Floats, tuple[Floats, Floats], tuple[AnchorSpec, AnchorSpec], float]:
        """Object sizes, best IoUs (current, fitted), anchors (current, fitted), and the threshold."""
        objects = ~self.train.ignore
        overlaps = (self.current.overlaps[objects], self.fitted.overlaps[objects])
        return self.sizes[objects], overlaps, (self.current.spec, self.fitted.spec), self.threshold

    @property
    def worthwhile(self) -> bool:
        """Whether the fitted anchors are clearly better than the current anchors."""
        return self.fitted.coverage.close >= self.current.coverage.close + AS_GOOD


@explain_missing_packages("retinanet.fit_anchors")
def fit_anchors(
    dataset: str | Path,
    out: str | Path | None = None,
    scales: int = 3,
    ratios: int = 3,
    seed: int = 0,
    recipe: str = "modern",
    console: Console | None = None,
    **settings: Any,
) -> AnchorFit:
    """Fit the sizes, scales and ratios of the anchors to the boxes of a dataset.

    Args:
        dataset: folder or annotation file of a COCO, Pascal VOC, YOLO or CSV dataset.
        out: also write the fitted anchors to this YAML file, a recipe that starts from ``recipe``.
        scales: largest number of scales.
        ratios: largest number of ratios.
        seed: selects the images for the search if there are very many boxes.
        recipe: settings to start from: ``modern``, ``paper``, or a YAML file.
        console: where progress is shown; unset: on the standard output.
        settings: single settings by the names of their flags, such as ``**{"data.size": 640}``.

    Raises:
        RetinaNetError: there is no such dataset, it has no boxes, a setting is invalid, or ``out`` cannot be written.
    """
    _check(scales, ratios, seed, out, recipe)
    config = resolve(recipe, settings)
    console = console or Console()
    data = config.data
    train, val, notes = read_train_val(dataset, data.train, data.val, data.val_fraction, options=data)
    train = train.with_crowds(config.data.crowd)
    if train.ignore.all():
        raise DataError(_no_boxes(train))
    sample = _random_images(train, seed)
    with progress_bar(console, "fitting anchors", scales * ratios + 2) as bar:
        boxes, weights = _scaled_objects(sample, config), _object_weights(sample)
        found = search_anchors(boxes, config.anchors, scales, ratios, config.assign.foreground, bar.advance, weights)
    scaled = ScaledBoxes.of(train, config.data)
    height, width = np.median(scaled.canvas, axis=0).astype(int).tolist()
    with progress_bar(console, "assigning anchors", 2 * len(sample)) as bar:
        fit = AnchorFit(
            train=train,
            val=val,
            sample=sample,
            notes=notes,
            config=config,
            sizes=scaled.boxes[:, 2:] - scaled.boxes[:, :2],
            input_size=(height, width),
            current=_measured(train, val, sample, config, bar.advance),
            fitted=_measured(train, val, sample, replace(config, anchors=found.spec), bar.advance),
            table=found.table,
            larger_inputs={},
        )
    if not fit.input_is_large_enough:
        fit = replace(fit, larger_inputs=_larger_inputs(fit))
    if out is not None:
        write_text(Path(out), recipe_text(fit, Path(out), recipe))
    return fit


def recipe_text(fit: AnchorFit, out: Path, recipe: str) -> str:
    """YAML text of a recipe with the fitted anchors.

    Args:
        fit: the fitted anchors.
        out: the file to write. If ``recipe`` is a file, the text has its path relative to the folder of ``out``.
        recipe: the recipe that the text starts from.
    """
    import yaml

    if not _is_bundled(recipe):
        recipe = os.path.relpath(Path(recipe).resolve(), out.resolve().parent)
    spec = fit.fitted.spec
    values = {name: list(getattr(spec, name)) for name in ("sizes", "scales", "ratios")}
    content = {"recipe": recipe, "anchors": {**values, "offset": spec.offset, "layout": spec.layout}}
    name = " ".join(fit.train.name.split())  # a line break would end the comment
    before, after = fit.current.coverage.share, fit.fitted.coverage.share
    return (
        f"# Anchors fitted to {name} at data.size {fit.config.data.size}.\n"
        f"# Boxes with an anchor of IoU >= {fit.threshold:g}: {before:.1%} before, {after:.1%} with these.\n"
        + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    )


def _check(scales: int, ratios: int, seed: int, out: str | Path | None, recipe: str) -> None:
    for name, value in (("scales", scales), ("ratios", ratios)):
        if not 1 <= value <= _MOST:
            raise ConfigError(f"--{name} is {value}; use 1 to {_MOST}")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; it cannot be negative")
    if out is None:
        return
    if Path(out).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: give the name of a YAML file, such as anchors.yaml")
    if not _is_bundled(recipe) and Path(out).resolve() == Path(recipe).resolve():
        raise ConfigError(f"--out {out} is the recipe to start from; write to another file")


def _no_boxes(train: Dataset) -> str:
    """Error message for a split without boxes; it also reports the boxes that the reader dropped."""
    dropped = [problem for problem in train.problems if problem.severity == "warning"]
    cause = f"; invalid annotations: {len(dropped)}, first {dropped[0]}" if dropped else ""
    return f"{train.name}: there is no box to fit anchors to in {len(train)} images{cause}; choose another --data.train"


def _is_bundled(recipe: str) -> bool:
    return (RECIPES / f"{recipe}.yaml").is_file() and Path(recipe).name == recipe


def _random_images(dataset: Dataset, seed: int) -> Dataset:
    """Random images with about ``_ENOUGH`` objects; all images if there are fewer objects."""
    objects = np.concatenate([[0], np.cumsum(~dataset.ignore)])[dataset.offsets]
    if objects[-1] <= _ENOUGH:
        return dataset
    order = np.random.default_rng(seed).permutation(len(dataset))
    enough = int(np.searchsorted(np.cumsum(np.diff(objects)[order]), _ENOUGH)) + 1
    return dataset.subset(np.sort(order[:enough]))


def _scaled_objects(dataset: Dataset, config: Config) -> ScaledBoxes:
    """Boxes without ignore regions, in pixels of the network's input."""
    return ScaledBoxes.of(dataset, config.data)[~dataset.ignore]


def _object_weights(dataset: Dataset) -> Floats:
    """Weights of the objects. They give every class the same total weight, as AP does."""
    return class_weights(dataset.labels[~dataset.ignore])


def _measured(
    train: Dataset, val: Dataset, sample: Dataset, config: Config, progress: Callable[[int], object]
) -> MeasuredAnchors:
    """Measure the anchors of ``config``. ``progress`` gets the number of images whose anchors were just assigned."""
    threshold = config.assign.foreground
    overlaps = best_overlaps(train, config.anchors, config.data)
    on_val = None if val.ignore.all() else best_overlaps(val, config.anchors, config.data)
    return MeasuredAnchors(
        spec=config.anchors,
        overlaps=overlaps,
        coverage=AnchorCoverage.of(overlaps[~train.ignore], threshold, _object_weights(train)),
        val_coverage=None if on_val is None else AnchorCoverage.of(on_val, threshold),
        positives=positives(sample, config, progress)[~sample.ignore],
    )


def _larger_inputs(fit: AnchorFit) -> dict[int, float]:
    """For each larger ``data.size``, the share of boxes that anchors fitted to it cover.

    Empty if no larger size covers clearly more boxes.
    """
    config, weights = fit.config, _object_weights(fit.sample)

    def covered(sized: Config) -> float:
        return refit(_scaled_objects(fit.sample, sized), fit.fitted.spec, fit.threshold, weights).share

    shares = {}
    for factor in _LARGER:
        size = round(config.data.size * factor / 32) * 32
        if size <= _LARGEST_SIZE:
            longest = config.data.max_size and round(config.data.max_size * size / config.data.size)
            shares[size] = covered(replace(config, data=replace(config.data, size=size, max_size=longest)))
    return shares if max(shares.values(), default=0) >= covered(config) + 0.01 else {}
