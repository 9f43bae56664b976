"""State dicts of torchvision's RetinaNet: names of keys, wrappers, classes, and saving the imported detector."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

import retinanet
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detections import Detections
from retinanet.errors import CheckpointError
from retinanet.zoo.importers import from_torchvision
from retinanet.zoo.importers.torchvision import load_torchvision
from retinanet.zoo.weights import save_weights
from torchvision_parity import (
    as_array,
    assert_same_detections,
    assert_same_outputs,
    assert_varied,
    imported,
    light_retinanet,
    randomize,
    resnet_retinanet,
    see_ours,
    see_theirs,
    smooth_image,
)


@pytest.fixture(scope="module")
def light() -> RetinaNet:
    return light_retinanet()


@pytest.fixture(scope="module")
def light_imported(light: RetinaNet) -> PyTorchDetector:
    return imported(light)


def tensors(detector: PyTorchDetector) -> dict[str, Tensor]:
    return detector.model.state_dict()


def assert_equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def named_as_before_0_13(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d)\.0\.(\w+)", key):
            key = f"{match[1]}.{2 * int(match[2])}.{match[3]}"
        result[re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key)] = value
    return result


def test_key_names_of_older_releases(light: RetinaNet, light_imported: PyTorchDetector) -> None:
    old = named_as_before_0_13(light.state_dict())
    for key in (
        "head.classification_head.conv.0.weight",
        "head.classification_head.conv.6.bias",
        "head.regression_head.conv.4.weight",
        "backbone.fpn.inner_blocks.0.weight",
        "backbone.fpn.layer_blocks.2.bias",
    ):
        assert key in old
        assert key not in light.state_dict()
    copy.deepcopy(light).load_state_dict(dict(old))  # torchvision itself still reads these names
    assert_equal(tensors(from_torchvision(old, "fp32", "cpu")), tensors(light_imported))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, id="data-parallel"),
        pytest.param(lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}}, id="reference-scripts"),
        pytest.param(
            lambda state: {
                "state_dict": {f"model.{key}": value for key, value in state.items()},
                "hyper_parameters": {"lr": 0.1},
                "callbacks": [],
            },
            id="lightning",
        ),
        pytest.param(
            lambda state: {
                "state_dict": {
                    **{f"model.{key}": value for key, value in state.items()},
                    "metric.confmat": torch.zeros(2, 2),
                }
            },
            id="lightning-with-a-metric",
        ),
        pytest.param(
            lambda state: {
                "model_state_dict": {f"model.module.{k}": v for k, v in named_as_before_0_13(state).items()}
            },
            id="all-of-it",
        ),
    ],
)
def test_wrapped_state_dicts(
    light: RetinaNet, light_imported: PyTorchDetector, wrap: Callable[[dict[str, Tensor]], Mapping[str, Any]]
) -> None:
    assert_equal(tensors(from_torchvision(wrap(light.state_dict()), "fp32", "cpu")), tensors(light_imported))


def test_half_precision_is_widened(light: RetinaNet) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in light.state_dict().items()}
    widened = tensors(from_torchvision(half, "fp32", "cpu"))
    exact = tensors(from_torchvision({k: v.float() for k, v in half.items()}, "fp32", "cpu"))
    assert {value.dtype for value in widened.values()} == {torch.float32, torch.int64}
    assert_equal(widened, exact)


@pytest.mark.parametrize("classes", [1, 7, 91])
def test_any_number_of_classes(classes: int) -> None:
    model = randomize(resnet_retinanet("resnet18", classes, min_size=64, max_size=128), seed=6)
    detector = imported(model, size=64, longest=128)
    assert detector.model.num_classes == classes
    names = detector.classes
    assert len(names) == len(set(names)) == classes
    if classes == 91:
        assert names[:3] == ("__background__", "person", "bicycle")
        assert names[90] == "toothbrush"
    else:
        assert names == tuple(f"class {index}" for index in range(classes))
    ours, theirs = see_ours(detector, smooth_image(80, 100)), see_theirs(model, smooth_image(80, 100))
    assert_same_outputs(ours, theirs)
    assert_same_detections(ours.found, theirs.found, allowed=2)
    assert len(set(theirs.found.labels.tolist())) >= min(classes, 5)


def test_given_class_names(light: RetinaNet) -> None:
    assert from_torchvision(light.state_dict(), "fp32", "cpu", classes=list("abcdefg")).classes == tuple("abcdefg")
    for names in (list("abcdef"), list("abcdefgh"), list("abcdeff"), []):
        with pytest.raises(
            CheckpointError, match=f"^{len(names)} class names for 7 outputs; give 7 different"
        ) as caught:
            from_torchvision(light.state_dict(), "fp32", "cpu", classes=names)
        assert "\n" not in str(caught.value)


def test_saved_and_loaded_again(light: RetinaNet, light_imported: PyTorchDetector, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    save_weights(path, tensors(light_imported), light_imported.info)
    loaded = retinanet.load(path, "fp32", "cpu")
    assert loaded.info == light_imported.info
    image = smooth_image(240, 320)
    (expected,) = light_imported.detect([as_array(image)])
    (found,) = loaded.detect([as_array(image)])
    assert_varied(found)
    for name in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    # and through the front door
    theirs = see_theirs(light, image).found
    result = loaded(image.permute(1, 2, 0).numpy(), score=0.05)
    assert result.confidence is not None
    assert result.class_id is not None
    public = Detections.of_one_image(
        result.xyxy.astype(np.float32), result.confidence.astype(np.float32), result.class_id.astype(np.int64)
    )
    assert_same_detections(public, theirs, allowed=2)


def test_importing_weights_needs_no_detector() -> None:
    """The layers hold: ``zoo`` lies below ``detect``, and ``from_torchvision`` is looked up on first use."""
    code = "import sys, retinanet.zoo.importers.torchvision; print('retinanet.detection.detector' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_model_is_given_with_its_description(light: nn.Module) -> None:
    model, info = load_torchvision(light.state_dict(), classes=list("abcdefg"))
    assert not model.training
    assert info.classes == tuple("abcdefg")
    assert_equal(model.state_dict(), tensors(from_torchvision(light.state_dict(), "fp32", "cpu")))
