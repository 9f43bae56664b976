"""Results of an experiment, read from the folders of the runs and stored as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retinanet.config import Config
from retinanet.errors import CheckpointError, RetinaNetError
from retinanet.reproduce.plan import Run
from retinanet.reproduce.worker import FAILURE, SECONDS
from retinanet.training.log import read_lines
from retinanet.zoo.weights import read_info

SHARES = ("share_foreground", "share_hard", "share_easy")

# The losses of this many first steps are kept, for the curves of ``divergence``. The loss shares are the mean of this
# many last measurements.
_STEPS, _MEASUREMENTS = 300, 5


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        seed: the seed of the run.
        folder: the name of its folder.
        ap: AP of the last weights, 0–1. None: the training diverged.
        ap50: AP at IoU 0.5.
        ap75: AP at IoU 0.75.
        seconds: duration of training and evaluation. None: a process was killed before it recorded the time.
        images: number of images shown in training.
        diverged: the step at which the loss was NaN or infinite.
        shares: shares of the classification loss at the end: foreground, hard background, easy background.
        losses: the losses of the first steps.
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
class MeasuredRow:
    """A row of a table with its results.

    Attributes:
        setting: the name of the row.
        paper: the paper's COCO AP, in points.
        flags: the changes to the base settings, as flags of ``retinanet train``.
        paper_ms: the paper's milliseconds for each image.
        paper_diverges: the paper reports that this training diverges.
        runs: the finished runs of the row.
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
        """Mean AP in points. None: no run has an AP."""
        return statistics.mean(self.aps()) if self.aps() else None

    def standing(self) -> float | None:
        """The mean AP by which settings are ranked. A diverged run counts as −1. None: there are no runs."""
        found = _aps_with_diverged(self)
        return statistics.mean(found) if found else None

    @property
    def diverged(self) -> int:
        """Number of runs that diverged (loss NaN or infinite)."""
        return sum(run.diverged is not None for run in self.runs)


@dataclass(frozen=True)
class Results:
    """The content of a page of results.

    Attributes:
        name: the name of the experiment.
        title: its heading.
        claim: the paper's statement.
        where: the conditions of the paper's numbers.
        note: a sentence about the rows.
        command: the command that makes the page again.
        scale: small or paper.
        data: name of the dataset.
        train_images: number of images in train.
        val_images: number of images in val.
        base: the settings that every row starts from.
        base_flags: the differences of ``base`` from the recipe ``paper``, as flags of ``retinanet train``.
        machine: processor, cores and versions.
        seeds: the requested seeds.
        rows: the table.
        extra: further measurements of a figure.
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
    rows: list[MeasuredRow] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``NAME.json``."""
        return asdict(self)


def outcome(run: Run) -> Outcome | None:
    """Read how ``run`` ended. None: it has not ended."""
    folder, seed = run.folder, run.config.train.seed
    log = folder / "metrics.jsonl"
    lines = read_lines(log) if log.exists() else []
    steps = [line for line in lines if "loss" in line]
    losses = [line["loss"] for line in steps[:_STEPS]]
    measured = [line for line in steps if SHARES[0] in line][-_MEASUREMENTS:]
    shares = {key: round(statistics.mean(line[key] for line in measured), 4) for key in SHARES if measured}
    seconds = _training_seconds(folder)
    if (folder / FAILURE).exists():
        step = int(_json_content(folder / FAILURE, dict)["step"])
        seen = min(run.images, step * run.config.train.batch)
        return Outcome(seed, folder.name, None, None, None, seconds, seen, step, shares, losses)
    last = folder / "last.safetensors"
    if not last.exists():
        return None
    try:
        info = read_info(last)
    except CheckpointError as error:
        raise RetinaNetError(f"{error}; remove {folder} to train it again") from error
    if not info.progress.get("finished"):
        return None
    ap, ap50, ap75 = (info.metrics[key] for key in ("AP", "AP50", "AP75"))
    return Outcome(seed, folder.name, ap, ap50, ap75, seconds, run.images, None, shares, losses)


def _training_seconds(folder: Path) -> float | None:
    path = folder / SECONDS
    seconds: float | None = _json_content(path, int | float | None) if path.exists() else None
    return seconds


