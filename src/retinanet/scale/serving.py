"""``retinanet serve --ray``: this process answers HTTP requests, replicas on a cluster run the networks.

The application, its limits and its page are those of a server without Ray. Ray Serve starts replicas as the load grows
and replaces those that die. A request whose replica died is sent to another one, because detection changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from retinanet.detection.detector import Detector
from retinanet.errors import RetinaNetError
from retinanet.scale.cluster import joined
from retinanet.scale.joining import workers_with_room
from retinanet.scale.options import ScaleOptions
from retinanet.scale.replica import Refused, Replica, require_same
from retinanet.scale.work import ModelSource
from retinanet.serve.batcher import Found, Job, MakeJobRunner
from retinanet.serve.refusals import Refusal
from retinanet.serve.run import ServeOptions, model_names
from retinanet.serve.settings import ServeSettings

# Seconds in which the first replica must load the models.
_START = 300.0

# Seconds until a request is sent again after its replica died.
_PAUSE = 0.1


@contextmanager
def remote_workers(
    address: str, scale: ScaleOptions, weights: Sequence[str], options: ServeOptions
) -> Iterator[MakeJobRunner]:
    """Start replicas on a cluster; yields what makes a :class:`RemoteBatcher`. At the end, the replicas end.

    Args:
        address: the cluster; see :func:`retinanet.scale.cluster.joined`.
        scale: cores and GPUs of a replica, and the largest number of replicas.
        weights: see :func:`retinanet.serve.run.serve`.
        options: see :func:`retinanet.serve.run.serve`.

    Raises:
        MissingPackageError: Ray is not installed.
        RetinaNetError: the cluster cannot be joined, or has no room for a replica.
    """
    named = model_names(weights)
    sources = {
        name: ModelSource(path, options.precision, options.device, options.threads) for name, path in named.items()
    }
    with joined(address, scale):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        name = f"retinanet-{uuid4().hex[:12]}"  # several servers may share a cluster
        try:
            handle = _started(name, sources, scale, options.settings)
            try:
                yield partial(RemoteBatcher, handle)
            finally:
                handle.shutdown()  # otherwise its thread reports its load until this process ends
        finally:
            serve.delete(name)


def _started(name: str, sources: Mapping[str, ModelSource], scale: ScaleOptions, settings: ServeSettings) -> Any:
    """Start the replicas as an application of Ray Serve, and return Ray's handle."""
    from ray import serve

    deployment = serve.deployment(
        Replica,
        name="models",
        # A replica takes as many requests as form two batches; more of them start another replica.
        max_ongoing_requests=2 * settings.batch,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": scale.workers or workers_with_room(scale),
            "target_ongoing_requests": settings.batch,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 120.0,
        },
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        health_check_period_s=5.0,
    )
    application = deployment.bind(sources, settings, Path.cwd())
    try:
        return serve.run(application, name=name, route_prefix=None)
    except (RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RetinaNetError(f"the replicas cannot be started ({reason})") from error


class RemoteBatcher:
    """Sends jobs to replicas.

    Args:
        handle: Ray's handle of the replicas.
        models: the detectors of this process, which the replicas must have, too.
        settings: unused; the replicas have them.
        on_batch: unused; batches are formed by the replicas.
    """

    def __init__(
        self,
        handle: Any,
        models: Mapping[str, Detector],
        settings: ServeSettings,
        on_batch: Callable[[int], object],
    ) -> None:
        self._handle = handle
        self._closing = False
        self._open: set[Future[Found]] = set()
        self._answered = monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._thread.start()
        described = asyncio.run_coroutine_threadsafe(self._describe(), self._loop)
        try:
            require_same(described.result(_START), models)
        except TimeoutError as error:
            raise RetinaNetError(f"no replica answered in {_START:.0f} s; see the logs of the cluster") from error

    def submit(self, job: Job) -> Future[Found]:
        """Send a job; its future has the result, or raises :class:`Refusal` or the error of the network.

        If the future is cancelled, the replica drops the job.
        """
        if self._closing:
            raise Refusal("shutting_down", "the server is shutting down", retry_after=5)
        if not self._open:
            self._answered = monotonic()
        future = asyncio.run_coroutine_threadsafe(self._detect(job), self._loop)
        self._open.add(future)
        future.add_done_callback(self._done)
        return future

    def stuck(self, seconds: float) -> bool:
        """Whether requests wait and none was answered for longer than a number of seconds."""
        return bool(self._open) and monotonic() - self._answered > seconds

    def close(self) -> None:
        """Wait for all answers, and end the thread. New jobs are refused."""
        self._closing = True
        for future in list(self._open):
            with suppress(BaseException):  # whoever waits for the job gets its error
                future.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _done(self, future: Future[Found]) -> None:
        self._answered = monotonic()
        self._open.discard(future)

    async def _describe(self) -> tuple[str, str, dict[str, str]]:
        described: tuple[str, str, dict[str, str]] = await self._handle.describe.remote()
        return described

    async def _detect(self, job: Job) -> Found:
        """Send a job to replicas until one answers or nobody waits any more."""
        from ray.exceptions import RayError

        while (left := job.deadline - monotonic()) > 0:
            response = self._handle.detect.remote(job.content, job.options, left, job.keep)
            try:
                answer = await asyncio.wait_for(response, left)
            except RayError:  # the replica died
                await asyncio.sleep(_PAUSE)
                continue
            except TimeoutError:
                break
            if isinstance(answer, Refused):
                raise Refusal(answer.code, answer.message, answer.retry_after)
            if isinstance(answer, str):
                raise RuntimeError(answer)
            return Found(answer.detections, answer.size, answer.image, {**job.seconds, **answer.seconds})
        raise Refusal("deadline_exceeded", "no worker answered in time; try again later", retry_after=2)
