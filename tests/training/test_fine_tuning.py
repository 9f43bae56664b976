"""Training from a detector (``model.init``)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands import Command
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.errors import ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.training.fine_tuning import start_from, start_lines, starting_config
from retinanet.zoo.weights import save_weights

SETTINGS = {
    "model": {"backbone": "resnet18", "channels": 32, "subnet_depth": 1, "relu_before_p7": False},
    "anchors": {"ratios": [1.0, 3.0], "offset": 0.5},
    "data": {"resize": "opencv", "pad_to": 64},
    "decode": {"clip": "after_nms"},
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config.from_dict(SETTINGS)
    model = network(config, 3)
    model.backbone.mean = (0.1, 0.2, 0.3)
    path = tmp_path_factory.mktemp("detector") / "animals.safetensors"
    save_weights(path, model.state_dict(), ModelInfo.of(model, ("ape", "bee", "cat"), config))
    return path


def network(config: Config, classes: int) -> RetinaNet:
    model = RetinaNet.from_config(config.model, config.anchors, classes, pretrained=False)
    with torch.no_grad():
        model.classification.predict.weight.normal_()
        assert model.classification.predict.bias is not None
        model.classification.predict.bias.normal_()
    return model


def test_the_detectors_structure_replaces_that_of_the_recipe(detector: Path) -> None:
    config = starting_config(Config(), {"model.init": str(detector)})
    assert config.model.backbone == "resnet18"
    assert not config.model.relu_before_p7
    assert config.model.init == str(detector)
    assert config.anchors == Config.from_dict(SETTINGS).anchors
    assert (config.data.resize, config.data.pad_to, config.decode.clip) == ("opencv", 64, "after_nms")
    assert config.data.size == Config().data.size
    assert starting_config(Config(), {}) == Config()


def test_body_and_box_subnet_are_kept_and_classes_are_found_by_name(detector: Path) -> None:
    config = starting_config(Config(), {"model.init": str(detector)})
    model = network(config, 2)
    before = model.classification.predict.weight.detach().clone().view(6, 2, -1)
    start_from(model, str(detector), ("cat", "dog"))
    theirs = network(config, 3)
    start_from(theirs, str(detector), ("ape", "bee", "cat"))
    for key, value in theirs.state_dict().items():
        if not key.startswith("classification.predict."):
            assert torch.equal(model.state_dict()[key], value), key
    after, known = (each.classification.predict.weight.detach().view(6, -1, 32 * 9) for each in (model, theirs))
    assert torch.equal(after[:, 0], known[:, 2])
    assert torch.equal(after[:, 1], before[:, 1])
    assert model.mean == (0.1, 0.2, 0.3)


def test_a_network_of_another_structure_is_refused(detector: Path) -> None:
    config = starting_config(Config(), {"model.init": str(detector)})
    wider = Config.from_dict({**config.to_dict(), "model": {**config.to_dict()["model"], "channels": 64}})
    with pytest.raises(ConfigError, match=r"does not fit.*leave model\.\* out"):
        start_from(network(wider, 2), str(detector), ("cat", "dog"))


def test_a_bundled_model_can_be_the_start() -> None:
    config = starting_config(Config(), {"model.init": "person"})
    assert config.model.subnet_norm == "group"
    model = RetinaNet.from_config(config.model, config.anchors, 1, pretrained=False)
    start_from(model, "person", ("a",))


def test_kept_new_and_unused_classes_are_listed(detector: Path) -> None:
    taken, classes = start_lines(str(detector), ("cat", "dog", "[eel]"))
    assert taken.startswith(f"starting from {detector}: its backbone, its feature pyramid, its box subnet")
    assert classes.startswith("classes that keep their outputs: cat; new classes: dog, [eel]; ")
    assert classes.endswith("that are left out: ape, bee")
    _, classes = start_lines("person", tuple(f"c{number}" for number in range(20)))
    assert "keep their outputs: none; new classes: c0, c1, c2, c3, c4, c5, c6, c7, … (20 in all); " in classes


def test_a_training_says_once_what_it_takes_from_the_detector(run: Command, parts: Path, tmp_path: Path) -> None:
    config = Config.from_dict({"model": {"backbone": "resnet18", "channels": 32, "subnet_depth": 1}})
    model = network(config, 2)
    names = (read_split(parts, "train").classes[1], "something else")
    save_weights(tmp_path / "start.safetensors", model.state_dict(), ModelInfo.of(model, names, config))
    flags = ["--data.size", "64", "--data.workers", "0", "--train.batch", "4", "--train.precision", "fp32"]
    flags += ["--train.epochs", "1"]
    words = ["train", parts, "--out", tmp_path / "run", "--model.init", tmp_path / "start.safetensors", *flags]
    said = run(*words)
    assert (said.code, said.err) == (0, "")
    text = " ".join(said.out.split())
    assert text.count("starting from") == 1
    assert f"classes that keep their outputs: {names[0]}; new classes: " in text
    assert "that are left out: something else" in text
    said = run(*words, "--resume")
    assert (said.code, said.err) == (0, "")
    assert "starting from" not in said.out
