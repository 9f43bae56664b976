"""``retinanet data sample``."""

from __future__ import annotations

from pathlib import Path

from commands import Command, next_command


def test_data_sample(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "my parts"
    said = run("data", "sample", out, "--images", 7, "--size", 64)
    assert said.code == 0
    assert len(list((out / "images").glob("*.jpg"))) == 7
    assert next_command(said.out)[:2] == ["train", str(out)]
    assert str(out) in run.fails("data", "sample", out)
    assert "images is 1" in run.fails("data", "sample", tmp_path / "other", "--images", 1)
