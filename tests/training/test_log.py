"""``metrics.jsonl``: whole lines, cut back on resuming, and a clear word when the disk is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retinanet.errors import RetinaNetError
from retinanet.training.log import Log


def test_resuming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    for step in (1, 2, 3):
        log.write(step=step, epoch=step / 2, loss=1.0, classification=0.5, box=0.5)
    path.write_text(path.read_text() + '{"step": 4, "epo')
    Log(path, resume_at=2).write(step=3, epoch=1.5, loss=2.0, classification=1.0, box=1.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    Log(path)
    assert path.read_text() == ""


def test_curves_are_an_image(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.write(step=1, epoch=0.5, loss=1.0, classification=0.5, box=0.5)
    log.draw(tmp_path / "before.png")  # no evaluation yet
    log.write(step=2, epoch=1, AP=0.1, AP50=0.2, AP75=0.1)
    log.draw(tmp_path / "after.png")
    assert (tmp_path / "after.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def test_a_full_disk_is_said_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "metrics.jsonl")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RetinaNetError, match=r"metrics\.jsonl.*No space left"):
        log.write(step=1)
