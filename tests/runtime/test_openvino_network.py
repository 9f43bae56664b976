"""When an OpenVINO file is compiled: once for all sizes, and again for several streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exported_files import write_files
from retinanet.runtime.openvino import OpenVinoNetwork, import_without_telemetry

# Heights (0: any) and numbers of streams of the models that were compiled.
Compiled = list[tuple[int, int]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    calls: Compiled = []
    core = import_without_telemetry("openvino").Core
    original: Callable[..., Any] = core.compile_model

    def counted(self: Any, network: Any, device: str, settings: dict[str, Any]) -> Any:
        height = network.input("images").get_partial_shape()[2]
        calls.append((height.get_length() if height.is_static else 0, settings["NUM_STREAMS"]))
        return original(self, network, device, settings)

    monkeypatch.setattr(core, "compile_model", counted)
    return calls


def run(network: OpenVinoNetwork, height: int, count: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (count, 3, height, 64), dtype=np.uint8)
    return dict(network(images, np.array([[height, 64]] * count)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path / "model.xml"


def test_a_folder_of_many_sizes_is_compiled_for_one_image_and_for_several(path: Path, compiled: Compiled) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2)
    for _ in range(3):
        for height in range(64, 448, 32):
            run(network, height, 1)
            run(network, height, 3)
    assert compiled == [(0, 1), (0, 2)]


def test_several_streams_give_the_results_of_one(path: Path) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2)
    for height in (64, 96):
        together = run(network, height, 4)
        for name, values in run(network, height, 1).items():
            np.testing.assert_array_equal(together[name][:1], values)


def test_streams_that_are_given_are_used_for_single_images_too(path: Path, compiled: Compiled) -> None:
    network = OpenVinoNetwork(path, "fp32", threads=2, streams=2)
    run(network, 64, 1)
    run(network, 64, 4)
    assert compiled == [(0, 2)]
