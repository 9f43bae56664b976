"""State dicts that cannot be imported are refused with the reason."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import (
    RetinaNet,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator

from retinanet.errors import CheckpointError
from retinanet.zoo.importers import from_torchvision
from torchvision_parity import light_retinanet, resnet_retinanet


@pytest.fixture(scope="module")
def light() -> RetinaNet:
    return light_retinanet()


def refused(state: Any, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught, torch.device("meta"):  # which spares the unused weights
        from_torchvision(state, "fp32", "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert "expected the state dict of torchvision's retinanet_resnet50_fpn" in message
    for word in words:
        assert word in message


def test_a_variance_that_cannot_be_divided_by(light: RetinaNet) -> None:
    key = "backbone.body.layer2.1.bn2.running_var"
    state = {name: value.clone() for name, value in light.state_dict().items()}
    frozen_state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    state[key][3] = 0
    from_torchvision(state, "fp32", "cpu")  # has an epsilon
    from_torchvision(frozen_state, "fp32", "cpu", norm_eps=1e-5)
    with pytest.raises(CheckpointError, match=r"variance of 0.*--norm-eps 1e-5") as caught:
        from_torchvision(frozen_state, "fp32", "cpu")
    assert key in str(caught.value)
    state[key][3] = -1e-3
    refused(state, key, "-0.001", "below 0")


def test_other_models_are_refused() -> None:
    with torch.device("meta"):
        refused(resnet50().state_dict(), "cls_logits.weight", "conv1.weight")
        refused(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), "cls_logits.weight")
        fcos = fcos_resnet50_fpn(weights=None, weights_backbone=None)  # whose heads carry the same names
        refused(fcos.state_dict(), "91 and 4 outputs a location")


def test_other_anchors_are_refused() -> None:
    anchors = AnchorGenerator(tuple((size,) for size in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    with torch.device("meta"):
        model = resnet_retinanet("resnet18", 4, anchor_generator=anchors)
    refused(model.state_dict(), "12 and 12 outputs a location", "9 anchors")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ("nothing",)),
        ({"model": {}}, ("nothing",)),
        ({"epoch": 3}, ("epoch",)),
        ([torch.zeros(1)], ("list",)),
        (None, ("NoneType",)),
    ],
)
def test_what_is_no_state_dict_is_refused(state: Any, words: tuple[str, ...]) -> None:
    refused(state, *words)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.body.layer2.0.conv1.weight",
        "backbone.body.bn1.running_mean",
        "backbone.fpn.inner_blocks.1.0.weight",
        "backbone.fpn.extra_blocks.p6.weight",
        "backbone.fpn.extra_blocks.p7.bias",
        "head.classification_head.conv.2.0.weight",
        "head.classification_head.cls_logits.weight",
        "head.classification_head.cls_logits.bias",
        "head.regression_head.conv.3.0.bias",
        "head.regression_head.bbox_reg.weight",
    ],
)
def test_missing_and_wrong_tensors_are_refused(light: RetinaNet, key: str) -> None:
    state = light.state_dict()
    missing = {name: value for name, value in state.items() if name != key}
    refused(missing, f"{key!r} is missing")
    refused({**state, key: "text"}, "str and not a tensor", key)
    refused({**state, key: None}, "NoneType and not a tensor", key)
    larger = torch.zeros(tuple(side + 1 for side in state[key].shape))
    shapes = (f"{tuple(larger.shape)} instead of {tuple(state[key].shape)}",)
    refused({**state, key: larger}, *(() if ".cls_logits" in key or ".bbox_reg" in key or ".p6" in key else shapes))
    refused({**state, key: larger[None]})
    for kind in (torch.int8, torch.int64, torch.bool):
        refused(
            {**state, key: torch.zeros(state[key].shape, dtype=kind)}, f"{key!r} is not a dense tensor", str(kind)[6:]
        )
    refused({**state, key: torch.zeros(())})
    refused({**state, f"{key}.more": torch.zeros(1)}, "more")


def test_a_tower_of_another_depth_is_refused(light: RetinaNet) -> None:
    state = light.state_dict()
    for part in ("weight", "bias"):
        key = f"head.classification_head.conv.4.0.{part}"
        state[key] = state[key.replace("4.0", "3.0")]
    refused(state, "missing")


def test_odd_tensors_are_refused(light: RetinaNet) -> None:
    state, key = light.state_dict(), "backbone.fpn.extra_blocks.p7.weight"
    with pytest.raises(CheckpointError, match="its tensors hold no values"):
        from_torchvision({**state, key: state[key].to("meta")}, "fp32", "cpu")
    refused({**state, key: state[key].to_sparse()}, key, "not a dense tensor")
    refused({**state, key: state[key].to(torch.complex64)}, key, "not a dense tensor")
    refused({**state, key: state[key] * math.nan}, key, "NaN")
    none = {name: torch.zeros(0, *value.shape[1:]) for name, value in state.items() if ".cls_logits." in name}
    refused({**state, **none}, "0 and 36 outputs a location")


def test_a_checkpoint_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    refused(state, "cls_logits.weight")


@pytest.mark.parametrize("classes", ["ab", ["a", ""], [1, 2]])
def test_class_names_are_texts(light: RetinaNet, classes: Any) -> None:
    with pytest.raises(CheckpointError, match="class name"):
        from_torchvision(light.state_dict(), "fp32", "cpu", classes=classes)
