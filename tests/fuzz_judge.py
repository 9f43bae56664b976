"""The judge of ``test_fuzz.py``: is a difference between what files say and what was read reported?"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from fuzz_cases import Case, clean
from fuzz_datasets import Content, Said, box_of, image_specs, said_by
from retinanet.data.dataset import Dataset
from retinanet.errors import RetinaNetError

_NOT_THERE = "no such image file"


def content(dataset: Dataset) -> Content:
    found: Content = {}
    for index in dataset:
        path = dataset.path(index)
        boxes = found.setdefault(path.stem + path.suffix.lower(), Counter())
        for row in range(*dataset.rows(index).indices(len(dataset.boxes))):
            label, ignored = int(dataset.labels[row]), bool(dataset.ignore[row])
            boxes[box_of(dataset.classes[label] if label >= 0 else "ignore", dataset.boxes[row].tolist(), ignored)] += 1
    return found


def _unexplained(said: Said, got: Content, reports: list[str], layout: str) -> list[str]:
    """Differences between what files say and what was read that no report accounts for."""
    expected = said.boxes
    if any("no val split" in report for report in reports):
        # then val is part of train, and its own files are gone
        held_out = {spec.name for spec in image_specs() if spec.split == "val"} - set(got)
        expected = {name: boxes for name, boxes in expected.items() if name not in held_out}
    if any("named by their numbers" in report for report in reports):
        expected, got = _nameless(expected), _nameless(got)
    left, shared, wanted = [], 0, 0
    for image in sorted({*expected, *got}):
        before, after = expected.get(image, Counter()), got.get(image, Counter())
        lost = max((before - after).total(), (after - before).total())
        # An image without boxes can be lost as well; one report is enough for all the boxes of an image.
        lost = lost + said.odd[image] if after else max(lost > 0 or image not in got, said.odd[image])
        names = {image, *(f"{Path(image).stem}{suffix}" for suffix in (".xml", ".txt"))}
        if layout.startswith("csv"):
            wanted += lost
            shared = sum(bool(re.search(r"(train|val|_annotations)\.csv|photo", report)) for report in reports)
        elif lost > sum(any(name in report for name in names) for report in reports):
            left.append(f"{image}: {dict(before - after)} became {dict(after - before)}")
    return [*left, *([f"{wanted} differences, {shared} reports"] if wanted > shared else [])]


def _nameless(content: Content) -> Content:
    result: Content = {}
    for image, boxes in content.items():
        result[image] = Counter()
        for (_, corners, ignored), count in boxes.items():
            result[image]["", corners, ignored] += count
    return result


def judge(case: Case, root: Path, got: Content, reports: list[str]) -> None:
    before = said_by(case.layout, clean(case.layout))
    assert before is not None
    now = said_by(case.layout, root)
    case.said = reports
    left = _unexplained(before, got, reports, case.layout)
    as_written = now is not None and not _unexplained(now, got, reports, case.layout)
    if reports and (as_written or not left):
        case.outcome = "reported"
    elif not left:
        case.outcome = "clean"
    elif as_written:
        case.outcome = "as written"
    else:
        case.failure = f"SILENT LOSS {left[:3]}; reports {reports[:5]}"
    # What a file of all annotations says wrongly is reported of the image it is said of.
    names = (case.file.stem, *(p.name for p in image_specs() if case.file.suffix in (".json", ".csv")))
    if case.outcome == "reported" and not any(name in report for name in names for report in reports):
        named = case.kind[:5] != "image" and any(_NOT_THERE in report for report in reports)
        gone = case.file.suffix == ".yaml" or not os.path.isfile(root / case.file)
        gone = gone and any(f"no val split in {root}" in report for report in reports)
        case.failure = "" if gone or named else f"UNNAMED: {case.file} is in none of {reports[:5]}"


def judge_refusal(case: Case, root: Path, error: RetinaNetError) -> None:
    """One line that names the spoilt file (or the folder or split that lacks it) and says what to do."""
    message = str(error)
    case.outcome, case.said = "refused", [message]
    stem = case.file.stem
    named = stem in message or message.startswith((f"{root}:", f"{root.name} [")) or not (root / case.file).exists()
    named |= case.kind[:5] != "image" and _NOT_THERE in message  # under the path that the spoilt file says
    for wrong, what in (
        (not named, "UNNAMED"),
        (
            "\n" in message.partition("supported layouts")[0] and "images cannot be read" not in message,
            "MANY LINES",
        ),
        (not re.search(r"; \w+", message), "NO REMEDY"),
        (len(message.partition("supported layouts")[0]) > 700 and "images cannot be read" not in message, "LONG"),
    ):
        if wrong:
            case.failure = f"{what}: {message}"
