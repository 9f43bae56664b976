"""What was measured: read from the folders of the runs, kept as JSON, and the source of every page and plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retinanet.errors import CheckpointError, RetinaNetError
from retinanet.reproduce.plan import Run
from retinanet.reproduce.worker import FAILURE, SECONDS
from retinanet.training.log import read_lines
from retinanet.zoo.weights import read_info

SHARES = ("share_foreground", "share_hard", "share_easy")

# Losses of the first steps are kept, for the curves of ``divergence``; shares are a mean of the last measurements.
_STEPS, _MEASUREMENTS = 300, 5


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        seed: of the run.
        folder: its name.
        ap: of the last weights, 0–1; None if the training diverged.
        ap50: AP at IoU 0.5.
        ap75: AP at IoU 0.75.
        seconds: of training and evaluation; None where a process was killed before it could say.
        images: shown in training.
        diverged: the step at which the loss was NaN or infinite.
        shares: who owned the classification loss at the end: foreground, hard and easy background.
        losses: of the first steps.
    """

    seed: int
    folder: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds: float | None
    images: int
    diverged: int | None = None
    shares: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A row of a table with what was measured for it.

    Attributes:
        setting: what a reader calls it.
        paper: the paper's COCO AP, in points.
        paper_ms: the paper's milliseconds.
        paper_diverges: the paper says that this training diverges.
        flags: what differs from the base, as flags of ``retinanet train``.
        runs: those that are done.
    """

    setting: str
    paper: float | None
    flags: str
    paper_ms: float | None = None
    paper_diverges: bool = False
    runs: list[Outcome] = field(default_factory=list)

    def aps(self) -> list[float]:
        """AP of the runs that did not diverge, in points."""
        return [100 * run.ap for run in self.runs if run.ap is not None]

    def mean(self) -> float | None:
        """Their mean; None if there is none."""
        return statistics.mean(self.aps()) if self.aps() else None

    def standing(self) -> float | None:
        """What settings are put in order by: the mean AP, where a run that diverged found nothing; None if not run."""
        found = _here(self)
        return statistics.mean(found) if found else None

    @property
    def diverged(self) -> int:
        """Number of runs whose loss became NaN or infinite."""
        return sum(run.diverged is not None for run in self.runs)


@dataclass(frozen=True)
class Results:
    """All that a page says.

    Attributes:
        name: of the experiment.
        title: its heading.
        claim: what the paper says.
        where: the setting of the paper's numbers.
        note: what a reader must know of the rows.
        command: what makes the page again.
        scale: small or paper.
        data: name of the dataset.
        train_images: how many there are to train on.
        val_images: and to measure on.
        base: the settings that every row starts from.
        base_flags: what of them differs from the recipe ``paper``, as flags of ``retinanet train``.
        machine: processor, cores and versions.
        seeds: asked for.
        rows: the table.
        extra: what a figure measured besides.
    """

    name: str
    title: str
    claim: str
    where: str
    note: str
    command: str
    scale: str
    data: str
    train_images: int
    val_images: int
    base: dict[str, Any]
    base_flags: str
    machine: str
    seeds: list[int]
    rows: list[Measured] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As ``NAME.json`` holds it."""
        return asdict(self)


def outcome(run: Run) -> Outcome | None:
    """How ``run`` ended; None if it has not yet."""
    folder, seed = run.folder, run.config.train.seed
    log = folder / "metrics.jsonl"
    lines = read_lines(log) if log.exists() else []
    steps = [line for line in lines if "loss" in line]
    losses = [line["loss"] for line in steps[:_STEPS]]
    measured = [line for line in steps if SHARES[0] in line][-_MEASUREMENTS:]
    shares = {key: round(statistics.mean(line[key] for line in measured), 4) for key in SHARES if measured}
    seconds = _seconds(folder)
    if (folder / FAILURE).exists():
        step = int(_read(folder / FAILURE, dict)["step"])
        seen = min(run.images, step * run.config.train.batch)
        return Outcome(seed, folder.name, None, None, None, seconds, seen, step, shares, losses)
    last = folder / "last.safetensors"
    if not last.exists():
        return None
    try:
        info = read_info(last)
    except CheckpointError as error:
        raise RetinaNetError(f"{error}; remove {folder} to train it anew") from error
    if not info.progress.get("finished"):
        return None
    ap, ap50, ap75 = (info.metrics[key] for key in ("AP", "AP50", "AP75"))
    return Outcome(seed, folder.name, ap, ap50, ap75, seconds, run.images, None, shares, losses)


