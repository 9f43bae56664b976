"""A flag that would be ignored is refused, with what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import retinanet
from commands import Command
from retinanet.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eval --detections FOUND PARTS --precision bf16 --device cpu", "--precision, --device: only for WEIGHTS"),
        ("eval --detections FOUND PARTS --tile 100", "--tile: only for WEIGHTS; leave it out"),
        ("eval --detections FOUND --detections FOUND PARTS --tile 100", "--tile: only for WEIGHTS"),
        ("eval --detections FOUND PARTS --ray", "--ray: only for WEIGHTS"),
        ("export WEIGHTS --split test", "--split: only for a dataset (--data)"),
        ("export WEIGHTS --data.images x --data.min-score 0.3", "--data.images, --data.min-score: only for a dataset"),
        ("export WEIGHTS --max-drop 5", "--max-drop: only for --int8"),
        ("export WEIGHTS --to torch --opset 18", "--opset: only for ONNX and OpenVINO files"),
        ("verify a.onnx WEIGHTS --split test", "--split: only for a dataset (--data)"),
        ("verify a.onnx WEIGHTS --trust", "--trust: only for .pt2 files"),
        ("verify WEIGHTS --detections FOUND --data PARTS --trust", "--trust: only for .pt2 files"),
        ("verify WEIGHTS --detections FOUND --data PARTS --precision bf16", "--precision: only for exported files"),
        ("bench loss --weights WEIGHTS --data PARTS", "--weights, --data: only for the benchmark export"),
        ("bench --split test", "--split: only for the benchmark export"),
        ("bench export --split test", "--split: only for a dataset (--data)"),
        ("reproduce table1b PARTS --scale paper --images 100", "--images needs --scale small"),
        ("data convert PARTS x --to yolo --voc-origin 0", "--voc-origin: only for --to voc"),
        ("train PARTS --out run --model.weights a.pth --model.no-pretrained", "the network starts from random weights"),
        ("train PARTS --out run --model.weights a.pth --model.init WEIGHTS", "the network starts from model.init"),
    ],
)
def test_flags_without_effect(
    run: Command,
    weights: Path,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("found.json").write_text("[]")
    places = {"FOUND": Path("found.json"), "PARTS": parts, "WEIGHTS": weights}
    assert expected in run.fails(*(places.get(word, word) for word in words.split()), code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_the_same_flags_with_effect(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    val = json.loads((parts / "instances_val.json").read_text())
    rows = [{**{k: each[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for each in val["annotations"]]
    found.write_text(json.dumps(rows))
    assert run("eval", "--detections", found, weights, parts, "--precision", "fp32", "--out", tmp_path / "a").code == 0
    assert run("data", "convert", parts, tmp_path / "voc", "--to", "voc", "--voc-origin", "0").code == 0


def test_train_names_settings_of_methods_that_are_not_chosen(run: Command, tmp_path: Path) -> None:
    said = run("train", tmp_path / "none", "--out", tmp_path / "run", "--loss.beta", 0.5)
    assert "note: loss.beta has no effect with loss.box giou; it is for loss.box smooth_l1" in said.out


@pytest.mark.parametrize("score", ["AUTO", "", "0.3", None, [0.3], 1, -0.1, float("nan")])
def test_scores_that_are_none(weights: Path, parts: Path, tmp_path: Path, score: object) -> None:
    photo = parts / "images" / "000000.jpg"
    with pytest.raises(ConfigError, match="give a number, at least 0 and below 1, or auto"):
        retinanet.load(weights)(photo, score=score)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="give a number, at least 0 and below 1, or auto"):
        retinanet.detect(weights, photo, tmp_path, score=score)  # type: ignore[arg-type]
