"""On the CPU, the images of a batch are computed at the same time, each alone, with the results that each has alone."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from retinanet.config import Config
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.streams import in_streams
from retinanet.detections import Detections
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.recipes import load_recipe

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(own)


@pytest.fixture(scope="module")
def detector() -> PyTorchDetector:
    torch.manual_seed(0)
    values = load_recipe("paper").to_dict()
    values["model"] |= {"backbone": "resnet18", "pretrained": False, "channels": 32}
    values["data"] |= {"size": 96, "max_size": 128}
    config = Config.from_dict(values)
    model = RetinaNet.from_config(config.model, config.anchors, 2)
    return PyTorchDetector(model, ModelInfo.of(model, ("a", "b"), config), precision="fp32")


def images(*shapes: tuple[int, int]) -> list[Pixels]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def same(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_result_of_an_image_is_bit_for_bit_the_one_that_it_has_alone(detector: PyTorchDetector, count: int) -> None:
    batch = images(*[(96, 128), (96, 96), (64, 128), (96, 128), (33, 57)][:count])
    together = detector.detect_scaled(batch, 0.001, 50)
    torch.set_num_threads(1)
    assert sum(map(len, together)) > 0
    for image, found in zip(batch, together, strict=True):
        same(found, detector.detect_scaled([image], 0.001, 50)[0])


def test_images_run_at_the_same_time_with_one_thread_each() -> None:
    both = threading.Barrier(2)

    def work(item: int) -> tuple[int, int]:
        both.wait(60)  # only another stream ends this
        return item, torch.get_num_threads()

    assert in_streams(work, range(4), 2) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_the_number_of_threads_of_other_threads_stays(detector: PyTorchDetector) -> None:
    detector.detect_scaled(images((96, 128), (96, 128)))
    found: list[int] = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [2, 2]


def test_a_single_image_and_a_network_with_one_thread_need_no_streams(
    detector: PyTorchDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet.detection.pytorch.in_streams", None)
    assert len(detector.detect_scaled(images((96, 128)))) == 1
    torch.set_num_threads(1)
    assert len(detector.detect_scaled(images((96, 128), (96, 128)))) == 2


def test_an_error_in_a_stream_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_streams(lambda item: 1 // item, [1, 0, 2], 2)
    assert in_streams(lambda item: item + 1, [1, 2], 2) == [2, 3]


def test_a_forked_process_has_streams_of_its_own() -> None:
    assert in_streams(abs, [-1, -2], 2) == [1, 2]
    process = multiprocessing.get_context("fork").Process(target=in_streams, args=(abs, [-1, -2], 2))
    process.start()
    process.join(60)
    assert process.exitcode == 0
