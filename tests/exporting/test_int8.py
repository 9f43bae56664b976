"""Quantization to INT8, on images whose labels are the best detections of the float32 model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from labelled import labelled_by
from retinanet.config import Config
from retinanet.data.synthetic import CLASSES
from retinanet.exporting import api
from retinanet.exporting.options import ExportOptions
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.weights import save_weights


def model_with_a_large_channel(factor: float) -> tuple[RetinaNet, ModelInfo]:
    """A small network. One channel before the last convolution is ``factor`` times as large as the others.

    The outputs do not depend on ``factor``, but INT8 has one range for all channels of an activation.
    """
    torch.manual_seed(0)
    model_settings = {"backbone": "resnet18", "channels": 32, "subnet_depth": 1, "pretrained": False}
    config = Config.from_dict({"model": model_settings, "data": {"size": 64, "max_size": 96}})
    model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES), pretrained=False).eval()
    nn.init.normal_(model.regression.predict.weight, std=0.05)
    with torch.inference_mode():
        spread = torch.cat(model(torch.randn(1, 3, 64, 64)).logits, dim=1).std()
    with torch.no_grad():
        model.classification.predict.weight.mul_(2 / spread)
        first, last = model.classification.tower[0], model.classification.predict
        assert isinstance(first, nn.Conv2d)
        assert first.bias is not None
        first.weight[0] *= factor
        first.bias[0] *= factor
        last.weight[:, 0] /= factor
    return model, ModelInfo.of(model, CLASSES, config)


@pytest.fixture
def planted(sound: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Weights that lose nearly everything in INT8, and a dataset on which they have a high AP."""
    model, info = model_with_a_large_channel(1e4)
    weights = tmp_path / "planted.safetensors"
    save_weights(weights, model.state_dict(), info)
    return weights, labelled_by(weights, sound, tmp_path / "labelled")


def test_layers_that_cost_too_much_stay_in_higher_precision(planted: tuple[Path, Path], tmp_path: Path) -> None:
    weights, data = planted
    said: list[str] = []
    options = ExportOptions(int8=True, max_drop=10)
    result = api.export(weights, "openvino", tmp_path / "int8.xml", data=data, options=options, say=said.append)
    assert any("INT8 costs" in line for line in said)
    [note] = [each for each in result.notes if "convolutions are INT8" in each]
    kept = note.partition("in higher precision: ")[2].split(", ")
    assert kept[0] == "the first convolution"
    assert "classification.predict (on 5 levels)" in kept
    assert len(kept) < 8
    [verification] = result.verifications
    assert verification.ap is not None
    assert verification.ap[0] > 0.7
    assert verification.drop <= 10
    sizes = [Path(each).stat().st_size for each in result.files]
    assert sum(sizes) < weights.stat().st_size / 2
