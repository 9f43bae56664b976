"""When an OpenVINO file is compiled: once for each size, and again for several streams if that pays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exported_files import write_files
from retinanet.runtime.openvino import OpenVinoNetwork, import_without_telemetry

# Heights and numbers of streams of the models that were compiled.
Compiled = list[tuple[int, int]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    calls: Compiled = []
    core = import_without_telemetry("openvino").Core
    original: Callable[..., Any] = core.compile_model

    def counted(self: Any, network: Any, device: str, settings: dict[str, Any]) -> Any:
        calls.append((network.input("images").get_shape()[2], settings["NUM_STREAMS"]))
        return original(self, network, device, settings)

    monkeypatch.setattr(core, "compile_model", counted)
    return calls


def run(network: OpenVinoNetwork, height: int, count: int) -> None:
    images: npt.NDArray[np.uint8] = np.zeros((count, 3, height, 64), np.uint8)
    network(images, np.array([[height, 64]] * count))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path / "model.xml"


def test_a_folder_of_many_sizes_compiles_each_size_once(path: Path, compiled: Compiled) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2)
    heights = [64 + 32 * i for i in range(12)]
    for _ in range(3):
        for height in heights:
            run(network, height, 1)
            run(network, height, 3)
    assert compiled == [(height, 1) for height in heights]


def test_many_images_of_a_size_are_worth_several_streams(path: Path, compiled: Compiled) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2)
    run(network, 64, 1)
    for _ in range(20):
        run(network, 64, 8)
    assert compiled == [(64, 1), (64, 2)]
    run(network, 64, 1)  # a single image uses what there is
    assert len(compiled) == 2


def test_several_images_of_a_new_size_run_on_several_streams(path: Path, compiled: Compiled) -> None:
    run(OpenVinoNetwork(path, "fp32", threads=2), 96, 4)
    assert compiled == [(96, 2)]


def test_streams_that_are_given_are_used_for_single_images_too(path: Path, compiled: Compiled) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2, streams=2)
    run(network, 64, 1)
    run(network, 64, 4)
    assert compiled == [(64, 2)]
