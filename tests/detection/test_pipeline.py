from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import retinanet
from retinanet.data.image_sizes import padded_size
from retinanet.detection import batching as batching_module
from retinanet.detection import pipeline as pipeline_module
from retinanet.detection.batching import Task
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import ImageFile
from retinanet.detection.pipeline import Pipeline, PipelineOptions, Timing, detect_in_files
from retinanet.detection.sources import find_images
from stub_detector import StubDetector, mixed_images


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    return mixed_images(tmp_path)


def test_results_come_in_order_and_batches_are_full(images: list[ImageFile]) -> None:
    detector = StubDetector()
    results = list(detect_in_files(detector, images, 0.3, batch=4))
    assert [result.image for result in results] == images
    assert "02.png" in str(results[2].error)
    assert results[2].found is None
    assert results[2].pixels is None
    assert results[2].size is None
    sizes = [result.size for result in results if result.size]
    padded = {padded_size([size]) for size in sizes}
    assert len(padded) == 3
    full = [batch for batch in detector.batches if len(batch) == 4]
    assert len(detector.batches) - len(full) <= len(padded) + 1
    for result in results:
        if result.size is not None:
            assert result.pixels is not None
            assert result.found is not None
            assert len(result.found) == int(result.pixels[0, 0, 0]) % 4


def test_pixels_are_kept_on_request_only(images: list[ImageFile]) -> None:
    run = Pipeline(StubDetector(), PipelineOptions(0.3, keep_pixels=False)).run(map(Task, images))
    assert all(result.pixels is None for result in run)


@pytest.mark.parametrize("done", [0, 1, 7, 33, 64, 89, 90])
def test_resumed_run_has_the_batches_of_an_uninterrupted_run(images: list[ImageFile], done: int) -> None:
    whole = StubDetector()
    results = list(detect_in_files(whole, images, 0.3))
    tasks = [Task(each.image, place < done, each.size) for place, each in enumerate(results)]
    resumed = StubDetector()
    rest = list(Pipeline(resumed, PipelineOptions(0.3)).run(tasks))
    assert [result.image for result in rest] == images[done:]
    assert resumed.batches == whole.batches[len(whole.batches) - len(resumed.batches) :]
    assert len(resumed.batches) <= len(whole.batches) - done // 8 + 3
    for result, expected in zip(rest, results[done:], strict=True):
        assert result.error == expected.error
        if result.found is not None and expected.found is not None:
            np.testing.assert_array_equal(result.found.scores, expected.found.scores)


def test_waiting_images_are_limited_by_their_pixels(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching_module, "_WAITING_PIXELS", 10_000)
    read: list[ImageFile] = []
    monkeypatch.setattr(ImageFile, "read", lambda self, _: read.append(self) or np.zeros((40, 60, 3), np.uint8))  # type: ignore[func-returns-value]
    monkeypatch.setattr(pipeline_module, "_AHEAD_PIXELS", 5_000)
    for number, _ in enumerate(detect_in_files(StubDetector(), images, 0.3), 1):
        assert len(read) - number <= 4 + 2 + 16 * (number < 17)


def test_early_end_stops_reading(images: list[ImageFile]) -> None:
    run = Pipeline(StubDetector(), PipelineOptions(0.3)).run(map(Task, images))
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert not list(run)


def test_timing_counts_images(images: list[ImageFile]) -> None:
    pipeline = Pipeline(StubDetector(), PipelineOptions(0.3))
    assert len(list(pipeline.run(map(Task, images)))) == pipeline.timing.images == 90
    assert 0 <= pipeline.timing.reading <= pipeline.timing.total
    assert "images/s; the network waited" in str(pipeline.timing)


def test_timing_says_what_was_measured() -> None:
    fast, slow = Timing(reading=1, writing=2, total=10, images=40), Timing(writing=1, total=50, images=4, tiled=True)
    assert str(fast) == "4 images/s; the network waited 10% for images, 20% for output files"
    assert str(slow) == "12.5 s per image; the network waited 2% for output files"


def test_detections_are_those_of_each_image_alone(weights: Path, parts: Path) -> None:
    detector: Detector = retinanet.load(weights, precision="fp32", device="cpu")
    files = find_images([str(parts / "images")])[:7]
    for result in detect_in_files(detector, files, score=0.3, batch=2):
        assert result.found is not None
        alone = detector(result.image.address, score=0.3)
        np.testing.assert_allclose(result.found.boxes, np.asarray(alone.xyxy, dtype=np.float32), atol=1e-3)
