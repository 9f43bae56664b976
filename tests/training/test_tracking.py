"""What the tools are sent, and that none of them can stop a training. What they keep is in ``test_tools.py``."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from retinanet.config import Config
from retinanet.detection.example_images import save_images
from retinanet.errors import ConfigError
from retinanet.training import tools, tracking
from retinanet.training.log import Log
from retinanet.training.tracking import Trackers, grouped, open_trackers, require_trackers

PIXELS = np.zeros((4, 6, 3), dtype=np.uint8)


class Recorder:
    """A tool that keeps what it gets in memory; it can fail on demand."""

    view = "recorder show"

    def __init__(self, held: int = 0) -> None:
        self.held: Mapping[str, int] = dict.fromkeys(tools.GROUPS, held)
        self.got: list[tuple[int, str]] = []
        self.failed: bool | None = None
        self.broken = False

    def _keep(self, step: int, names: list[str]) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.got += [(step, name) for name in names]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._keep(step, list(values))

    def images(self, step: int, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        self._keep(step, list(images))

    def close(self, failed: bool) -> None:
        self._keep(0, [])
        self.failed = failed


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=500)


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_of_a_step() -> None:
    line = {"step": 7, "epoch": 0.5, "loss": 1.5, "classification": 1.0, "box": 0.5, "foreground": 12, "lr": 1e-3}
    assert grouped(line) == {
        "train/epoch": 0.5,
        "train/loss": 1.5,
        "train/classification": 1.0,
        "train/box": 0.5,
        "train/foreground": 12.0,
        "train/lr": 1e-3,
    }


def test_a_line_of_an_evaluation() -> None:
    classes = {"car/red": {"AP": 0.2, "AP50": 0.3, "boxes": 4}, "cat": {"AP": 0.0, "AP50": 0.1, "boxes": 1}}
    line = {"step": 7, "epoch": 1, "data_wait": 0.1, "AP": 0.1, "AP50": 0.2, "APl": -1.0, "per_class": classes}
    assert grouped(line) == {
        "train/epoch": 1.0,
        "train/data_wait": 0.1,
        "val/AP": 0.1,
        "val/AP50": 0.2,
        "val/AP/car_red": 0.2,
        "val/AP/cat": 0.0,
    }


def test_what_is_no_number_is_passed_over() -> None:
    assert grouped({"step": 1, "note": "x", "resumed": True, "images": ["a"], "none": None}) == {}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no_such_tool").mkdir()  # as ./wandb, which W&B makes
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for absent in ("no_such_package", "no_such_tool"):
        monkeypatch.setitem(tracking.PACKAGES, "wandb", (absent,))
        with pytest.raises(ConfigError) as caught:
            require_trackers(["tensorboard", "wandb"])
        assert str(caught.value).startswith(
            f"--train.track wandb needs the package {absent}: pip install 'retinanet[wandb]'"
        )
        with pytest.raises(ConfigError, match=absent):
            open_trackers(["wandb"], tmp_path, Config())


def test_nothing_is_opened_without_names(tmp_path: Path, console: Console) -> None:
    with open_trackers([], tmp_path, Config(), 0, console) as trackers:
        trackers.log_line({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert said(console) == []


@pytest.mark.parametrize("broken_by", ["scalars", "images", "close"])
def test_a_failing_tool_is_switched_off_with_one_line(broken_by: str, console: Console) -> None:
    bad, good = Recorder(), Recorder()
    with Trackers({"wandb": bad, "tensorboard": good}, console) as trackers:
        trackers.scalars(1, {"train/loss": 1.0})
        bad.broken = broken_by == "scalars"
        trackers.scalars(2, {"train/loss": 1.0})
        bad.broken = broken_by != "close"
        trackers.images(2, {"a": PIXELS})
        bad.broken = True
        trackers.scalars(3, {"train/loss": 1.0})
    assert said(console) == [
        "warning: wandb failed ([Errno 28] No space left on device); the training goes on without it, see metrics.jsonl"
    ]
    assert good.got == [(1, "train/loss"), (2, "train/loss"), (2, "images/a"), (3, "train/loss")]
    assert (good.failed, bad.failed) == (False, None)


def test_a_training_that_fails_is_marked(console: Console) -> None:
    tool = Recorder()
    with pytest.raises(KeyboardInterrupt), Trackers({"mlflow": tool}, console):
        raise KeyboardInterrupt
    assert tool.failed is True


def _with_recorder(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Recorder]) -> None:
    monkeypatch.setattr(tracking, "require_trackers", lambda names: None)
    monkeypatch.setitem(tools.TOOLS, "wandb", lambda out, config, resume_at: make())


def test_a_tool_that_cannot_start_stops_a_new_training_and_not_a_resumed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, console: Console
) -> None:
    def refuse() -> Recorder:
        raise RuntimeError("the server\nis [gone]")

    first = Recorder()
    _with_recorder(monkeypatch, refuse)
    monkeypatch.setitem(tools.TOOLS, "tensorboard", lambda out, config, resume_at: first)
    with pytest.raises(ConfigError, match=r"--train.track wandb: cannot start \(the server is \[gone\]\); set WANDB"):
        open_trackers(["tensorboard", "wandb"], tmp_path, Config(), 0, console)
    assert first.failed is True
    Log(tmp_path / "metrics.jsonl")
    with open_trackers(["wandb"], tmp_path, Config(), 5, console) as trackers:
        trackers.scalars(6, {"train/loss": 1.0})
    assert sum("warning: wandb failed (the server is [gone])" in line for line in said(console)) == 1


def _write_run(out: Path) -> None:
    """Two epochs of three steps with images, and a step of the third that the checkpoint does not have."""
    log = Log(out / "metrics.jsonl")
    for step in range(1, 8):
        log.write(step=step, epoch=round(step / 3, 4), loss=1.0)
        if step % 3 == 0:
            log.write(step=step, epoch=step // 3, AP=0.1)
            save_images(out / "images" / f"epoch_{step // 3:04d}", {"a": PIXELS})


def test_a_resumed_tool_gets_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, console: Console) -> None:
    _write_run(tmp_path)
    (tmp_path / "images" / "epoch_0001" / "torn.jpg").write_bytes(b"\xff\xd8")
    tool = Recorder()
    _with_recorder(monkeypatch, lambda: tool)
    open_trackers(["wandb"], tmp_path, Config(), 6, console)
    names = [(step, name) for step, name in tool.got if name != "train/epoch"]
    assert names == [
        (1, "train/loss"),
        (2, "train/loss"),
        (3, "train/loss"),
        (3, "val/AP"),
        (3, "images/a"),
        (4, "train/loss"),
        (5, "train/loss"),
        (6, "train/loss"),
        (6, "val/AP"),
        (6, "images/a"),
    ]
    assert said(console) == ["wandb: recorder show"]


def test_a_resumed_tool_gets_nothing_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, console: Console) -> None:
    _write_run(tmp_path)
    tool = Recorder()
    tool.held = {"train": 7, "val": 3, "images": 6}  # it was killed between the 7th step and its checkpoint
    _with_recorder(monkeypatch, lambda: tool)
    with open_trackers(["wandb"], tmp_path, Config(), 6, console) as trackers:
        assert [name for name in tool.got if name[1] != "train/epoch"] == [(6, "val/AP")]
        trackers.log_line({"step": 7, "loss": 1.0})
        trackers.log_line({"step": 8, "loss": 1.0})
    assert tool.got[-1] == (8, "train/loss")
    assert (7, "train/loss") not in tool.got
