"""Seeded corruptions of small datasets: each is read as if it were whole, reported, or refused in a clear line.

Never a traceback, a hang, or an image or box that is lost without a word. The outcomes are

``clean``       images and boxes are those of the uncorrupted dataset (a flipped pixel is nobody's to know),
``as written``  the files are valid and say something else; a second, naive reading agrees with every box,
``reported``    a problem, remark or note names the file, and training goes on,
``refused``     a ``RetinaNetError`` in one line names the file and says what to do.

``python tests/test_fuzz.py NUMBER`` repeats one case, keeps its files and shows the traceback;
``python tests/test_fuzz.py`` prints every distinct message.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch

import fuzz_corruptions
from fuzz_datasets import WRITERS, Content, Said, box_of, image_specs, said_by
from retinanet.anchors import make_grid, match_batch
from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_train_val
from retinanet.data.loader import training_loader
from retinanet.data.sampling import TrainingOrder
from retinanet.data.transforms import normalized_batch
from retinanet.data.verify import verify_images
from retinanet.errors import RetinaNetError
from retinanet.losses import detection_losses
from retinanet.model import Outputs
from retinanet.recipes import load_recipe
from retinanet.training.loop import train_on

SEED = 20260423
CASES = 500
CHUNK = 25
LIMIT = 10.0  # seconds a case may take; the slowest takes less than one
_NOT_THERE = "no such image file"

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the time limit of a case needs SIGALRM")


class Hang(BaseException):
    """The time limit of a case has passed; no ``except Exception`` may swallow it."""


@dataclass
class Case:
    """One corruption: ``kind`` done to ``file`` of a dataset in ``layout``."""

    number: int
    layout: str
    kind: str
    file: Path = Path()
    verify: str = "on"
    outcome: str = ""
    said: list[str] = field(default_factory=list)
    failure: str = ""

    def __str__(self) -> str:
        return (
            f"kind {self.kind}, format {self.layout}, seed [{SEED}, {self.number}], file {self.file}, "
            f"verify {self.verify}: {self.failure or self.outcome}\n"
            f"  reproduce: python tests/test_fuzz.py {self.number}"
        )


@cache
def _config() -> Config:
    """Small enough to train in a third of a second; the loader crops no image."""
    config = load_recipe("modern")
    return replace(
        config,
        model=replace(config.model, backbone="test_efficientnet", pretrained=False, channels=32, subnet_depth=1),
        data=replace(config.data, size=64, max_size=128, workers=0, crop=0.0, color=0.0, flip=0.0, scale=(1.0, 1.0)),
        train=replace(config.train, epochs=1, batch=4, precision="fp32", device="cpu"),
    )


@cache
def _clean(layout: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "pets"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    WRITERS[layout](root)
    return root


def _spoil(number: int, root: Path) -> Case:
    """Make the dataset of a case at ``root``."""
    layouts = list(WRITERS)
    layout = layouts[number % len(layouts)]
    clean = _clean(layout)
    files = sorted(path.relative_to(clean) for path in clean.rglob("*") if path.is_file())
    images = [file for file in files if file.suffix in (".jpg", ".png")]
    texts = [file for file in files if file not in images]
    kinds = fuzz_corruptions.kinds_of({file.suffix for file in texts})
    rng = np.random.default_rng([SEED, number])
    # A third of the cases for images, for any text, and for what is special to JSON, XML and YAML.
    thirds = [[kind for kind in kinds if kind[0] == group] for group in ("image", "text")]
    thirds.append([kind for kind in kinds if kind[0].startswith(".")] or thirds[1])
    third = thirds[int(rng.integers(3))]
    target, corrupt = third[int(rng.integers(len(third)))]
    choice = {"image": images, "text": texts}.get(target) or [file for file in texts if file.suffix == target]
    file = choice[int(rng.integers(len(choice)))]
    shutil.copytree(clean, root, symlinks=True)
    corrupt(rng, root / file)
    verify = ("on", "skip", "off")[int(rng.integers(3))]
    return Case(number, layout, f"{target} {corrupt.__name__}", file, verify)


def _read_and_train(case: Case, root: Path, out: Path) -> tuple[Content, list[str]]:
    """The way of ``retinanet train``: the boxes that were learnt from, and all that was reported."""
    train_set, val_set, reports = read_train_val(root)
    reports += [str(problem) for dataset in (train_set, val_set) for problem in dataset.problems]
    if case.verify != "off":
        train_set, remarks = verify_images(train_set, skip_broken=case.verify == "skip")
        val_set, more = verify_images(val_set, skip_broken=case.verify == "skip")
        reports += [*remarks, *more]
    for dataset in (train_set, val_set):
        _load_and_lose(dataset, reports, case.verify != "off")
    if case.number % 6 == 5:
        train_on(_config(), train_set, val_set, out)
    return _content(train_set) | _content(val_set), reports


def _load_and_lose(dataset: Dataset, reports: list[str], verified: bool) -> None:
    """Pass everything through the loader, the assignment and the loss on random outputs of a network."""
    config = _config()
    config = replace(config, data=replace(config.data, verify=verified))
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for batch in training_loader(dataset, TrainingOrder(dataset, 4, 1, seed=0), config.data, seed=0):
        images = normalized_batch(batch.images, (0.5,) * 3, (0.25,) * 3)
        grid = make_grid(config.anchors, (images.shape[-2], images.shape[-1]))
        matches = match_batch(grid, batch.boxes, batch.ignore, config.assign)
        sizes, draw = grid.level_sizes, torch.Generator().manual_seed(0)
        logits, deltas = (
            [torch.randn(len(images), n, k, generator=draw, requires_grad=True) for n in sizes]
            for k in (max(1, len(dataset.classes)), 4)
        )
        losses = detection_losses(
            Outputs(logits, deltas), grid, matches, torch.cat(batch.boxes), torch.cat(batch.labels), config.loss
        )
        losses.total.backward()  # type: ignore[no-untyped-call]
        values = [losses.total, *(level.grad.sum() for level in (*logits, *deltas) if level.grad is not None)]
        assert all(torch.isfinite(value) for value in values), "the loss or its gradient is not finite"
        reports += [*batch.unreadable, *batch.remarks]
        pairs = zip(batch.images, batch.boxes, strict=True)
        seen |= dict(zip(batch.indices, pairs, strict=True))
    lost = [i for i in dataset if i not in seen and not any(dataset.path(i).name in report for report in reports)]
    assert not lost, f"{lost} were never loaded, and nothing says so"
    for index, (image, boxes) in seen.items():
        width, height = (float(v) for v in dataset.sizes[index])
        factors = np.array([image.shape[-1] / width, image.shape[-2] / height] * 2)
        rows = dataset.rows(index)
        expected = (dataset.boxes[rows] * factors)[~dataset.ignore[rows]]
        expected = expected[(expected[:, 2:] - expected[:, :2] >= 1).all(axis=1)]
        same = len(boxes) == len(expected) and np.allclose(boxes, expected, atol=1)
        told = any(dataset.path(index).name in report for report in reports)
        assert same or told, f"the loader gives {boxes.tolist()} for {dataset.path(index)}, not {expected.tolist()}"


def _content(dataset: Dataset) -> Content:
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


def _judge(case: Case, root: Path, got: Content, reports: list[str]) -> None:
    before = said_by(case.layout, _clean(case.layout))
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


def _judge_refusal(case: Case, root: Path, error: RetinaNetError) -> None:
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


@cache
def outcome(number: int) -> Case:
    """Run a case; what must not happen is in ``failure``."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder) / "pets"
        case = _spoil(number, root)
        try:
            with _time_limit(root):
                got, reports = _read_and_train(case, root, Path(folder) / "run")
            _judge(case, root, got, reports)
        except RetinaNetError as error:
            _judge_refusal(case, root, error)
        except (Exception, Hang) as error:
            case.failure = f"{type(error).__name__.upper()}: {str(error)[:600]}"
    return case


