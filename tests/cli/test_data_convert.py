from __future__ import annotations

from pathlib import Path

import pytest

from retinanet.cli import main
from retinanet.data.formats.open_dataset import read_all


@pytest.mark.parametrize("to", ["coco", "voc", "yolo", "csv"])
def test_every_format(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    out = tmp_path / "a folder"
    assert main(["data", "convert", str(parts), str(out), "--to", to]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"next: retinanet data inspect '{out}'"
    before, after = read_all(parts), read_all(out)
    boxes = sum(int((~d.ignore).sum()) for d in before.values())
    assert said[-2].startswith(f"wrote 12 images (train, val), {boxes} boxes and ")
    assert list(after) == list(before)
    for split, data in after.items():
        assert data.class_counts() == before[split].class_counts()
        assert data.path(0).read_bytes() == before[split].path(0).read_bytes()


def test_what_the_reader_dropped_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: Path) -> None:
    image = next((parts / "images").iterdir())
    (tmp_path / "boxes.csv").write_text(f"{image},1,1,1,9,cat\n{image},1,1,5,9,cat\n{image},-9,1,5,9,cat\n")
    assert main(["data", "convert", str(tmp_path), str(tmp_path / "out"), "--to", "voc"]) == 0
    said = capsys.readouterr().out
    assert "1 × zero-area box, dropped" in said
    assert "1 × box that reaches over the edge of its image, clipped" in said
    assert list(read_all(tmp_path / "out")) == ["train"]


def test_refusals_take_one_line(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, out, said in (
        (parts, parts, "exists and is not an empty folder"),
        (tmp_path / "none", tmp_path / "out", "no such file or folder"),
        (parts, Path("/dev/null/out"), "cannot be"),
    ):
        assert main(["data", "convert", str(source), str(out), "--to", "csv"]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
