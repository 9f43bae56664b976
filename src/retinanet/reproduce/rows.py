"""The rows of the paper's tables and figures: settings of each row, and its AP in the paper.

The paper is *Focal Loss for Dense Object Detection*, https://arxiv.org/abs/1708.02002v2. Rows of different tables with
equal settings share one training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinanet.errors import ConfigError

# Settings by group, as in a recipe: {"loss": {"gamma": 2.0}}.
Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One setting of a comparison.

    Attributes:
        setting: the name of the row in tables.
        ap: COCO AP in the paper, in points. None: the paper has no number.
        changes: changes to the base settings at both scales.
        paper: further changes on COCO.
        small: further changes at small scale. None: the row has no counterpart there.
        milliseconds: time for each image in the paper, on an M40.
        extra: train this row only with ``--every-row``.
        diverges: the paper reports that this training diverges.
        here: the name of the row at small scale, if it differs.
    """

    setting: str
    ap: float | None
    changes: Changes = field(default_factory=dict)
    paper: Changes = field(default_factory=dict)
    small: Changes | None = field(default_factory=dict)
    milliseconds: float | None = None
    extra: bool = False
    diverges: bool = False
    here: str = ""

    def name(self, small: bool) -> str:
        """The name of the row at this scale."""
        return self.here if small and self.here else self.setting


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        name: the argument of ``retinanet reproduce``.
        title: the heading of its page.
        summary: one line for the list.
        claim: the paper's statement, in a sentence.
        where: the conditions of the paper's numbers.
        rows: the trainings. Empty: nothing is trained.
        note: a sentence about the rows at small scale.
    """

    name: str
    title: str
    summary: str
    claim: str
    where: str = "COCO minival, R-50, 600 px"
    rows: tuple[Row, ...] = ()
    note: str = ""

    def chosen(self, every: bool, small: bool) -> tuple[Row, ...]:
        """The rows to train. Extra rows need ``every``; at small scale, rows without a counterpart are left out."""
        return tuple(row for row in self.rows if (every or not row.extra) and not (small and row.small is None))


_R50_600: Changes = {"data": {"size": 600}}
# The paper's subnets have no norm. The group norm of small.yaml would prevent the divergence. Without group norm, the
# learning rate must be lower.
_PLAIN_SUBNETS: Changes = {"model": {"subnet_norm": "none"}, "train": {"lr": 0.01}}
_R101_600: Changes = {"model": {"backbone": "resnet101.tv_in1k"}, "data": {"size": 600}}


def _focal(gamma: float, alpha: float, ap: float) -> Row:
    return Row(f"FL, γ = {gamma:g}, α = {alpha:g}", ap, {"loss": {"gamma": gamma, "alpha": alpha}}, _R50_600)


def _balanced(alpha: float, ap: float, setting: str = "") -> Row:
    changes = {"loss": {"classification": "alpha_ce", "alpha": alpha}}
    return Row(setting or f"α-CE, α = {alpha:g}", ap, changes, _R50_600)


def _anchors(scales: int, ratios: int, ap: float) -> Row:
    # 3 scales × 3 ratios are exactly the defaults, so this row shares the training of FL in the other tables.
    changes = {
        "anchors": {
            "scales": tuple(2 ** (i / scales) for i in range(scales)),
            "ratios": (0.5, 1.0, 2.0) if ratios == 3 else (1.0,),
        }
    }
    return Row(f"{scales} scale{'s' * (scales > 1)} × {ratios} ratio{'s' * (ratios > 1)}", ap, changes, _R50_600)


def _mined(ratio: str, batch: int, nms: float, ap: float, extra: bool = True) -> Row:
    kind = {"": "ohem", " 1:3": "ohem_1_3"}[ratio]
    changes = {"loss": {"classification": kind, "ohem_batch": batch, "ohem_nms": nms}}
    return Row(f"OHEM{ratio}, batch {batch}, NMS {nms:g}", ap, changes, _R101_600, extra=extra)


def _sized(depth: int, size: int, ap: float, milliseconds: float) -> Row:
    """A row of Table 1e. At small scale, sizes are multiplied by 320 / 800 (small.yaml has 320 pixels)."""
    backbone: Changes = {"model": {"backbone": "resnet101.tv_in1k"}} if depth == 101 else {}
    own = round(size * 0.4)
    small: Changes | None = {"data": {"size": own, "max_size": own * 4 // 3}} if depth == 50 else None
    full: Changes = {**backbone, "data": {"size": size}}
    setting = f"R-{depth}, {size} px"
    return Row(setting, ap, {}, full, small, milliseconds, here=f"{own} px (for {setting})")


def _with_prior(loss: str, prior: float, ap: float | None, diverges: bool = False) -> Row:
    changes: dict[str, dict[str, Any]] = {} if loss == "FL" else {"loss": {"classification": "ce"}}
    if prior != 0.01:
        changes["model"] = {"prior": prior}
    setting = f"{loss}, π = {prior:g}" + (" (no prior)" if prior == 0.5 else "")
    return Row(setting, ap, changes, _R50_600, _PLAIN_SUBNETS, diverges=diverges)


_SIZES = (
    *(_sized(50, *row) for row in ((400, 30.5, 64), (500, 32.5, 72), (600, 34.3, 98), (700, 35.1, 121))),
    _sized(50, 800, 35.7, 153),
    *(_sized(101, *row) for row in ((400, 31.9, 81), (500, 34.4, 90), (600, 36.0, 122), (700, 37.1, 154))),
    _sized(101, 800, 37.8, 198),
)
_TEST_DEV = "COCO test-dev, R-50 and R-101"

_ALL = (
    Experiment(
        "table1a",
        "Table 1a: the α of balanced cross entropy",
        "balanced cross entropy: seven values of α",
        "The best α of cross entropy is 0.75. With very small values the network learns nothing.",
        rows=tuple(
            _balanced(alpha, ap)
            for alpha, ap in (
                (0.1, 0.0),
                (0.25, 10.8),
                (0.5, 30.2),
                (0.75, 31.1),
                (0.9, 30.8),
                (0.99, 28.7),
                (0.999, 25.1),
            )
        ),
    ),
    Experiment(
        "table1b",
        "Table 1b: the γ of the focal loss, each with its best α",
        "focal loss: seven values of γ, each with the best α of the paper",
        "The focal loss beats balanced cross entropy (γ = 0) for every γ in this table. The best, γ = 2, gains 2.9 AP.",
        rows=(
            _balanced(0.75, 31.1, "FL, γ = 0, α = 0.75 (α-CE)"),
            *(_focal(*row) for row in ((0.1, 0.75, 31.4), (0.2, 0.75, 31.9), (0.5, 0.5, 32.9), (1, 0.25, 33.7))),
            _focal(2, 0.25, 34.0),
            _focal(5, 0.25, 32.2),
        ),
    ),
    Experiment(
        "table1c",
        "Table 1c: scales and aspect ratios of the anchors",
        "anchors: one to four scales, one or three aspect ratios",
        "A single anchor does surprisingly well. Two or three scales with three ratios gain nearly 4 AP, further "
        "scales gain nothing.",
        rows=tuple(
            _anchors(*row)
            for row in (
                (1, 1, 30.3),
                (2, 1, 31.9),
                (3, 1, 31.8),
                (1, 3, 32.4),
                (2, 3, 34.2),
                (3, 3, 34.0),
                (4, 3, 33.8),
            )
        ),
    ),
    Experiment(
        "table1d",
        "Table 1d: online hard example mining against the focal loss",
        "OHEM and OHEM 1:3 with their best settings against the focal loss (--every-row: all settings)",
        "Online hard example mining at its best (batch 128, NMS 0.5) is 3.2 AP behind the focal loss.",
        "COCO minival, R-101, 600 px",
        (
            *(_mined("", *row) for row in ((128, 0.7, 31.1), (256, 0.7, 31.8), (512, 0.7, 30.6))),
            _mined("", 128, 0.5, 32.8, extra=False),
            *(_mined("", *row) for row in ((256, 0.5, 31.0), (512, 0.5, 27.6))),
            _mined(" 1:3", 128, 0.5, 31.1, extra=False),
            *(_mined(" 1:3", *row) for row in ((256, 0.5, 28.3), (512, 0.5, 24.0))),
            Row("FL, γ = 2, α = 0.25", 36.0, {}, _R101_600),
        ),
    ),
    Experiment(
        "table1e",
        "Table 1e: accuracy by input size",
        "AP at five input sizes (fig2 adds the speed)",
        "Larger inputs and deeper networks are more accurate, and slower.",
        _TEST_DEV,
        _SIZES,
    ),
    Experiment(
        "table3",
        "Table 3: FL*, the alternative focal loss",
        "FL and two settings of FL*",
        "FL* (appendix A) is as good as FL: any loss that discounts well-classified examples works.",
        rows=(
            _focal(2, 0.25, 34.0),
            *(
                Row(
                    f"FL*, γ = {gamma:g}, β = {beta:g}",
                    ap,
                    {"loss": {"classification": "focal_star", "gamma": gamma, "star_beta": beta}},
                    _R50_600,
                )
                for gamma, beta, ap in ((2.0, 1.0, 33.8), (4.0, 0.0, 33.9))
            ),
        ),
    ),
    Experiment(
        "fig1",
        "Figure 1: the focal loss against the probability of the true class",
        "the loss curves for five γ, and those of FL* (Figure 5), without training",
        "With γ = 2, the loss of an example with p_t = 0.9 is 100 times lower than its cross entropy, and 1000 times "
        "lower at p_t ≈ 0.968 (section 3.2).",
    ),
    Experiment(
        "fig2",
        "Figure 2: speed against accuracy",
        "AP and milliseconds per image at five input sizes, measured on this machine",
        "More accurate settings are slower. RetinaNet's curve lies above those of the earlier detectors.",
        _TEST_DEV,
        _SIZES,
    ),
    Experiment(
        "fig4",
        "Figure 4: distribution of the loss of a trained model",
        "cumulative loss of foreground and background anchors, from easy to hard, for four γ",
        "γ hardly changes the distribution among foreground anchors. With γ = 2, the vast majority of the background's "
        "loss comes from a small fraction of hard anchors.",
        "COCO, R-101, 600 px, trained with γ = 2",
        (Row("FL, γ = 2, α = 0.25", 36.0, {}, _R101_600),),
    ),
    Experiment(
        "divergence",
        "The prior π of the initialization (sections 3.3 and 4.1)",
        "loss curves and AP with π = 0.01 and with π = 0.5, for cross entropy and focal loss",
        "Cross entropy without the prior diverges; with π = 0.01 it trains (AP 30.2; α-CE with α = 0.5 in Table 1a).",
        rows=(
            _with_prior("CE", 0.5, None, diverges=True),
            _with_prior("CE", 0.01, 30.2),
            _with_prior("FL", 0.5, None),
            _with_prior("FL", 0.01, 34.0),
        ),
        note="All rows have subnets without group norm, as in the paper, and a quarter of the base's learning rate.",
    ),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def find_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments with these names, each once. ``all`` selects every experiment.

    Raises:
        ConfigError: there is no experiment of that name.
    """
    for name in names:
        if name not in (*EXPERIMENTS, "all"):
            near = difflib.get_close_matches(name, [*EXPERIMENTS, "all"], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(EXPERIMENTS)}, all"
            raise ConfigError(f"there is no experiment {name!r}; {hint}")
    return [EXPERIMENTS[name] for name in EXPERIMENTS if name in names or "all" in names]
