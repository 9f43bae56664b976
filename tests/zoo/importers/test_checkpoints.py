"""Where training scripts put the network and its class names."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from retinanet.model.foreign_weights import read_foreign
from retinanet.zoo.importers.checkpoints import find_class_names, find_network

KEY = "head.weight"
PLAIN, AVERAGE = {KEY: torch.zeros(2), "b": torch.zeros(1)}, {KEY: torch.ones(2), "b": torch.ones(1)}


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("checkpoint", "where"),
    [
        (
            {"model": PLAIN, "model_ema": {**prefixed(AVERAGE, "module."), "n_averaged": torch.tensor(3)}},
            "model_ema.module",
        ),
        ({"model_ema": AVERAGE, "model": PLAIN}, "model_ema"),
        ({"state_dict": PLAIN, "ema_state_dict": AVERAGE}, "ema_state_dict"),
        ({"state_dict": PLAIN, "state_dict_ema": AVERAGE}, "state_dict_ema"),
        ({"model": PLAIN, "ema": {"module": AVERAGE, "decay": 0.99, "updates": 7}}, "ema.module"),
        ({"model_state_dict": PLAIN, "swa_model": AVERAGE}, "swa_model"),
        ({"state_dict": {**prefixed(PLAIN, "model."), **prefixed(AVERAGE, "ema_model.")}}, "state_dict.ema_model"),
        (
            {"state_dict": {**prefixed(PLAIN, "model."), **prefixed(AVERAGE, "model_ema.module.")}},
            "state_dict.model_ema.module",
        ),
        ({"weights": {"net": PLAIN, "averaged": AVERAGE}}, "weights.averaged"),
    ],
)
def test_of_a_model_and_its_average_the_average_is_taken_and_said(checkpoint: dict[str, Any], where: str) -> None:
    network = find_network(checkpoint, KEY)
    assert network is not None
    assert network.where == where
    assert network.state[KEY].tolist() == [1, 1]
    assert network.state["b"].tolist() == [1]
    (note,) = network.notes
    assert where in note
    assert "moving average" in note


@pytest.mark.parametrize(
    "checkpoint",
    [
        PLAIN,
        prefixed(PLAIN, "module."),
        {"model": PLAIN},
        {"net": prefixed(PLAIN, "model.module.")},
        {"schema": PLAIN},
        {"checkpoint": {"trainer": {"model_state": PLAIN}}},
        {"model_ema": PLAIN},  # alone, there is nothing to choose
        {"state_dict": PLAIN, "best_state_dict": AVERAGE},  # the first
    ],
)
def test_a_single_copy_is_found_anywhere_without_a_word(checkpoint: dict[str, Any]) -> None:
    network = find_network(checkpoint, KEY)
    assert network is not None
    assert network.state.keys() == PLAIN.keys()
    assert network.state[KEY].tolist() == [0, 0]
    assert network.notes == ()


def test_mmengine_stores_the_average_as_the_model() -> None:
    """``EMAHook.before_save_checkpoint`` exchanges the two."""
    checkpoint = {
        "meta": {"mmengine_version": "0.10.4", "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": AVERAGE,
        "ema_state_dict": {"steps": torch.tensor(4), **prefixed(PLAIN, "module.")},
    }
    network = find_network(checkpoint, KEY)
    assert network is not None
    assert network.state[KEY].tolist() == [1, 1]
    assert "mmengine" in network.notes[0]
    assert find_class_names(checkpoint, 2)[0] == ("a", "b")


def test_without_the_network_nothing_is_found() -> None:
    assert find_network({"model": {"conv.weight": torch.zeros(1)}, KEY: {}}, "other.weight") is None


def test_buffers_that_the_average_lacks_come_from_the_model() -> None:
    network = find_network({"model": PLAIN, "ema": {KEY: AVERAGE[KEY]}}, KEY)
    assert network is not None
    assert network.state[KEY].tolist() == [1, 1]
    assert network.state["b"].tolist() == [0]


def test_pytorchs_average_is_found_in_a_file(tmp_path: Path) -> None:
    head = nn.Linear(2, 1)
    model = nn.ModuleDict({"head": head})
    average = AveragedModel(model)
    with torch.no_grad():
        head.weight.zero_()
    for content in (
        {"model": model.state_dict(), "model_ema": average.state_dict(), "args": argparse.Namespace(lr=0.1)},
        {"model": model, "model_ema": average},  # whole modules
    ):
        torch.save(content, tmp_path / "in.pth")
        network = find_network(read_foreign(tmp_path / "in.pth"), KEY)
        assert network is not None
        assert network.where == "model_ema.module"
        assert torch.equal(network.state[KEY], average.state_dict()["module.head.weight"])


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["cat", "dog"], ("cat", "dog")),
        (("cat", " dog "), ("cat", "dog")),
        ("cat, dog", ("cat", "dog")),
        ({"cat": 0, "dog": 1}, ("cat", "dog")),
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ([{"id": 1, "name": "dog", "supercategory": "pet"}, {"id": 0, "name": "cat"}], ("cat", "dog")),
        (OrderedDict(dog=1, cat=0), ("cat", "dog")),
        ({"dog": 1}, ("class 0", "dog")),
        (["dog"], ("__background__", "dog")),
    ],
)
@pytest.mark.parametrize(
    "key", ["label_dict", "classes", "names", "class_names", "CLASSES", "class_to_idx", "id2label"]
)
def test_class_names_are_read_in_every_form(value: Any, names: tuple[str, ...], key: str) -> None:
    assert find_class_names({"epoch": 3, key: value}, 2) == (names, key)


@pytest.mark.parametrize("outer", ["hyper_parameters", "meta", "args", "config"])
def test_class_names_are_found_among_the_settings(outer: str) -> None:
    assert find_class_names({outer: {"lr": 0.1, "classes": ["a", "b"]}}, 2) == (("a", "b"), "classes")
    assert find_class_names({outer: {"data": {"classes": ["a", "b"]}}}, 2) == (None, "")


def test_class_names_are_found_in_an_object_that_is_not_created(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(classes=["a", "b"])}, tmp_path / "in.pth")
    assert find_class_names(read_foreign(tmp_path / "in.pth"), 2) == (("a", "b"), "classes")


@pytest.mark.parametrize(
    "value", [["a", "b", "c", "d"], ["a", "a"], [" ", "b"], [1, 2], {"a": -1}, {"a": "b"}, 3, None, torch.ones(2)]
)
def test_names_that_do_not_fit_are_not_used(value: Any) -> None:
    names, note = find_class_names({"classes": value}, 2)
    assert names is None
    assert ("4 class names in 'classes' do not fit 2 outputs" in note) == (isinstance(value, list) and len(value) == 4)


def test_names_that_fit_are_preferred_to_others() -> None:
    assert find_class_names({"names": ["a", "b", "c"], "label_dict": {"x": 0, "y": 1}}, 2) == (("x", "y"), "label_dict")
