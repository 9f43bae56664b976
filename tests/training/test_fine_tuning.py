"""Training from a detector (``model.init``)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retinanet.config import Config
from retinanet.errors import ConfigError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.training.fine_tuning import start_from, starting_config
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
