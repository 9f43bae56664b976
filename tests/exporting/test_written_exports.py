"""A file that cannot be written is explained in one line, and nothing remains of it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from time import sleep
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from exported_files import INFO
from retinanet.errors import RetinaNetError
from retinanet.exporting.files import staged, write_model
from retinanet.exporting.options import Target
from retinanet.runtime.exported import ExportedModel
from retinanet.runtime.openvino import import_without_telemetry


def an_onnx_model() -> Any:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "small", [value], [result]))


def a_model(target: Target) -> Any:
    if target == "onnx":
        return an_onnx_model()
    if target == "torch":
        return torch.export.export(nn.ReLU(), (torch.zeros(1),))
    return import_without_telemetry("openvino").Core().read_model(an_onnx_model().SerializeToString())


def full(path: Path, *arguments: Any) -> None:
    with path.open("wb") as file:
        file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_openvino(model: Any, path: str, **settings: Any) -> None:
    Path(path).with_suffix(".bin").write_text("half")
    raise RuntimeError("Exception from src/core/serialize.cpp:1\nbasic_ios::clear: iostream error\n")


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [
        ("onnx", "model.onnx", r"\(No space left on device\)"),
        ("torch", "model.pt2", r"\(No space left on device\)"),
        ("openvino", "model.xml", r"\(OpenVINO: basic_ios::clear: iostream error; is the disk full\?\)"),
    ],
)
def test_a_full_disk(target: Target, name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = a_model(target), tmp_path / name
    path.write_text("older")
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(import_without_telemetry("openvino"), "save_model", full_for_openvino)
    message = f"{name}: cannot be written {reason}; free some space or choose another folder$"
    with pytest.raises(RetinaNetError, match=message) as raised, staged(path) as staging:
        write_model(target, model, ExportedModel(INFO), staging)
    assert "\n" not in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert path.read_text() == "older"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"model\.onnx: cannot be written .* choose another folder"
    with pytest.raises(RetinaNetError, match=message), staged(tmp_path / "file" / "model.onnx"):
        pytest.fail("the block must not run")


def test_errors_of_the_block_pass_and_nothing_remains(tmp_path: Path) -> None:
    def write_half() -> None:
        with staged(tmp_path / "x" / "model.onnx") as staging:
            staging.write_text("half")
            raise RuntimeError("cannot open it, no space")

    with pytest.raises(RuntimeError, match="cannot open it, no space"):
        write_half()
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_remains_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "model.onnx") as staging:
            staging.write_text("half")
            os.kill(os.getpid(), number)
            sleep(30)

    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = signal.signal(number, usual[number])  # Ray leaves its own handler in the process of the tests
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []
