"""Batches that workers are sent, and what workers make of them, without a cluster."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from retinanet.detection.batching import Task
from retinanet.detection.input_images import ImageFile, WebImage
from retinanet.detection.pipeline import ImageResult, Pipeline, PipelineOptions
from retinanet.detection.sources import SourceList
from retinanet.detection.tile_plan import TileOptions
from retinanet.detection.web_limits import WebLimits
from retinanet.detection.write import drawn
from retinanet.errors import CheckpointError
from retinanet.scale.detection import RunBatches, in_order
from retinanet.scale.work import ModelSource, NumberedResult, WorkerSettings
from retinanet.scale.worker import Worker, weights_digest
from stub_detector import StubDetector, mixed_images


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    return mixed_images(tmp_path)


def settings(detector: StubDetector, draw: bool = False) -> WorkerSettings:
    return WorkerSettings(ModelSource("stub"), weights_digest(detector), Path.cwd(), 0.3, draw=draw)


def results_of_workers(tasks: list[Task], workers: int, detector: StubDetector) -> list[ImageResult]:
    """What workers that take turns find in the batches of some tasks, sent as bytes."""
    batches = pickle.loads(pickle.dumps(list(RunBatches(tasks, detector.input_sizes, 8))))
    team = [Worker(settings(detector), detector) for _ in range(workers)]
    found: list[NumberedResult] = []
    for place in range(0, len(batches), 3):
        found += team[place % workers].results(batches[place : place + 3])
    return list(in_order(found))


def assert_same(results: list[ImageResult], expected: list[ImageResult]) -> None:
    assert [each.image for each in results] == [each.image for each in expected]
    for each, other in zip(results, expected, strict=True):
        assert (each.size, each.error) == (other.size, other.error)
        assert (each.found is None) == (other.found is None)
        if each.found is not None and other.found is not None:
            np.testing.assert_array_equal(each.found.boxes, other.found.boxes)
            np.testing.assert_array_equal(each.found.scores, other.found.scores)
            np.testing.assert_array_equal(each.found.labels, other.found.labels)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_find_what_one_process_finds(images: list[ImageFile], workers: int) -> None:
    """The scores of the stub depend on the batch, so the batches must be the same, too."""
    tasks = [Task(image) for image in images]
    expected = list(Pipeline(StubDetector(), PipelineOptions(0.3)).run(tasks))
    assert_same(results_of_workers(tasks, workers, StubDetector()), expected)


@pytest.mark.parametrize("done", [1, 7, 33, 64, 89, 90])
def test_batches_of_a_resumed_run_are_those_of_an_uninterrupted_one(images: list[ImageFile], done: int) -> None:
    expected = list(Pipeline(StubDetector(), PipelineOptions(0.3)).run(map(Task, images)))
    tasks = [Task(each.image, place < done, each.size) for place, each in enumerate(expected)]
    assert_same(results_of_workers(tasks, 2, StubDetector()), expected[done:])


def test_batches_are_formed_without_reading_pixels(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "read", lambda *_: pytest.fail("an image was read"))
    batches = list(RunBatches([Task(image) for image in images], StubDetector().input_sizes, 8))
    assert sorted(len(batch) for batch in batches)[-1] == 8
    assert sorted(item.number for batch in batches for item in batch if item.number is not None) == list(range(90))


def test_slow_headers_are_read_side_by_side(images: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    read = ImageFile.header_size

    def slow(image: ImageFile) -> tuple[int, int] | None:
        sleep(0.02)
        return read(image)

    quick = list(RunBatches([Task(image) for image in images], StubDetector().input_sizes, 8))
    monkeypatch.setattr(ImageFile, "header_size", slow)
    begin = monotonic()
    assert list(RunBatches([Task(image) for image in images], StubDetector().input_sizes, 8)) == quick
    assert monotonic() - begin < 0.02 * len(images) / 2


def test_images_from_the_web_are_alone_in_their_batch() -> None:
    web = [WebImage(f"http://127.0.0.1/{i}.png", Path("i"), WebLimits()) for i in range(3)]
    batches = list(RunBatches([Task(image) for image in web], StubDetector().input_sizes, 8))
    assert [[item.number for item in batch] for batch in batches] == [[0], [1], [2]]


def test_images_of_an_archive_are_opened_by_the_worker(images: list[ImageFile], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for image in images[3:20]:
            archive.write(image.path, image.name)
    sources = pickle.loads(pickle.dumps(SourceList([str(tmp_path / "images.zip")])))
    expected = list(Pipeline(StubDetector(), PipelineOptions(0.3)).run(map(Task, sources)))
    found = results_of_workers([Task(image) for image in sources], 2, StubDetector())
    assert [each.image.address for each in found] == [each.image.address for each in expected]
    for each, other in zip(found, expected, strict=True):
        assert each.found is not None
        assert other.found is not None
        np.testing.assert_array_equal(each.found.scores, other.found.scores)


def test_a_worker_draws_what_one_process_draws(images: list[ImageFile]) -> None:
    tasks = [Task(image) for image in images[:10]]
    detector = StubDetector()
    [*expected] = Pipeline(StubDetector(), PipelineOptions(0.3)).run(tasks)
    worker = Worker(settings(detector, draw=True), detector)
    found = list(in_order(worker.results(list(RunBatches(tasks, detector.input_sizes, 8)))))
    assert all(each.pixels is None for each in found)
    for each, other in zip(found, expected, strict=True):
        assert each.drawing == (None if other.pixels is None else drawn(other, detector.classes))


def test_images_are_divided_into_tiles_by_the_worker(images: list[ImageFile]) -> None:
    detector = StubDetector()
    tiling = detector.tiling(TileOptions(64, 16))
    expected = list(Pipeline(StubDetector(), PipelineOptions(0.3, tiling=tiling)).run(map(Task, images)))
    worker = Worker(
        WorkerSettings(ModelSource("stub"), weights_digest(detector), Path.cwd(), 0.3, tiling=tiling), detector
    )
    batches = list(RunBatches([Task(image) for image in images], None, 8))
    assert {len(batch) for batch in batches} == {1}
    assert_same(list(in_order(worker.results(batches))), expected)


def test_a_file_that_is_cut_off_fails_alone(images: list[ImageFile]) -> None:
    cut = images[5].path.read_bytes()
    images[5].path.write_bytes(cut[: len(cut) - 30])
    found = results_of_workers([Task(image) for image in images[3:12]], 1, StubDetector())
    assert [each.error is None for each in found] == [True, True, False] + [True] * 6
    assert "05.png" in str(found[2].error)


def test_a_worker_with_other_weights_refuses_to_work() -> None:
    detector = StubDetector()
    other = WorkerSettings(ModelSource("best.safetensors"), "0123", Path.cwd())
    with pytest.raises(CheckpointError, match=r"best\.safetensors: the file on a worker .* same file on all machines"):
        Worker(other, detector)
