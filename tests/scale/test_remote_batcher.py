"""A server whose networks run elsewhere: answers, replicas that die, and differing models. Ray's handle is replaced."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinanet._version import __version__
from retinanet.detection.detector import Detector
from retinanet.detection.loading import load
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.scale.replica import Replica, require_same
from retinanet.scale.serving import RemoteBatcher
from retinanet.scale.work import ModelSource
from retinanet.scale.worker import weights_digest
from retinanet.serve.batcher import Batcher, Job, Options
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import ServeSettings

ray_exceptions = pytest.importorskip("ray.exceptions", reason="the extra [scale] is not installed")


class Method:
    """A method of Ray's handle."""

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self.remote = function


class Handle:
    """Ray's handle of one replica in this process, which dies during the first ``deaths`` requests."""

    def __init__(self, replica: Replica, deaths: int = 0) -> None:
        self.replica, self.deaths = replica, deaths
        self.describe = Method(self._describe)
        self.detect = Method(self._detect)

    async def _describe(self) -> Any:
        return self.replica.describe()

    async def _detect(self, *arguments: Any) -> Any:
        if self.deaths > 0:
            self.deaths -= 1
            raise ray_exceptions.RayActorError
        return await self.replica.detect(*arguments)


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load(weights)


@pytest.fixture(scope="module")
def replica(weights: Path) -> Replica:
    return Replica({"parts": ModelSource(str(weights))}, ServeSettings(), Path.cwd())


def batcher(replica: Replica, detector: Detector, deaths: int = 0) -> RemoteBatcher:
    return RemoteBatcher(Handle(replica, deaths), {"parts": detector}, ServeSettings(), lambda images: None)


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 72)).save(file, "PNG")
    return file.getvalue()


def job(content: bytes, seconds: float = 20.0) -> Job:
    return Job(content, Options("parts", 0.1), monotonic() + seconds, keep=True)


def test_answers_are_those_of_a_server_without_ray(replica: Replica, detector: Detector) -> None:
    remote, local = batcher(replica, detector), Batcher({"parts": detector}, ServeSettings())
    for seed in range(5):
        ours = remote.submit(job(photo(seed))).result(20)
        theirs = local.submit(job(photo(seed))).result(20)
        assert len(ours.detections) > 0
        np.testing.assert_array_equal(ours.detections.boxes, theirs.detections.boxes)
        np.testing.assert_array_equal(ours.detections.scores, theirs.detections.scores)
        assert ours.size == theirs.size
        assert ours.image is not None
        assert theirs.image is not None
        np.testing.assert_array_equal(ours.image, theirs.image)
        assert ours.seconds.keys() == theirs.seconds.keys()
    remote.close()
    local.close()


def test_a_request_whose_replica_dies_is_sent_again(replica: Replica, detector: Detector) -> None:
    remote = batcher(replica, detector, deaths=3)
    assert len(remote.submit(job(photo(0))).result(20).detections) > 0
    remote.close()


def test_without_replicas_a_request_ends_at_its_deadline(replica: Replica, detector: Detector) -> None:
    remote = batcher(replica, detector, deaths=10**9)
    begin = monotonic()
    with pytest.raises(Refusal, match="no worker answered in time") as refused:
        remote.submit(job(photo(0), seconds=0.5)).result(20)
    assert (refused.value.status, refused.value.retry_after) == (503, 2)
    assert monotonic() - begin < 5
    remote.close()


def test_a_refusal_of_a_replica_keeps_its_code(replica: Replica, detector: Detector) -> None:
    remote = batcher(replica, detector)
    with pytest.raises(Refusal) as refused:
        remote.submit(job(photo(0)[:-40])).result(20)
    assert refused.value.code == "broken_image"
    remote.close()


def test_closing_answers_what_was_accepted_and_refuses_the_rest(replica: Replica, detector: Detector) -> None:
    remote = batcher(replica, detector, deaths=2)
    accepted = [remote.submit(job(photo(seed))) for seed in range(6)]
    assert not remote.stuck(60)
    remote.close()
    assert all(len(each.result(0).detections) > 0 for each in accepted)
    with pytest.raises(Refusal, match="shutting down"):
        remote.submit(job(photo(0)))
    assert not remote.stuck(0)


def test_a_request_that_nobody_waits_for_is_dropped(replica: Replica, detector: Detector) -> None:
    started, ended = threading.Event(), threading.Event()

    class Slow(Handle):
        async def _detect(self, *arguments: Any) -> Any:
            started.set()
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                ended.set()
                raise

    remote = RemoteBatcher(Slow(replica), {"parts": detector}, ServeSettings(), lambda images: None)
    future = remote.submit(job(photo(0)))
    assert started.wait(10)
    future.cancel()
    assert ended.wait(10)
    remote.close()


def test_replicas_must_have_the_same_models_and_version(replica: Replica, detector: Detector) -> None:
    require_same(replica.describe(), {"parts": detector})
    digest = weights_digest(detector)
    with pytest.raises(ConfigError, match="the model parts of the workers is another file"):
        require_same((__version__, "", {"parts": "0"}), {"parts": detector})
    with pytest.raises(ConfigError, match=r"the workers have retinanet 0\.0\.1 and this machine"):
        require_same(("0.0.1", "", {"parts": digest}), {"parts": detector})


def test_a_replica_that_cannot_load_its_model_says_why(detector: Detector, tmp_path: Path) -> None:
    broken = Replica({"parts": ModelSource(str(tmp_path / "absent.safetensors"))}, ServeSettings(), Path.cwd())
    with pytest.raises(RetinaNetError, match=r"a worker cannot load the models \(.*absent\.safetensors.*same files"):
        batcher(broken, detector)
    broken.check_health()
