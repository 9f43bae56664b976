"""``retinanet data anchors``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, describe, option, parse, print_next, print_notes
from retinanet.config import AnchorSpec, AssignConfig, Config, DataConfig
from retinanet.errors import ConfigError, DataError
from retinanet.flags import changed_flags, quoted
from retinanet.recipes import RECIPES, load_recipe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from retinanet.anchors.fit import Floats
    from retinanet.data.dataset import Dataset

# More boxes than this are not searched with: a share of so many is known to half a percent.
_ENOUGH = 10_000

# Below this share of covered boxes it is worth thinking about a larger input.
_WELL_COVERED = 0.98

# Classes listed, those covered worst.
_CLASSES = 10


@dataclass(frozen=True)
class Arguments:
    """Fit the anchors' sizes, scales and ratios to your boxes, and say whether it is worth it."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (recognised by itself), or its annotation file."""
    out: Annotated[Path, arg(metavar="FILE.yaml")] = Path("anchors.yaml")
    """Recipe to write, for retinanet train --recipe; a picture goes beside it."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings to start from: modern, paper, or a YAML file."""
    scales: int = 3
    """At most so many scales."""
    ratios: int = 3
    """At most so many aspect ratios."""
    seed: int = 0
    """Chooses the images to search with, where there are very many."""
    data: DataConfig = field(default_factory=DataConfig)
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    assign: AssignConfig = field(default_factory=AssignConfig)


def run(argv: Sequence[str]) -> int:
    """``retinanet data anchors DATA``."""
    base = load_recipe(option(argv, "--recipe") or "modern")
    default = Arguments(dataset=tyro.MISSING, data=base.data, anchors=base.anchors, assign=base.assign)
    arguments = parse(Arguments, argv, "retinanet data anchors", default=default)
    config = replace(base, data=arguments.data, anchors=arguments.anchors, assign=arguments.assign)
    _check(arguments)

    from retinanet.anchors.fit import best_overlaps
    from retinanet.anchors.picture import draw_fit
    from retinanet.anchors.search import AS_GOOD, Coverage, fit_anchors
    from retinanet.data.formats.detect import read_train_val
    from retinanet.files import write_text
    from retinanet.progress import progress_bar

    train_set, val_set, notes = read_train_val(
        arguments.dataset, config.data.train, config.data.val, config.data.val_fraction
    )
    train_set = train_set.with_crowds(config.data.crowd)
    describe(train_set)
    print_notes(notes)
    if train_set.ignore.all():
        raise DataError(f"{train_set.name}: there is no box to fit anchors to in {len(train_set)} images")
    sample = _sample(train_set, arguments.seed)
    with progress_bar(console, "fitting anchors", arguments.scales * arguments.ratios + 2) as bar:
        boxes = _objects(sample, config.data)
        threshold = config.assign.foreground
        numbers = (arguments.scales, arguments.ratios)
        fit = fit_anchors(boxes, config.anchors, *numbers, threshold, bar.advance, _weights(sample))
    before, after = (best_overlaps(train_set, spec, config.data) for spec in (config.anchors, fit.spec))
    size = _print_coverage(train_set, config, fit.spec, before, after)
    _print_other_numbers(fit.table)
    held_out = [Coverage.of(best_overlaps(val_set, s, config.data), threshold) for s in (config.anchors, fit.spec)]
    if not val_set.ignore.all():
        console.print(f"on {val_set.name}, not fitted to: {held_out[0].share:.1%} → {held_out[1].share:.1%}")
    _print_assignment(sample, config, fit.spec)

    was, now = (_coverage(train_set, overlaps, threshold) for overlaps in (before, after))
    _print_resolution(sample, config, fit.spec, after, size)
    write_text(arguments.out, _fragment(arguments, train_set, fit.spec, was, now))
    objects = ~train_set.ignore
    picture = arguments.out.with_suffix(".png")
    draw_fit(picture, size[objects], (before[objects], after[objects]), (config.anchors, fit.spec), threshold)
    console.print(f"wrote {arguments.out}; picture in {picture}")
    worth = now.close >= was.close + AS_GOOD
    if worth:
        command = f"--recipe {quoted(arguments.out)}"
    else:
        console.print("the anchors that are there fit your boxes as well (within 0.5 %): leave them as they are")
        command = f"--recipe {quoted(arguments.recipe)}"
    flags = changed_flags(config, base, ("data", "assign") if worth else ("data", "assign", "anchors"))
    print_next(" ".join([f"retinanet train {quoted(arguments.dataset)}", command, *flags]))
    return 0


def _check(arguments: Arguments) -> None:
    for name in ("scales", "ratios"):
        value = getattr(arguments, name)
        if not 1 <= value <= 6:
            raise ConfigError(f"--{name} is {value}; use 1 to 6")
    if arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}; it cannot be negative")
    if arguments.out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {arguments.out}: give the name of a YAML file, such as anchors.yaml")
    if not _bundled(arguments.recipe) and arguments.out.resolve() == Path(arguments.recipe).resolve():
        raise ConfigError(f"--out {arguments.out} is the recipe to start from; write to another file")


