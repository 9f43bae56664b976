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

import os
import re
import signal
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch

from fuzz_cases import Case, clean, spoil
from fuzz_datasets import WRITERS, Content
from fuzz_judge import content, judge, judge_refusal
from retinanet.anchors import make_grid, match_batch
from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_train_val
from retinanet.data.loader import training_loader
from retinanet.data.sampling import TrainingOrder
from retinanet.data.transforms import normalized_batch
from retinanet.data.verify import verify_images
from retinanet.errors import RetinaNetError
from retinanet.losses import detection_losses
from retinanet.model import Outputs
from retinanet.recipes import load_recipe
from retinanet.training.loop import train_on

CASES = 500
CHUNK = 25
LIMIT = 10.0  # seconds a case may take; the slowest takes less than one
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the time limit of a case needs SIGALRM")


class Hang(BaseException):
    """The time limit of a case has passed; no ``except Exception`` may swallow it."""


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
    return content(train_set) | content(val_set), reports


def _load_and_lose(dataset: Dataset, reports: list[str], verified: bool) -> None:
    """Pass everything through the loader, the assignment and the loss on random outputs of a network."""
    config = _config()
    config = replace(config, data=replace(config.data, verify="auto" if verified else "never"))
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


@cache
def outcome(number: int) -> Case:
    """Run a case; what must not happen is in ``failure``."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder) / "pets"
        case = spoil(number, root)
        try:
            with _time_limit(root):
                got, reports = _read_and_train(case, root, Path(folder) / "run")
            judge(case, root, got, reports)
        except RetinaNetError as error:
            judge_refusal(case, root, error)
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
        got, reports = _read_and_train(case, clean(layout), Path())
        judge(case, clean(layout), got, reports)
        assert (case.outcome, case.failure) == ("clean", "")
        boxes = got["photo_2.jpg"]
        boxes[next(iter(boxes))] -= 1
        judge(case, clean(layout), got, reports)
        assert "SILENT LOSS" in case.failure


def _main() -> None:
    if len(sys.argv) > 1:
        root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "pets"
        case = spoil(int(sys.argv[1]), root)
        print(f"{case}\n  files in {root}")
        with _time_limit(root):
            got, reports = _read_and_train(case, root, root.parent / "run")
        judge(case, root, got, reports)
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