def _json_content(path: Path, kind: Any) -> Any:
    """The content of a JSON file of a run, checked to be of ``kind``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RetinaNetError(f"{path}: cannot be read ({error}); remove {path.parent} to train it again") from error
    if not isinstance(found, kind) or (kind is dict and not isinstance(found.get("step"), int)):
        raise RetinaNetError(f"{path}: not a file of a training; remove {path.parent} to train it again")
    return found


def images_done(run: Run) -> int:
    """Number of images that a run in progress has shown, according to the last line of its log."""
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
        except (json.JSONDecodeError, KeyError, TypeError):  # an incomplete line
            continue
        return int(min(run.images, step * run.config.train.batch))
    return 0


def refuse_other_results(
    path: Path, data: str, scale: str, seeds: Sequence[int], settings: dict[str, Any] | None = None
) -> None:
    """Refuse to replace results of other data, other settings or more seeds.

    Args:
        path: the JSON file to be written.
        data: name of the dataset.
        scale: small or paper.
        seeds: seeds of the new results. They must include those in the file.
        settings: further attributes of :class:`Results` that must be equal.

    Raises:
        RetinaNetError: ``path`` holds results of other data, at another scale, of more seeds or with other settings.
    """
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there = (found["data"], found["scale"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RetinaNetError(f"{path}: not a results file of this command; choose another --out") from error
    if there != (data, scale):
        raise RetinaNetError(
            f"{path} holds results of {there[0]} at {there[1]} scale, not of {data} at {scale} scale; "
            "choose another --out, or move it"
        )
    asked = dict(settings or {})
    for each in (found, asked):  # an earlier version may have written ``found``
        if isinstance(each.get("base"), dict):
            each["base"] = Config.from_dict(each["base"], str(path)).to_dict()
    asked, found = (json.loads(json.dumps(values)) for values in (asked, found))  # tuples become lists
    if any(found.get(key) != value for key, value in asked.items()):
        raise RetinaNetError(
            f"{path} holds results of {data} with other settings (--images, --recipe) or other images; choose "
            "another --out, or move it"
        )
    if lost := sorted(set(found.get("seeds", [])) - set(seeds)):
        every = " ".join(map(str, sorted({*lost, *seeds})))
        raise RetinaNetError(
            f"{path} holds results of more seeds; include them (--seeds {every}), choose another --out, or move it"
        )


def refuse_fewer_runs(path: Path, results: Results) -> None:
    """Refuse to replace results of more runs, for example when --runs names another folder.

    Raises:
        RetinaNetError: the results file ``path`` has more runs than ``results``.
    """
    if not path.exists():
        return
    rows = json.loads(path.read_text(encoding="utf-8")).get("rows", [])
    there, here = sum(len(row["runs"]) for row in rows), sum(len(row.runs) for row in results.rows)
    if there > here and results.rows:
        raise RetinaNetError(
            f"{path} holds results of {there} runs, but the --runs folder has only {here}; finish the others, "
            "choose another --out, or move it"
        )


def pairs_in_order(rows: Sequence[MeasuredRow]) -> tuple[int, int, int, int]:
    """Count the pairs of settings whose order agrees with the paper's.

    A pair does not count if both rows have equal AP in the paper, or if either row has no run here. A diverged run has
    AP −1, here and in the paper.

    Returns:
        Number of pairs; number of pairs whose means have the paper's order; number of separated pairs (both
        rows have several runs, and their ranges of AP do not overlap); number of separated pairs in the paper's order.
    """
    ranked = [
        (paper, aps)
        for row in rows
        if (paper := _ranked_paper_ap(row)) is not None and (aps := _aps_with_diverged(row))
    ]
    pairs = agree = apart = apart_agree = 0
    for i, (paper, aps) in enumerate(ranked):
        for other_paper, others in ranked[i + 1 :]:
            if paper == other_paper:
                continue
            pairs += 1
            difference = statistics.mean(aps) - statistics.mean(others)
            same_order = difference * (paper - other_paper) > 0
            agree += same_order
            several = min(len(aps), len(others)) > 1  # the ranges of single runs never overlap
            if several and (min(aps) > max(others) or max(aps) < min(others)):
                apart += 1
                apart_agree += same_order
    return pairs, agree, apart, apart_agree


def _ranked_paper_ap(row: MeasuredRow) -> float | None:
    return -1.0 if row.paper_diverges else row.paper


def _aps_with_diverged(row: MeasuredRow) -> list[float]:
    """APs of the runs in points. Diverged runs count as −1, which is below every other run."""
    return row.aps() + [-1.0] * row.diverged
