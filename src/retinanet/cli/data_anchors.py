"""``retinanet data anchors``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from retinanet.cli.terminal import changed_flags, console, describe, new_run, option, parse, print_next, quoted
from retinanet.config import AnchorSpec, AssignConfig, DataConfig
from retinanet.recipes import load_recipe, settings_of


@dataclass(frozen=True)
class Arguments:
    """Fit the sizes, scales and ratios of the anchors to your boxes, and compare the coverage before and after."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (the format is recognized), or its annotation file."""
    out: Annotated[Path, arg(metavar="FILE.yaml")] = Path("anchors.yaml")
    """Recipe to write, for retinanet train --recipe. A plot (PNG) is written beside it."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings to start from: modern, paper, or a YAML file."""
    scales: int = 3
    """Largest number of scales."""
    ratios: int = 3
    """Largest number of aspect ratios."""
    seed: int = 0
    """Seed of the random subset of images that the fit uses if the dataset has more than 10,000 boxes."""
    data: DataConfig = field(default_factory=DataConfig)
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    assign: AssignConfig = field(default_factory=AssignConfig)


def run(argv: Sequence[str]) -> int:
    """``retinanet data anchors DATA``."""
    base = load_recipe(option(argv, "--recipe") or "modern")
    default = Arguments(dataset=tyro.MISSING, data=base.data, anchors=base.anchors, assign=base.assign)
    given = parse(Arguments, argv, "retinanet data anchors", default)
    config = replace(base, data=given.data, anchors=given.anchors, assign=given.assign)

    from retinanet.inspection.anchor_fit import fit_anchors
    from retinanet.inspection.anchor_text import fit_lines
    from retinanet.report.anchor_plot import draw_fit

    settings = settings_of(config, ("data", "anchors", "assign"))
    numbers = (given.scales, given.ratios, given.seed)
    fit = fit_anchors(given.dataset, given.out, *numbers, given.recipe, console, **settings)
    describe(fit.train)
    console.print("\n".join(fit_lines(fit)))
    draw_fit(plot := given.out.with_suffix(".png"), *fit.plot_inputs)
    console.print(f"wrote {given.out}; plot in {plot}")
    recipe = given.out if fit.worthwhile else given.recipe
    flags = changed_flags(config, base, ("data", "assign") if fit.worthwhile else ("data", "assign", "anchors"))
    print_next(" ".join([f"retinanet train {quoted(given.dataset)} --recipe {quoted(recipe)}", *flags, *new_run()]))
    return 0
