from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from retinanet.errors import CheckpointError
from retinanet.model.foreign_weights import read_foreign


class Command:
    """Pickles as a call of ``function`` with ``arguments``, which whoever unpickles it makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refused(path: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_foreign(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "protocol 4"])
@pytest.mark.parametrize("how", ["os.system", "subprocess", "open", "eval", "touch"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, kind: str, how: str) -> None:
    proof, path = tmp_path / "ran", tmp_path / "hostile.pth"
    command = {
        "os.system": Command(os.system, f'echo ran > "{proof}"'),
        "subprocess": Command(subprocess.check_call, [sys.executable, "-Ic", f"open({str(proof)!r}, 'w')"]),
        "open": Command(open, str(proof), "w"),
        "eval": Command(eval, f"open({str(proof)!r}, 'w')"),
        "touch": Command(Path.touch, proof),
    }[how]
    content = {"state_dict": {"weight": torch.zeros(2), "bias": command}}
    if kind == "zip":
        torch.save(content, path)
        assert zipfile.is_zipfile(path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert not zipfile.is_zipfile(path)
    else:
        path.write_bytes(pickle.dumps({"bias": command}, protocol=2 if kind == "plain pickle" else 4))
    refused(path, "could run code", "state_dict()")
    assert not proof.exists()
    # the payload is a working one
    if kind in ("zip", "legacy"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert proof.exists()


def test_the_line_shows_the_code_that_saves_the_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pth"
    torch.save({"x": Command(os.system, "true")}, path)
    refused(path, "system", 'torch.save(model.state_dict(), "weights.pth")')


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("hello world\n", id="text"),
        pytest.param("<!DOCTYPE html>\n<html><body>404</body></html>\n", id="page"),
        pytest.param("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", id="lfs-pointer"),
        pytest.param('{"model": {}}\n', id="json"),
    ],
)
def test_text_is_refused_as_no_weights_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_text(content)
    assert "run code" not in refused(path, "was not written by torch.save")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.write_bytes(b"")
    refused(path, "was not written by torch.save")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"weight": torch.arange(5000.0)}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "a folder, not a weights file")
    refused(tmp_path / "absent.pth", "no such weights file")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3, None, "text", (1, 2)])
def test_what_is_no_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    refused(path, "expected a state dict", f"found a {type(content).__name__}")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_read(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / "good.pth"
    torch.save(
        {"model": module.state_dict(), "epoch": 3, "args": {"lr": 0.1, "names": ["a", None], "pair": (1, True)}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    content = read_foreign(path)
    assert content["epoch"] == 3
    assert content["args"] == {"lr": 0.1, "names": ["a", None], "pair": (1, True)}
    state = module.state_dict()
    assert isinstance(state, OrderedDict)
    assert content["model"].keys() == state.keys()
    assert all(torch.equal(content["model"][key], state[key]) for key in state)
    assert all(value.device.type == "cpu" for value in content["model"].values())


def test_suffixes_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"weight": torch.ones(2)}, path)
    assert read_foreign(path)["weight"].tolist() == [1, 1]


def test_safetensors_are_read_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"  # as DeepForest publishes its models
    save_file({"model.weight": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "load", None)
    assert read_foreign(path)["model.weight"].tolist() == [1, 1]
    path.write_bytes(path.read_bytes()[:-3])
    refused(path, "not a complete safetensors file")
    path.unlink()
    refused(path, "no such weights file")


def test_an_object_instead_of_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "arguments.pth"
    torch.save(argparse.Namespace(lr=0.1), path)
    refused(path, "expected a state dict, found argparse.Namespace")


def test_the_arguments_torchvisions_script_saves_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "model_25.pth"
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=0.01, data="coco")}, path)
    assert read_foreign(path)["model"]["w"].tolist() == [1, 1]


def test_what_the_system_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({}, path)

    def denied(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", denied)
    refused(path, "permission denied")

    monkeypatch.setattr("os.access", lambda *arguments: False)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"short")
    refused(path, "permission denied")