def _bundled(recipe: str) -> bool:
    return (RECIPES / f"{recipe}.yaml").is_file() and Path(recipe).name == recipe


def _sample(dataset: Dataset, seed: int) -> Dataset:
    """Images, chosen at random, that hold about ``_ENOUGH`` objects; all if there are not as many."""
    import numpy as np

    objects = np.concatenate([[0], np.cumsum(~dataset.ignore)])[dataset.offsets]
    if objects[-1] <= _ENOUGH:
        return dataset
    order = np.random.default_rng(seed).permutation(len(dataset))
    enough = int(np.searchsorted(np.cumsum(np.diff(objects)[order]), _ENOUGH)) + 1
    chosen = dataset.subset(np.sort(order[:enough]))
    console.print(f"searching with {int((~chosen.ignore).sum())} boxes of {enough} images, chosen at random")
    return chosen


def _objects(dataset: Dataset, data: DataConfig) -> Any:
    from retinanet.anchors.fit import ScaledBoxes

    return ScaledBoxes.of(dataset, data)[~dataset.ignore]


def _weights(dataset: Dataset) -> Floats:
    """Of the boxes that are no ignore regions: each class counts alike, as it does in AP."""
    from retinanet.anchors.search import class_weights

    return class_weights(dataset.labels[~dataset.ignore])


def _coverage(dataset: Dataset, overlaps: Floats, threshold: float) -> Any:
    from retinanet.anchors.search import Coverage

    return Coverage.of(overlaps[~dataset.ignore], threshold, _weights(dataset))


def _print_coverage(dataset: Dataset, config: Config, spec: AnchorSpec, before: Floats, after: Floats) -> Floats:
    """Coverage before and after; returns the boxes' width and height for the network, ``(M, 2)``."""
    import numpy as np

    from retinanet.anchors import make_grid
    from retinanet.anchors.fit import ScaledBoxes
    from retinanet.anchors.search import closer
    from retinanet.data.sample import MIN_SIDE

    scaled = ScaledBoxes.of(dataset, config.data)
    size = scaled.boxes[:, 2:] - scaled.boxes[:, :2]  # (M, 2)
    area = size.prod(axis=1)
    objects = ~dataset.ignore
    tiny = int((size[objects].min(axis=1) < MIN_SIDE).sum())
    if tiny:
        console.print(f"note: {tiny} × a side under {MIN_SIDE:g} pixel at data.size {config.data.size}: not learnt")
    threshold = config.assign.foreground

    def line(name: str, chosen: npt.NDArray[np.bool_], least: float = threshold) -> None:
        if chosen.any():
            shares = [(values[chosen] >= least).mean() for values in (before, after)]
            console.print(f"  {name:<34}{chosen.sum():>8}{shares[0]:>9.1%}{shares[1]:>9.1%}")

    console.print(f"share of boxes with an anchor of IoU ≥ {threshold:g}, at data.size {config.data.size}:")
    console.print(f"  {'':<34}{'boxes':>8}{'before':>9}{'fitted':>9}")
    line("all", objects)
    line("small (under 32×32 pixels)", objects & (area < 32**2))
    line("medium", objects & (area >= 32**2) & (area < 96**2))
    line("large (96×96 and more)", objects & (area >= 96**2))
    of_class = [objects & (dataset.labels == label) for label in range(len(dataset.classes))]
    used = [label for label, rows in enumerate(of_class) if rows.any()]
    used.sort(key=lambda label: (before[of_class[label]] >= threshold).mean())
    for label in used[:_CLASSES] if len(dataset.classes) > 1 else ():
        name = dataset.classes[label]
        line(name if len(name) <= 32 else f"{name[:31]}…", of_class[label])
    if len(used) > _CLASSES:
        console.print(f"  … and {len(used) - _CLASSES} classes that were covered better")
    for least in (0.4, 0.5, 0.6, 0.7):
        line(f"all, IoU ≥ {least:g}", objects, least)
    if (after[objects] >= 0.7).mean() < (before[objects] >= 0.7).mean() - 0.05:
        console.print("  note: to reach more boxes, the anchors are spread more thinly; fewer boxes have a close one.")
        console.print("  More --scales or --ratios lessen that, at the cost of more anchors.")
    found = [_coverage(dataset, values, threshold) for values in (before, after)]
    for name, of in (("mean IoU", [each.mean for each in found]), ("closeness", [each.close for each in found])):
        console.print(f"  {name:<34}{'':>8}{of[0]:>9.3f}{of[1]:>9.3f}")
    shares = ", ".join(f"{value:g}" for value in closer(threshold))
    classes = " and over the classes" if len(used) > 1 else ""
    console.print(f"  (closeness, which is fitted: the mean of the shares at IoU ≥ {shares}{classes})")
    console.print(f"  {'anchors per location':<42}{config.anchors.per_location:>9}{spec.per_location:>9}")
    median = np.median(scaled.canvas, axis=0).astype(int)
    pixels = (int(median[0]), int(median[1]))
    counts = [len(make_grid(each, pixels).boxes) for each in (config.anchors, spec)]
    console.print(f"  {f'anchors in a {pixels[1]}×{pixels[0]} image':<42}{counts[0]:>9}{counts[1]:>9}")
    for name in ("sizes", "scales", "ratios"):
        console.print(f"fitted {name}: {', '.join(f'{value:g}' for value in getattr(spec, name))}")
    return size


