"""What was asked for: experiments, data, seeds; and the runs, flags and commands that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.flags import changed_flags, quoted
from retinanet.reproduce.plan import Plan, Run
from retinanet.reproduce.rows import Experiment, Row

GROUPS = ("model", "anchors", "assign", "loss", "data", "train", "decode")


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        experiments: what to reproduce.
        plan: how rows become runs.
        seeds: of each row.
        out: folder of the results.
        every_row: also the rows that are left out by default.
        weights: a trained model for Figure 4; unset: the run of its row.
        command: the words that ask for an experiment again, after its name.
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
        """Every training that is needed, once."""
        # Figure 4 looks at one model
        single = [run for e in self.experiments if e.name == "fig4" for run in self._of(e, self.seeds[:1])]
        several = [e for e in self.experiments if e.name != "fig4"]
        rows = [row for experiment in several for row in self.rows(experiment)]
        runs = [*self.plan.all_runs(rows, self.seeds), *single]
        return list({run.folder: run for run in runs}.values())

    def _of(self, experiment: Experiment, seeds: Sequence[int]) -> list[Run]:
        return self.plan.all_runs(self.rows(experiment), seeds)


def flags(plan: Plan, row: Row) -> str:
    """What a row changes, as flags of ``retinanet train``."""
    base = plan.config(Row("", None, small={}), plan.base.train.seed)
    return " ".join(changed_flags(plan.config(row, plan.base.train.seed), base, GROUPS))


def paper_commands(order: Order) -> list[tuple[Experiment, Row, str]]:
    """``retinanet train …`` for each row and seed, as one would type it for COCO."""
    found = []
    for experiment in order.experiments:
        for row in order.rows(experiment):
            for seed in order.seeds:
                run = order.plan.run(row, seed)
                changes = [text for text in (flags(order.plan, row), f"--train.seed {seed}" * (seed != 0)) if text]
                start = ["retinanet train", quoted(run.source.path), "--recipe paper", *changes]
                found.append((experiment, row, " ".join([*start, f"--out {quoted(run.folder)}"])))
    return found
