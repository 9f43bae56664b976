"""``--max-detections`` of ``detect`` and ``eval``, and what is said of images that reach the limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands import Command, next_command
from retinanet.zoo.weights import load_weights, save_weights

CPU = ("--precision", "fp32", "--device", "cpu")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 20)


@pytest.fixture(scope="module")
def dense(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample dataset with 150 objects of the first class in the first val image."""
    folder = Path(shutil.copytree(parts, tmp_path_factory.mktemp("dense") / "dense"))
    content = read(folder / "instances_val.json")
    image = content["images"][0]["id"]
    for number in range(150):
        x, y = 6 * (number % 15), 9 * (number // 15)
        box = {"bbox": [x, y, 5, 6 + number / 100], "area": 30, "iscrowd": 0}
        content["annotations"].append({"id": 10_000 + number, "image_id": image, "category_id": 1, **box})
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def truth_as_detections(dense: Path, tmp_path: Path) -> Path:
    """A file with every object as a detection; later objects have lower scores."""
    rows = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 1 / (2 + number)}
        for number, row in enumerate(read(dense / "instances_val.json")["annotations"])
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    return tmp_path / "found.json"


def test_a_file_of_a_dense_dataset_counts_whole_and_coco_s_figure_stands_beside_it(
    run: Command, dense: Path, truth_as_detections: Path, tmp_path: Path
) -> None:
    said = run("eval", "--detections", truth_as_detections, dense, "--out", tmp_path / "out").out
    metrics = read(tmp_path / "out" / "metrics.json")
    assert metrics["AP"] == metrics["AR"] == pytest.approx(1)
    assert metrics["diagnosis"]["AP"] == pytest.approx(1)
    assert 0.5 < metrics["AP@100"] < metrics["AP"]
    assert metrics["AR100"] < 1
    assert metrics["limits"]["counted_per_class"] is None
    assert metrics["limits"]["most_objects"] >= 150
    assert "objects, so all detections count" in said
    assert "AP@100" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "objects, so all detections count" in page
    assert "<small>AP@100</small>" in page
    assert "at most 100 of a class" not in page


def test_the_limit_cuts_a_file_and_says_so(
    run: Command, dense: Path, truth_as_detections: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = run("eval", "--detections", truth_as_detections, dense, "--out", out, "--max-detections", 120).out
    metrics = read(out / "metrics.json")
    assert metrics["AP@100"] < metrics["AP"] < 1
    assert metrics["limits"]["max_detections"] == 120
    assert metrics["limits"]["images_at_limit"] == 1
    assert "note: 1 of " in said
    assert "so the 120 highest scores of each image count (--max-detections)" in said
    assert "all detections count" not in said
    assert "more than 120 detections" in said
    assert "more than 120 detections" in (out / "report.html").read_text()


def test_a_detector_s_limit_is_told_and_raised(run: Command, weights: Path, dense: Path, tmp_path: Path) -> None:
    said = run("eval", weights, dense, "--out", tmp_path / "few", "--max-detections", 5, *CPU).out
    few = read(tmp_path / "few" / "metrics.json")["limits"]
    assert few["images_at_limit"] > 0
    assert f"note: {few['images_at_limit']} of " in said
    assert "reached a limit (5 detections per image" in said
    assert "--max-detections" in said
    assert next_command(said)[-2:] == ["--max-detections", "5"]
    assert "reached a limit (5 detections per image" in (tmp_path / "few" / "report.html").read_text()
    said = run("eval", weights, dense, "--out", tmp_path / "many", "--max-detections", 10**9, *CPU).out
    assert read(tmp_path / "many" / "metrics.json")["limits"]["images_at_limit"] == 0
    assert "reached a limit" not in said
    counts = [len(read(tmp_path / name / "detections.json")) for name in ("few", "many")]
    assert counts[0] < counts[1]


def test_two_models_are_compared_with_the_higher_limit(
    run: Command, weights: Path, dense: Path, tmp_path: Path
) -> None:
    model, info = load_weights(weights)
    paths = []
    for limit in (5, 40):
        config = info.config.to_dict()
        config["decode"] |= {"max_detections": limit, "top_k": 1000}
        paths.append(tmp_path / f"{limit}.safetensors")
        save_weights(
            paths[-1], dict(model.state_dict()), type(info)(**{**vars(info), "config": info.config.from_dict(config)})
        )
    run("eval", *paths, dense, "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert [written["limits"][side]["max_detections"] for side in "ab"] == [40, 40]
    assert written["AP"]["delta"] == 0
    assert written["metrics"]["a"] == written["metrics"]["b"]
    assert "AP@100" in written["metrics"]["a"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "AP@100" in page
    assert "objects, so all detections count" in page
    assert "reached a limit (40 detections per image" in page


def test_detect_says_how_many_images_reach_the_limit(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    words = ("detect", weights, parts / "images", "--no-draw", "--score", 0.1, *CPU)
    said = run(*words, "--out", tmp_path / "few", "--max-detections", 2).out
    assert (
        "of 12 images reached a limit (2 detections per image, 1000 candidates per pyramid level, score ≥ 0.1)" in said
    )
    rows = read(tmp_path / "few" / "detections.json")["annotations"]
    assert max(sum(row["image_id"] == image for row in rows) for image in range(1, 13)) == 2
    assert "reached a limit" not in run(*words, "--out", tmp_path / "many", "--max-detections", 10**9).out


@pytest.mark.parametrize("number", [0, -3])
@pytest.mark.parametrize("command", ["detect", "eval", "compare"])
def test_impossible_limits_are_refused_in_a_line(
    run: Command, weights: Path, parts: Path, tmp_path: Path, command: str, number: int
) -> None:
    words = {
        "detect": ("detect", weights, parts / "images"),
        "eval": ("eval", weights, parts),
        "compare": ("eval", weights, weights, parts),
    }[command]
    result = run(*words, "--out", tmp_path / "out", "--max-detections", number)
    assert result.code == 2
    assert result.err.strip() == f"error: max-detections is {number}; it must be a whole number of at least 1"
    assert not (tmp_path / "out").exists()
