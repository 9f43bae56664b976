from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinanet.config import Config
from retinanet.data.dataset import DatasetBuilder
from retinanet.data.learnt_sizes import learnt_sizes
from retinanet.errors import CheckpointError
from retinanet.object_sizes import PERCENT, ObjectSizes
from retinanet.runtime.exported import ExportedModel
from retinanet.zoo.weights import bundled_names, find_weights, load_weights, read_info, save_weights


def test_sizes_are_quantiles_at_the_scale_of_the_input(tmp_path: Path) -> None:
    builder = DatasetBuilder("drawn", tmp_path, ["a"])
    builder.add_image("wide.jpg", 400, 200)  # shorter side 200 → 100: half the size
    builder.add_box((0, 0, 40, 10), 0, "1")
    builder.add_box((100, 100, 110, 140), 0, "2")
    builder.add_image("long.jpg", 1000, 100)  # longer side 1000 → 250: a quarter
    builder.add_box((0, 0, 60, 60), 0, "3")
    builder.add_box((0, 0, 900, 90), 0, "crowd", ignore=True)
    data = Config.from_dict({"data": {"size": 100, "max_size": 250}}).data
    sizes = learnt_sizes(builder.build(), data)
    assert sizes is not None
    assert sizes.longer_side(100) == pytest.approx(20)
    assert sizes.longer_side(1) == pytest.approx(15, abs=0.2)
    assert sizes.areas[PERCENT.index(100)] == pytest.approx(15)
    assert sizes.scale == pytest.approx(0.5)


def test_no_object_has_no_size(tmp_path: Path) -> None:
    builder = DatasetBuilder("drawn", tmp_path, ["a"])
    builder.add_image("empty.jpg", 400, 200)
    assert learnt_sizes(builder.build(), Config().data) is None


def test_weights_and_exported_files_store_the_sizes(weights: Path, tmp_path: Path) -> None:
    model, info = load_weights(weights)
    sizes = ObjectSizes.of(np.array([[0, 0, 10, 20], [0, 0, 5, 4]]), np.array([0.5, 0.5]))
    path = tmp_path / "own.safetensors"
    described = type(info).of(model, info.classes, info.config, objects=sizes)
    save_weights(path, dict(model.state_dict()), described)
    assert read_info(path).objects == sizes
    assert ExportedModel.from_json(ExportedModel(described).to_json(), path).info.objects == sizes


def test_older_files_have_no_sizes(weights: Path, tmp_path: Path) -> None:
    model, info = load_weights(weights)
    values = info.to_dict()
    del values["objects"]
    assert type(info).from_dict(values, "older").objects is None
    save_weights(tmp_path / "none.safetensors", dict(model.state_dict()), replace(info, objects=None))
    assert read_info(tmp_path / "none.safetensors").objects is None


@pytest.mark.parametrize(
    "change", [{"scale": 0}, {"scale": "wide"}, {"areas": [1, 2]}, {"areas": [3] * 7 + [1]}, {"longer_sides": None}]
)
def test_damaged_sizes_are_an_error_of_one_line(weights: Path, tmp_path: Path, change: dict[str, object]) -> None:
    model, info = load_weights(weights)
    path = tmp_path / "own.safetensors"
    save_weights(path, dict(model.state_dict()), replace(info, objects=None))
    sizes = ObjectSizes.of(np.array([[0, 0, 10, 20]]), np.array([0.5]))
    assert sizes is not None
    damaged = sizes.to_dict() | change
    content = path.read_bytes()
    raw, new = b'\\"objects\\": null', json.dumps(json.dumps({"objects": damaged}))[2:-2].encode()
    assert raw in content
    length = int.from_bytes(content[:8], "little") + len(new) - len(raw)
    path.write_bytes(length.to_bytes(8, "little") + content[8:].replace(raw, new))
    with pytest.raises(CheckpointError, match="its description cannot be read"):
        read_info(path)


def test_a_training_stores_the_sizes(trained: tuple[Path, str]) -> None:
    sizes = read_info(trained[0] / "best.safetensors").objects
    assert sizes is not None
    assert sizes == read_info(trained[0] / "last.safetensors").objects
    assert 4 < sizes.longer_side(1) < sizes.longer_side(100) <= 96


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_models_store_the_sizes(name: str) -> None:
    sizes = read_info(find_weights(name)).objects
    assert sizes is not None
    assert sizes.longer_side(100) <= 426
