"""The charts against the number of objects: ideal outputs, equal limits on both sides, files that can be read."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from retinanet import cli
from retinanet.bench import dense_image, density, run

COUNTS, SIDE = (1, 150), 640


def test_limits_cost_ap_and_raised_limits_do_not() -> None:
    point = density.measured(240, SIDE, repeats=1)
    ap = point["AP"]
    assert ap["ours"] == pytest.approx(ap["torchvision"], abs=2e-3)
    assert ap["ours"] > 0.7
    assert ap["ours, 100 detections"] < 0.5 * ap["ours"]
    assert point["detections"]["ours, 100 detections"] == 100
    assert point["detections"]["ours"] >= 240
    assert "torchvision" not in point["assignment"]["milliseconds"]  # too much memory


def test_the_command_writes_numbers_and_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.ALONE, "density", lambda out, console, options: density.run(out, console, COUNTS, SIDE))
    assert cli.main(["bench", "density", "--out", str(tmp_path)]) == 0
    assert "wrote density.json, density.svg" in capsys.readouterr().out
    assert not (tmp_path / "bench.json").exists()
    points = json.loads((tmp_path / "density.json").read_text())["points"]
    assert [each["objects"] for each in points] == list(COUNTS)
    drawing = ElementTree.parse(tmp_path / "density.svg").getroot()
    texts = {element.text for element in drawing.iter() if element.text}
    assert {"AP of ideal outputs", "post-processing, ms", "objects in the image", "ours", "torchvision"} <= texts
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}polyline"))) >= 8


def test_detection_and_a_training_step_on_a_dense_image(tmp_path: Path) -> None:
    assert dense_image.run(tmp_path, Console(quiet=True), (3, 60), 256) == ["dense_image.json"]
    found = json.loads((tmp_path / "dense_image.json").read_text())
    few, many = found["detection"]
    assert few["detections"] >= 3
    assert many["detections"] >= 60
    assert 0 < many["suppression_seconds"] < many["seconds"]
    assert many["peak_memory_mb"] is None or found["detection_memory_ratio"] < 2
    assert [each["objects"] for each in found["training"]] == [3, 60]
