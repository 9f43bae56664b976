"""Checks of a dataset: files, boxes, classes, duplicates and leaks between splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.image_memory import ImageMemory
from retinanet.data.image_suffixes import is_image
from retinanet.data.problems import PROBLEM_KINDS, Problem
from retinanet.inspection.box_checks import box_count_findings, box_findings, corners_of
from retinanet.inspection.class_checks import class_findings
from retinanet.inspection.duplicates import Pair, Scan, find_pairs, scan
from retinanet.inspection.findings import Finding, Sight
from retinanet.inspection.splits import Splits

# Code of the finding for each code of a reader's problem.
FINDING_OF_PROBLEM = {
    "unreadable-image": "broken-image",
    "unreadable-annotations": "broken-annotation",
    "missing-annotations": "broken-annotation",
    "annotation-without-image": "broken-annotation",
    "unknown-class-id": "broken-annotation",
    "zero-area-box": "bad-box",
    "inverted-box": "bad-box",
    "outside-box": "bad-box",
    "non-finite-box": "bad-box",
    "malformed-box": "bad-line",
    "malformed-line": "bad-line",
    "unnamed-object": "bad-line",
    "repeated-element": "bad-line",
    "label-without-image": "bad-line",
    "image-without-annotations": "unlisted-image",
    "clipped-box": "clipped-box",
    "invalid-flag": "remark",
    "heading-category": "remark",
    "image-ids": "remark",
    "listed-twice": "remark",
    "unlabelled-image": "remark",
    "unlabelled-split": "remark",
    "unnamed-classes": "remark",
    "unlisted-class": "remark",
    "skipped-image": "broken-image",
    "unread-files": "unread-files",
    "image-found": "remark",
    "inner-folder": "remark",
    "folder-found": "remark",
    "absent-split": "remark",
    "shape-box": "remark",
    "text-box": "remark",
    "scored-box": "remark",
    "low-score": "remark",
    "merged-class": "remark",
    "matched-class": "remark",
    "unlearnt-class": "remark",
    "single-class": "remark",
    "encoding": "remark",
    **{kind.code: kind.code for kind in PROBLEM_KINDS.values() if kind.sign},
}


# An image whose brightest and darkest pixels differ by fewer gray levels (of 255) has no contrast.
_LEAST_CONTRAST = 16


@dataclass(frozen=True)
class CheckResult:
    """Findings of all checks, and the intermediate results that a repair needs.

    Attributes:
        findings: the findings, unsorted; :func:`retinanet.inspection.findings.by_kind` sorts them.
        scans: scans of the images of all splits, one split after the other.
        pairs: pairs of equal or nearly equal images, numbered as in ``scans``.
    """

    findings: list[Finding]
    scans: list[Scan]
    pairs: list[Pair]


def run_checks(
    splits: Splits,
    failures: Mapping[str, str],
    own_classes: Mapping[str, Sequence[str]],
    data: DataConfig,
    whole: bool = True,
    progress: Callable[[int], object] = lambda images: None,
    memory: ImageMemory | None = None,
) -> CheckResult:
    """Run all checks on a dataset.

    Args:
        splits: from :func:`retinanet.data.formats.open_dataset.read_tolerantly`, with one list of classes.
        failures: the reason for each split that cannot be read.
        own_classes: the classes in each split's own list.
        data: size of the network's input.
        whole: whether ``splits`` are all splits of the dataset. Only then is an image that no split lists a finding.
        progress: called with the number of images just decoded.
        memory: images that need not be decoded again.
    """
    scans = scan(list(splits.values()), progress, memory)
    pairs = find_pairs(list(splits.values()), scans)
    findings = [Finding("unreadable-split", split, reason, "cannot be used") for split, reason in failures.items()]
    first = 0
    for split, dataset in splits.items():
        findings += [finding_of(split, problem) for problem in dataset.problems]
        findings += _image_files(split, dataset, scans[first : first + len(dataset)], data)
        findings += box_findings(split, dataset, data)
        findings += box_count_findings(split, dataset, data)
        first += len(dataset)
    findings += class_findings(splits, own_classes)
    findings += _duplicate_images(splits, pairs)
    if whole and not failures:  # an unreadable split may list images that no other split lists
        findings += _unlisted_images(splits)
    return CheckResult(findings, scans, pairs)


def finding_of(split: str, problem: Problem) -> Finding:
    """Turn a problem that the reader found into a finding."""
    code = FINDING_OF_PROBLEM[problem.code]
    effect = problem.action if code == "remark" or problem.code == "label-without-image" else ""
    cases = f" ({problem.count} cases)" if problem.count > 1 else ""
    return Finding(code, split, problem.where, f"{problem.message}{cases}", effect=effect)


def _image_files(split: str, dataset: Dataset, scans: Sequence[Scan], data: DataConfig) -> Iterator[Finding]:
    """Findings about the image files."""
    broken = "training leaves out the image (--data.skip-broken)" if data.skip_broken else ""
    flat = "nothing can be seen in it; if its values have another range, correct --data.pixel-range"
    for index, found in enumerate(scans):
        path, size = str(dataset.path(index)), tuple(dataset.sizes[index].tolist())
        if found.error is not None:
            yield Finding("broken-image", split, path, found.error.removeprefix(f"{path}: "), effect=broken)
            continue
        if found.contrast < _LEAST_CONTRAST:
            what = f"its pixels differ by {found.contrast} of 255 gray levels"
            effect = flat if data.pixel_range is not None else ""
            yield Finding("flat-image", split, path, what, (Sight(split, index),), effect)
        if found.size != size:
            yield Finding(
                "image-size",
                split,
                path,
                f"the image has {found.size[0]}×{found.size[1]} pixels, its annotations say {size[0]}×{size[1]}",
                (Sight(split, index, corners_of(dataset.boxes[dataset.rows(index)])),),
            )


def _duplicate_images(splits: Splits, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Findings about images that are equal or nearly equal."""
    places = [(split, index) for split, dataset in splits.items() for index in dataset]
    for pair in pairs:
        (split, index), (other, twin) = places[pair.second], places[pair.first]
        if split == other:
            code = "duplicate-image" if pair.exact else "near-duplicate"
        else:
            code = "leak" if pair.exact else "near-leak"
        where = str(splits[split].path(index))
        same = "the same as" if pair.exact else "nearly the same as"
        what = f"in {split}; {same} {splits[other].path(twin)} in {other}"
        yield Finding(code, split, where, what, (Sight(split, index), Sight(other, twin)))


def _unlisted_images(splits: Splits) -> Iterator[Finding]:
    """Findings about images that no split lists although they are in a folder of listed images."""
    listed = {os.path.abspath(dataset.path(index)) for dataset in splits.values() for index in dataset}
    split_of = {os.path.dirname(os.path.abspath(d.path(index))): split for split, d in splits.items() for index in d}
    # If the reader left out an image or its annotation file, another finding reports this image.
    left_out = (p.where for d in splits.values() for p in d.problems if p.kind.left_out)
    reported = {os.path.splitext(os.path.basename(where))[0] for where in left_out}
    for folder in sorted(split_of):
        if os.path.isdir(folder):
            for name in sorted(filter(is_image, os.listdir(folder))):
                path = os.path.join(folder, name)
                known = path in listed or os.path.splitext(name)[0] in reported
                if not known and not name.startswith("."):
                    yield Finding("unlisted-image", split_of[folder], path, "in no annotation file")
