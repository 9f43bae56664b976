from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Command
from retinanet.config import Config
from retinanet.data.images import read_image
from retinanet.object_sizes import ObjectSizes
from retinanet.zoo.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def sized(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained detector with sizes of objects."""
    model, info = load_weights(weights)
    sizes = ObjectSizes.of(np.array([[0, 0, 10, 20], [0, 0, 5, 4]]), np.array([1.0, 1.0]))
    values = info.config.to_dict()
    values["decode"] |= {"score": 0.2, "max_detections": 40}
    path = tmp_path_factory.mktemp("sized") / "best.safetensors"
    save_weights(path, dict(model.state_dict()), replace(info, objects=sizes, config=Config.from_dict(values)))
    return path


@pytest.fixture(scope="module")
def large(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one image of 192 × 192 pixels."""
    folder = tmp_path_factory.mktemp("large")
    four = [read_image(path) for path in sorted((parts / "images").glob("*.jpg"))[:4]]
    image = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
    Image.fromarray(image).save(folder / "large.png")
    content = json.loads((parts / "instances_val.json").read_text())
    content["images"] = [{"id": 1, "file_name": "large.png", "width": 192, "height": 192}]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 30, 30], "area": 900, "iscrowd": 0}
    (folder / "instances_val.json").write_text(json.dumps({**content, "annotations": [box]}))
    return folder


def test_eval_and_detect_give_the_same_tiles(run: Command, sized: Path, large: Path, tmp_path: Path) -> None:
    said = run("eval", sized, large, "--out", tmp_path / "eval", "--tile", "auto").out
    assert "tiles of 96 pixels (at which objects of the size learnt appear as in the training)" in " ".join(
        said.split()
    )
    said = run(
        "detect", sized, large / "large.png", "--out", tmp_path / "found", "--tile", "auto", "--score", "0.2"
    ).out
    assert "tiles of 96 pixels" in said
    evaluated = json.loads((tmp_path / "eval" / "detections.json").read_text())
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"]
    assert len(evaluated) == len(found) > 40  # more than the limit of a tile
    scores = sorted(each["score"] for each in evaluated)
    np.testing.assert_allclose(sorted(each["score"] for each in found), scores, atol=1e-4)


def test_scales_and_overlap_change_the_tiles(run: Command, sized: Path, large: Path, tmp_path: Path) -> None:
    flags = ("--tile", "96", "--overlap", "24", "--tile-scales", "1", "0.5")
    said = run("detect", sized, large / "large.png", "--out", tmp_path, *flags).out
    assert "tiles of 96 pixels (as given), with an overlap of 24 (as given)" in " ".join(said.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "20"], "--tile is 20; give at least 64 pixels, or auto"),
        (["--tile", "96", "--overlap", "96"], "--overlap is 96, but tiles are 96 pixels wide; give a smaller overlap"),
        (["--overlap", "96", "--tile", "none"], "leave them out, or --tile none"),
    ],
)
def test_wrong_tiles_are_an_error_of_one_line(
    run: Command, sized: Path, large: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    for words in (["eval", sized, large], ["detect", sized, large / "large.png"]):
        assert message in run.fails(*words, "--out", tmp_path, *flags, code=2)


def test_older_weights_ask_for_the_side(run: Command, weights: Path, large: Path, tmp_path: Path) -> None:
    model, info = load_weights(weights)
    older = tmp_path / "older.safetensors"
    save_weights(older, dict(model.state_dict()), replace(info, objects=None))
    message = run.fails("detect", older, large / "large.png", "--out", tmp_path, "--tile", "auto", code=2)
    assert "stores no object sizes" in message


def test_a_model_equals_itself_in_tiles_of_the_same_side(
    run: Command, sized: Path, large: Path, tmp_path: Path
) -> None:
    said = run("eval", sized, sized, large, "--out", tmp_path, "--tile", "96").out
    assert "tiles of 96 pixels (as given)" in " ".join(said.split())
    assert json.loads((tmp_path / "compare.json").read_text())["AP"]["delta"] == 0
