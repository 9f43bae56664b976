from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retinanet import cli
from retinanet.bench import exported, exported_sides
from retinanet.bench.exported import Row, measured, table
from retinanet.bench.exported_sides import Side


def sides(ap: float | None = None) -> list[Side]:
    """A side that takes 2 ms, and one that takes 1 ms."""
    slow = Side("torchvision fp32", lambda: time.sleep(0.002), lambda: time.sleep(0.002), lambda: None, ap, 2.0)
    fast = Side("OpenVINO int8", lambda: time.sleep(0.001), lambda: time.sleep(0.001), None, ap, 1.0)
    return [slow, fast]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BLOCKS", 1), ("_SECONDS", 0.0), ("_CALLS", 3)):
        monkeypatch.setattr(exported, name, value)
    monkeypatch.setattr(exported_sides, "_FILES", 2)


@pytest.mark.usefixtures("quick")
def test_sides_are_measured_in_blocks() -> None:
    order: list[str] = []

    def side(name: str) -> Side:
        return Side(name, lambda: order.append(name), lambda: order.append(name))

    rows = measured("model", [side("a"), side("b")], Console(quiet=True))
    assert [row.side for row in rows] == ["a", "b"]
    # One call of a block is not counted; network and detection follow each other.
    assert order == ["a"] * 8 + ["b"] * 8
    rows = measured("model", sides(0.5), Console(quiet=True))
    assert rows[0].network_ms > 1.5 * rows[1].network_ms
    assert rows[0].images_per_second is not None
    assert rows[1].images_per_second is None


def test_the_table_compares_with_the_first_side_of_each_model() -> None:
    rows = [
        Row("R-50", "torchvision fp32", 900.0, 1000.0, None, None, None),
        Row("R-50", "OpenVINO bf16", 300.0, 250.0, None, None, 90.0),
        Row("person", "PyTorch fp32", 50.0, 60.0, 16.0, 0.267, None),
    ]
    lines = table(rows).splitlines()
    assert lines[3] == "| R-50 | OpenVINO bf16 | 300.0 ms | 3.00 | 250.0 ms | 4.00 |  |  | 90.0 MB |"
    assert lines[4] == "| person | PyTorch fp32 | 50.0 ms | 1.00 | 60.0 ms | 1.00 | 16.0/s | 26.70 |  |"


@pytest.mark.usefixtures("quick")
def test_the_command_writes_numbers_and_a_plot_of_ap_against_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def model_sides(*arguments: Any) -> list[Side]:
        given.append(arguments)
        return sides(0.5)

    monkeypatch.setattr(exported, "resnet_sides", lambda *arguments: sides())
    monkeypatch.setattr(exported, "model_sides", model_sides)
    command = [
        "bench",
        "export",
        "--out",
        str(tmp_path),
        "--weights",
        "my.safetensors",
        "--data",
        "x",
        "--threads",
        "1",
    ]
    assert cli.main(command) == 0
    assert "wrote export.json, export.png" in capsys.readouterr().out
    content = json.loads((tmp_path / "export.json").read_text())
    assert [row["ap"] for row in content["rows"]] == [None, None, 0.5, 0.5]
    assert content["threads"] == 1
    assert "openvino" in content["versions"]
    assert (tmp_path / "export.png").read_bytes().startswith(b"\x89PNG")
    [(weights, _, _, data, split, threads)] = given
    assert (weights, data, split, threads) == (Path("my.safetensors"), Path("x"), "val", 1)


@pytest.mark.usefixtures("quick")
def test_a_model_runs_in_every_runtime(weights: Path, tmp_path: Path) -> None:
    found = exported_sides.model_sides(weights, tmp_path, Console(quiet=True), None, "val", threads=1)
    names = [side.name for side in found]
    assert names[0] == "PyTorch fp32"
    assert {side.file_count for side in found} == {2}
    assert {"ONNX Runtime fp32", "OpenVINO fp32"} < set(names)
    assert "OpenVINO int8" not in names  # needs data
    for row in measured("tiny", found, Console(quiet=True)):
        assert 0 < row.network_ms < 1000 * row.detect_ms
        assert row.images_per_second is not None
        assert (row.megabytes is None) == row.side.startswith("PyTorch")