def _print_other_numbers(table: dict[tuple[int, int], Any]) -> None:
    """What the best anchors of each number cover."""
    scales, ratios = max(table)
    if (scales, ratios) == (1, 1):
        return
    console.print("what fewer anchors cover when fitted, by scales (down) and ratios (across):")
    console.print("  " + " " * 4 + "".join(f"{r:>8}" for r in range(1, ratios + 1)))
    for s in range(1, scales + 1):
        console.print(f"  {s:>4}" + "".join(f"{table[s, r].share:>8.1%}" for r in range(1, ratios + 1)))


def _print_assignment(sample: Dataset, config: Config, spec: AnchorSpec) -> None:
    """What the rule of the training makes of both."""
    import numpy as np

    from retinanet.anchors.fit import positives
    from retinanet.progress import progress_bar

    said = []
    with progress_bar(console, "assigning anchors", 2 * len(sample)) as bar:
        for anchors in (config.anchors, spec):
            counts = positives(sample, replace(config, anchors=anchors), bar.advance)[~sample.ignore]
            said.append(f"median {int(np.median(counts))}, {(counts == 0).mean():.1%} of the boxes none")
    console.print(f"anchors that a box learns from under --assign.method {config.assign.method}: ", end="")
    console.print(f"{said[0]} → {said[1]}")
    if config.assign.method == "atss":
        console.print("  (ATSS has no IoU threshold: there, coverage says how far boxes are from where they start)")


def _print_resolution(sample: Dataset, config: Config, spec: AnchorSpec, after: Floats, size: Floats) -> None:
    """Whether boxes are left that no anchors on this network's pyramid cover, and what would."""
    import numpy as np

    from retinanet.anchors.search import refit

    known = ~np.isnan(after)
    missed = known & (after < config.assign.foreground)
    share = missed.sum() / known.sum()
    if share <= 1 - _WELL_COVERED:
        console.print(f"data.size {config.data.size} is enough: only {share:.1%} of the boxes stay uncovered")
        return
    stride = config.anchors.strides[0]
    small = (size[missed].min(axis=1) < 2 * stride).mean()
    console.print(
        f"{share:.1%} of the boxes stay uncovered; {small:.0%} of them have a side under {2 * stride} pixels, "
        f"for which anchors {stride} pixels apart (P3) are coarse"
    )
    threshold, weights = config.assign.foreground, _weights(sample)
    now = refit(_objects(sample, config.data), spec, threshold, weights).share
    larger_covers = {}
    for factor in (1.5, 2.0):
        larger = round(config.data.size * factor / 32) * 32
        if larger <= 8192:
            longest = config.data.max_size and round(config.data.max_size * larger / config.data.size)
            data = replace(config.data, size=larger, max_size=longest)
            larger_covers[larger] = refit(_objects(sample, data), spec, threshold, weights).share
    if max(larger_covers.values(), default=0) < now + 0.01:
        console.print("a larger --data.size would not help: their shapes are too different for so few anchors")
        return
    console.print(
        f"they need stride {stride // 2}, which this network does not have (P3 to P7). Instead, fitted again:"
    )
    for larger, covers in larger_covers.items():
        cost = (larger / config.data.size) ** 2
        console.print(f"  --data.size {larger} would cover {covers:.1%}, at {cost:.1f} × the computation")
    console.print("  or cut the pictures into tiles and train on those")


def _fragment(arguments: Arguments, dataset: Dataset, spec: AnchorSpec, before: Any, after: Any) -> str:
    """The recipe: only ``anchors``, on top of the recipe that was started from."""
    import yaml

    start = arguments.recipe
    if not _bundled(start):
        start = os.path.relpath(Path(start).resolve(), arguments.out.resolve().parent)
    values = {name: list(getattr(spec, name)) for name in ("sizes", "scales", "ratios")}
    recipe = {"recipe": start, "anchors": {**values, "layout": spec.layout}}
    name = " ".join(dataset.name.split())  # a line break would end the comment
    size, threshold = arguments.data.size, arguments.assign.foreground
    return (
        f"# Anchors fitted to {name} at data.size {size}.\n"
        f"# Boxes with an anchor of IoU >= {threshold:g}: {before.share:.1%} before, {after.share:.1%} with these.\n"
        + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, allow_unicode=True)
    )
