"""Inspect a dataset before a training: findings, statistics of each split, and a repaired copy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats import write_coco
from retinanet.data.formats.open_dataset import read_tolerantly, with_shared_classes
from retinanet.data.image_memory import ImageMemory
from retinanet.data.pixel_range import with_one_pixel_range
from retinanet.errors import ConfigError, DataError
from retinanet.files import refuse_filled, write_text
from retinanet.inspection.checks import CheckResult, run_checks
from retinanet.inspection.findings import Finding, by_kind
from retinanet.inspection.repair import repair
from retinanet.inspection.splits import without_unions
from retinanet.inspection.survey import Balance, Survey, coverage_findings
from retinanet.inspection.tile_advice import advised_tile, tile_findings
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import progress_bar
from retinanet.recipes import has_fitted_anchors, resolve

# If a smaller fraction of the boxes is reached, the command proposes to fit the anchors.
_WELL_REACHED = 0.9


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """Result of inspecting a dataset.

    Attributes:
        name: name of the dataset.
        splits: the inspected splits, train first, with one list of classes.
        unions: each split that is the union of other splits (such as VOC's ``trainval``), and the names of those other
            splits. Unions are not inspected.
        findings: the most important first.
        surveys: statistics of each split.
        loss_balance: sentences about positive anchors and background in the first split, and about their loss.
        config: the settings that were used.
        checked: results of the checks that a repair needs.
        notes: notes about images that were not decoded again.
    """

    name: str
    splits: dict[str, Dataset]
    unions: dict[str, list[str]]
    findings: list[Finding]
    surveys: dict[str, Survey]
    loss_balance: list[str]
    config: Config
    checked: CheckResult
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = Counter(finding.severity for finding in self.findings)
        return f"<Inspection of {self.name}: " + ", ".join(f"{n} {severity}s" for severity, n in counts.items()) + ">"

    @property
    def train(self) -> Survey:
        """Statistics of the training split, or of the first split if there is none."""
        return next(iter(self.surveys.values()))

    @property
    def needs_anchors(self) -> bool:
        """Whether anchors should be fitted: those of a recipe are assigned by IoU, and miss a tenth of the boxes."""
        by_iou = self.config.assign.method == "iou" and not has_fitted_anchors(self.config)
        return by_iou and self.train.reached < _WELL_REACHED

    @property
    def advised_tile(self) -> int | None:
        """The ``data.tile`` that a training should use; ``None`` if it needs no tiles, or has them."""
        return advised_tile(self.train.dataset, self.config.data)

    @property
    def max_detections(self) -> int:
        """The limit on detections per image that a training would choose."""
        return self.config.decode.resolved(int(self.train.per_image.max())).max_detections

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``findings.json``."""
        return {
            "splits": {split: survey.to_dict() for split, survey in self.surveys.items()},
            "max_detections": self.max_detections,
            "findings": [finding.to_dict() for finding in self.findings],
        }


@explain_missing_packages("retinanet.inspect")
def inspect(
    dataset: str | Path,
    fix: str | Path | None = None,
    recipe: str | Config = "modern",
    console: Console | None = None,
    **settings: Any,
) -> Inspection:
    """Inspect a dataset: find defects, and measure how well the anchors cover its boxes.

    Every image of every split is decoded once, unless an earlier run has decoded it. Defects never raise an error;
    they are findings.

    Args:
        dataset: folder or annotation file of a COCO, Pascal VOC, YOLO or CSV dataset.
        fix: also write a repaired copy to this folder, see :func:`write_repaired`.
        recipe: settings of the planned training: ``modern``, ``paper``, a YAML file, or a :class:`Config`.
        console: where progress is shown; unset: on the standard output.
        settings: single settings by the names of their flags, such as ``**{"data.size": 640}``.

    Raises:
        RetinaNetError: there is no such dataset, none of its splits can be read, a setting is invalid, or ``fix``
            cannot be written.
    """
    config = resolve(recipe, settings)
    check_fix_folder(fix)
    console = console or Console()
    read, failures = read_tolerantly(dataset, config.data.train, config.data.val, config.data)
    read, unions = without_unions(read)
    splits = with_one_pixel_range(with_shared_classes(read), config.data.pixel_range)
    own_classes = {split: data.classes for split, data in read.items()}
    whole = Path(dataset).is_dir() and not (config.data.train or config.data.val)
    images = sum(map(len, splits.values()))
    with progress_bar(console, "checking images", images) as bar:
        memory = ImageMemory(trusted=config.data.verify != "always")
        checked = run_checks(splits, failures, own_classes, config.data, whole, bar.advance, memory)
    with progress_bar(console, "assigning anchors", images) as bar:
        surveys = {split: Survey.of(data, config, bar.advance) for split, data in splits.items()}
    findings = [*checked.findings, *_findings_of_train(surveys, config)]
    result = Inspection(
        name=next(iter(splits.values())).title,
        splits=splits,
        unions=unions,
        findings=[finding for group in by_kind(findings).values() for finding in group],
        surveys=surveys,
        loss_balance=_loss_balance(next(iter(surveys.values())), config),
        config=config,
        checked=checked,
        notes=memory.notes(images),
    )
    if fix is not None:
        write_repaired(result, fix, console)
    return result


def check_fix_folder(fix: str | Path | None, out: Path | None = None) -> None:
    """Raise an error if the folder ``fix`` cannot take the repaired copy: it is not empty, or the report goes there."""
    if fix is None:
        return
    if out is not None and Path(fix).absolute() == out.absolute():
        raise ConfigError(f"--fix {fix} is the folder of the report; choose another")
    refuse_filled(Path(fix))


def write_repaired(inspection: Inspection, out: str | Path, console: Console | None = None) -> list[str]:
    """Write a repaired copy of an inspected dataset in COCO format, and list the changes in its ``changes.txt``.

    Args:
        inspection: result of :func:`inspect`.
        out: folder to make.
        console: where progress is shown; unset: on the standard output.

    Returns:
        The changes, one line each.

    Raises:
        RetinaNetError: no image is left, or ``out`` is not empty or cannot be written.
    """
    out = Path(out)
    repaired, changes = repair(inspection.splits, inspection.checked)
    if not repaired:
        raise DataError(f"{inspection.name}: no image is left to write; restore the images first")
    with progress_bar(console or Console(), "writing images", sum(map(len, repaired.values()))) as bar:
        write_coco.write(repaired, out, progress=bar.advance)
    unions = [f"{split}: its images are also in other splits; split left out" for split in inspection.unions]
    changes = [*unions, *changes]
    write_text(out / "changes.txt", "".join(f"{line}\n" for line in changes))
    return changes


def _findings_of_train(surveys: dict[str, Survey], config: Config) -> list[Finding]:
    """Findings about the anchors and tiles of the first split, which is train if there is one."""
    split, survey = next(iter(surveys.items()))
    return [*coverage_findings(split, survey, config.assign), *tile_findings(split, survey.dataset, config.data)]


def _loss_balance(survey: Survey, config: Config) -> list[str]:
    """Sentences about the loss at the start of training.

    If the recipe does not use the focal loss, they describe the paper's focal loss.
    """
    loss, prior = config.loss, config.model.prior
    alpha, gamma = (loss.alpha or 0.5, loss.gamma) if loss.classification == "focal" else (0.25, 2.0)
    return Balance.of(survey, prior, alpha, gamma).sentences(prior, alpha, gamma)