@contextmanager
def _time_limit(root: Path) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for path in root.rglob("*"):  # a thread that waits for a pipe's writer would keep the process alive
            if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
                os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        raise Hang(f"not done after {LIMIT:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_corruptions_are_harmless_reported_or_refused(first: int) -> None:
    failed = [str(case) for case in map(outcome, range(first, first + CHUNK)) if case.failure]
    assert not failed, f"{len(failed)} of {CHUNK} corruptions\n" + "\n".join(failed)


def test_every_outcome_occurs() -> None:
    cases = [outcome(number) for number in range(CASES)]
    counts = Counter(case.outcome or "failed" for case in cases)
    summary = f"{CASES} corruptions: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(summary)
    assert set(counts) == {"clean", "as written", "reported", "refused"}, summary
    assert len({case.kind for case in cases}) > 40, summary


def test_an_undamaged_dataset_is_clean() -> None:
    """The judge itself: without a corruption nothing is reported, and a box that is gone is noticed."""
    for layout in WRITERS:
        case = Case(0, layout, "none", Path("nothing"))
        got, reports = _read_and_train(case, _clean(layout), Path())
        _judge(case, _clean(layout), got, reports)
        assert (case.outcome, case.failure) == ("clean", "")
        boxes = got["photo_2.jpg"]
        boxes[next(iter(boxes))] -= 1
        _judge(case, _clean(layout), got, reports)
        assert "SILENT LOSS" in case.failure


def _main() -> None:
    if len(sys.argv) > 1:
        root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "pets"
        case = _spoil(int(sys.argv[1]), root)
        print(f"{case}\n  files in {root}")
        with _time_limit(root):
            got, reports = _read_and_train(case, root, root.parent / "run")
        _judge(case, root, got, reports)
        print(*reports, case, sep="\n")
        return
    seen: dict[str, str] = {}
    for number in range(CASES):
        case = outcome(number)
        for message in case.said:
            key = re.sub(r"/tmp/\S*/pets|\d+", "#", message)
            seen.setdefault(re.sub(r"photo.#", "photo", key)[:90], f"[{number} {case.kind}] {message}")
        if case.failure:
            print("FAILED", case)
    print(*sorted(seen.values(), key=lambda message: message.split("] ")[1]), sep="\n")


if __name__ == "__main__":
    _main()