def _seconds(folder: Path) -> float | None:
    path = folder / SECONDS
    seconds: float | None = _read(path, int | float | None) if path.exists() else None
    return seconds


def _read(path: Path, kind: Any) -> Any:
    """What a run's process wrote, which has to be of ``kind``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RetinaNetError(f"{path}: cannot be read ({error}); remove {path.parent} to train it anew") from error
    if not isinstance(found, kind) or (kind is dict and not isinstance(found.get("step"), int)):
        raise RetinaNetError(f"{path}: not as a training writes it; remove {path.parent} to train it anew")
    return found


def images_done(run: Run) -> int:
    """Pictures that a run in progress has seen, by the last line of its log."""
    path = run.folder / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            end = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return 0
    for text in reversed(end):
        try:
            step = json.loads(text)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):  # a line cut in two
            continue
        return int(min(run.images, step * run.config.train.batch))
    return 0


def refuse_other_results(
    path: Path, data: str, scale: str, seeds: Sequence[int], settings: dict[str, Any] | None = None
) -> None:
    """Keep results from replacing others that more was spent on, or of other data.

    Args:
        path: of the JSON to be written.
        data: name of the dataset.
        scale: small or paper.
        seeds: of the results to be written; it may be more than there were.
        settings: what else has to be the same there: attributes of :class:`Results`.

    Raises:
        RetinaNetError: ``path`` holds results of other data, at another scale, of further seeds or from other settings.
    """
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = (found["data"], found["scale"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RetinaNetError(f"{path}: not results of this command; choose another --out") from error
    if there != (data, scale):
        raise RetinaNetError(
            f"{path} holds results of {there[0]} at {there[1]} scale, not of {data} at {scale} scale; "
            "choose another --out, or move it"
        )
    asked = json.loads(json.dumps(settings or {}))  # lists for tuples
    if any(found.get(key) != value for key, value in asked.items()):
        raise RetinaNetError(
            f"{path} holds results of {data} from other trainings (--images, --recipe, or other pictures); choose "
            "another --out, or move it"
        )
    if lost := sorted(set(found.get("seeds", [])) - set(seeds)):
        every = " ".join(map(str, sorted({*lost, *seeds})))
        raise RetinaNetError(
            f"{path} holds results of more seeds; ask for them too (--seeds {every}), choose another --out, or move it"
        )


def refuse_fewer_runs(path: Path, results: Results) -> None:
    """Keep results from replacing those of more trainings, as where the folder of the runs lies elsewhere.

    Raises:
        RetinaNetError: ``path``, which is a file of :func:`refuse_other_results`, has more runs than ``results``.
    """
    if not path.exists():
        return
    rows = json.loads(path.read_text(encoding="utf-8")).get("rows", [])
    there, here = sum(len(row["runs"]) for row in rows), sum(len(row.runs) for row in results.rows)
    if there > here and results.rows:
        raise RetinaNetError(
            f"{path} holds results of {there} runs, and {here} are done in this --runs folder; finish the others, "
            "choose another --out, or move it"
        )


def pairs_in_order(rows: Sequence[Measured]) -> tuple[int, int, int, int]:
    """How far the order of the settings here agrees with the paper's.

    Only pairs that differ in the paper and were measured here count. A run that diverged counts as one that found
    nothing, as a diverging setting of the paper does.

    Returns:
        Pairs; those in the paper's order by their means; pairs told apart here (several runs each, whose APs do not
        overlap); those of them in the paper's order.
    """
    ranked = [(paper, aps) for row in rows if (paper := _paper(row)) is not None and (aps := _here(row))]
    pairs = agree = apart = apart_agree = 0
    for i, (paper, aps) in enumerate(ranked):
        for other_paper, others in ranked[i + 1 :]:
            if paper == other_paper:
                continue
            pairs += 1
            difference = statistics.mean(aps) - statistics.mean(others)
            right = difference * (paper - other_paper) > 0
            agree += right
            several = min(len(aps), len(others)) > 1  # single runs always lie apart
            if several and (min(aps) > max(others) or max(aps) < min(others)):
                apart += 1
                apart_agree += right
    return pairs, agree, apart, apart_agree


def _paper(row: Measured) -> float | None:
    return -1.0 if row.paper_diverges else row.paper


def _here(row: Measured) -> list[float]:
    """APs of the seeds; one that diverged found nothing, and is below all that did not diverge."""
    return row.aps() + [-1.0] * row.diverged
