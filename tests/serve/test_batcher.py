"""Batches: who shares one, who does not, and that nobody changes the result of another."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.images import read_image
from retinanet.detection.detector import Pixels
from retinanet.detection.loading import load
from retinanet.detections import Detections
from retinanet.serve.batcher import Batcher, Job, Options
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import ServeSettings
from serving import POISON, HeldDetector, gray

OPTIONS = Options("held", 0.3)


def job(value: int, options: Options = OPTIONS, size: tuple[int, int] = (96, 96), seconds: float = 30) -> Job:
    return Job(gray(value, size), options, monotonic() + seconds)


@pytest.fixture
def held() -> HeldDetector:
    return HeldDetector()


@pytest.fixture
def batcher(held: HeldDetector) -> Iterator[Batcher]:
    batcher = Batcher({"held": held}, ServeSettings(batch=4, decoders=2, wait_ms=50))
    yield batcher
    held.gate.set()
    batcher.close()


def hold(batcher: Batcher, held: HeldDetector) -> Job:
    """Keep the network busy with an image."""
    held.gate.clear()
    first = job(1)
    batcher.submit(first)
    while not held.batches:
        sleep(0.001)
    return first


def test_images_that_arrive_while_the_network_works_share_a_batch(batcher: Batcher, held: HeldDetector) -> None:
    hold(batcher, held)
    jobs = [job(value) for value in (10, 20, 30, 40, 50)]
    futures = [batcher.submit(each) for each in jobs]
    sleep(0.2)
    held.gate.set()
    found = [future.result(10) for future in futures]
    assert [each.detections.boxes[0, 2] for each in found] == [10, 20, 30, 40, 50]
    assert sorted(map(len, held.batches)) == [1, 1, 4]


def test_images_of_other_sizes_or_options_have_their_own_batches(batcher: Batcher, held: HeldDetector) -> None:
    hold(batcher, held)
    futures = [
        batcher.submit(job(10)),
        batcher.submit(job(11, size=(200, 50))),
        batcher.submit(job(12, Options("held", 0.5))),
        batcher.submit(job(13, Options("held", 0.3, max_detections=7))),
    ]
    sleep(0.2)
    held.gate.set()
    for future in futures:
        future.result(10)
    assert sorted(held.batches) == [[1], [10], [11], [12], [13]]


def test_a_network_with_streams_computes_images_of_any_size_together_and_no_more_than_streams(
    held: HeldDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldDetector, "streams", 2)
    batcher = Batcher({"held": held}, ServeSettings(batch=4, decoders=1, wait_ms=50))
    hold(batcher, held)
    futures = [batcher.submit(job(10 * place, size=(200, 50 * place))) for place in (1, 2, 3, 4)]
    sleep(0.2)
    held.gate.set()
    found = [future.result(10) for future in futures]
    assert [each.size for each in found] == [(50 * place, 200) for place in (1, 2, 3, 4)]
    assert held.batches == [[1], [10, 20], [30, 40]]
    batcher.close()


def test_an_image_on_which_the_network_fails_fails_alone(batcher: Batcher, held: HeldDetector) -> None:
    hold(batcher, held)
    futures = [batcher.submit(job(value)) for value in (10, POISON, 30)]
    sleep(0.2)
    held.gate.set()
    assert futures[0].result(10).detections.boxes[0, 2] == 10
    with pytest.raises(RuntimeError, match="does not like"):
        futures[1].result(10)
    assert futures[2].result(10).detections.boxes[0, 2] == 30


def test_an_image_that_cannot_be_decoded_fails_alone(batcher: Batcher) -> None:
    broken = Job(gray(9)[:60], OPTIONS, monotonic() + 30)
    futures = [batcher.submit(each) for each in (job(10), broken, job(30))]
    assert futures[0].result(10).size == (96, 96)
    with pytest.raises(Refusal) as refused:
        futures[1].result(10)
    assert refused.value.code == "broken_image"
    assert futures[2].result(10).size == (96, 96)


def test_jobs_that_nobody_waits_for_are_not_computed(batcher: Batcher, held: HeldDetector) -> None:
    hold(batcher, held)
    futures = [batcher.submit(job(value)) for value in (10, 20)]
    sleep(0.1)
    assert futures[0].cancel()
    held.gate.set()
    futures[1].result(10)
    assert held.batches == [[1], [20]]
    with pytest.raises(CancelledError):
        futures[0].result(1)


def test_jobs_after_their_deadline_are_not_computed(batcher: Batcher, held: HeldDetector) -> None:
    hold(batcher, held)
    late = batcher.submit(job(10, seconds=0.05))
    sleep(0.2)
    held.gate.set()
    with pytest.raises(Refusal) as refused:
        late.result(10)
    assert refused.value.code == "deadline_exceeded"
    assert held.batches == [[1]]


def test_closing_finishes_all_jobs_and_refuses_new_ones(batcher: Batcher, held: HeldDetector) -> None:
    futures = [batcher.submit(job(value)) for value in range(1, 30)]
    batcher.close()
    assert [future.result(0).detections.boxes[0, 2] for future in futures] == list(range(1, 30))
    with pytest.raises(Refusal, match="shutting down"):
        batcher.submit(job(1))
    assert batcher.stuck(1)


def test_a_single_image_does_not_wait_for_others(held: HeldDetector) -> None:
    batcher = Batcher({"held": held}, ServeSettings(wait_ms=1000))
    begin = monotonic()
    batcher.submit(job(1)).result(10)
    assert monotonic() - begin < 0.9
    batcher.close()


def test_more_jobs_than_may_wait_decoded_finish(batcher: Batcher) -> None:
    sizes = [(96, 96), (200, 50), (50, 200)]
    futures = [batcher.submit(job(value % 70, size=sizes[value % 3])) for value in range(100)]
    assert [future.result(20).detections.boxes[0, 2] > -1 for future in futures] == [True] * 100


def test_results_equal_those_of_single_images(weights: Path, parts: Path) -> None:
    detector = load(weights, precision="fp32", device="cpu")
    paths = sorted((parts / "images").glob("*.jpg"))
    batcher = Batcher({"parts": detector}, ServeSettings(batch=4, wait_ms=100))
    contents = [path.read_bytes() for path in paths]
    with Image.open(paths[0]) as image:
        file = io.BytesIO()
        image.resize((140, 90)).save(file, "PNG")
    contents.append(file.getvalue())
    futures = [batcher.submit(Job(each, Options("parts", 0.2), monotonic() + 60)) for each in contents]
    found = [future.result(60) for future in futures]
    batcher.close()
    for path, each in zip(paths, found, strict=False):
        [alone] = detector.detect([read_image(path)], 0.2, batch=1)
        np.testing.assert_array_equal(each.detections.labels, alone.labels)
        np.testing.assert_allclose(each.detections.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(each.detections.boxes, alone.boxes, atol=1e-3)
    assert max(len(each.detections) for each in found) > 3
    assert found[-1].size == (90, 140)


class CountingDetector(HeldDetector):
    """Notes the number of threads that PyTorch uses for the network."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        self.threads.append(torch.get_num_threads())
        return super().detect_scaled(images, score, max_detections)


def test_the_network_has_all_threads_although_images_are_scaled_with_one() -> None:
    detector, before = CountingDetector(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        batcher = Batcher({"held": detector}, ServeSettings())
        for _ in range(2):
            batcher.submit(Job(gray(50), Options("held", 0.3, None, None), monotonic() + 30)).result(30)
        batcher.close()
    finally:
        torch.set_num_threads(before)
    assert detector.threads == [3, 3]
