"""The state of a server: its models, settings, budget, metrics and batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import Any

from retinanet.detection.detector import Detector
from retinanet.detection.tile_plan import TileOptions, TileSide, Tiling
from retinanet.errors import ConfigError
from retinanet.serve.batcher import Batcher, Found, Job, JobRunner, MakeJobRunner, Options
from retinanet.serve.bodies import Receive
from retinanet.serve.budget import Budget
from retinanet.serve.metrics import Metrics
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import ServeSettings


@dataclass
class Service:
    """What the requests of a server share.

    Attributes:
        models: the detectors by name; the first is the default.
        settings: see :class:`ServeSettings`.
        token: the bearer token that clients need; ``None``: none.
        make_batcher: makes what works on the images.
        draining: whether the server is shutting down.
        uploads: number of uploads that were looked at.
        scores: by model, the lowest score reported unless a request gives another.
    """

    models: Mapping[str, Detector]
    settings: ServeSettings = field(default_factory=ServeSettings)
    token: str | None = None
    make_batcher: MakeJobRunner = Batcher
    draining: bool = False
    uploads: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no models given; name at least one")
        self.scores: dict[str, float] = {}
        for name, detector in self.models.items():
            try:
                self.scores[name] = detector.lowest_score(self.settings.score)
                detector.decode_config(self.scores[name])  # a file with post-processing may not go as low
            except ConfigError as error:
                raise ConfigError(f"model {name}: {error}") from error
        self.budget = Budget(self.settings.limits)
        self.metrics = Metrics(self.budget)

    @cached_property
    def batcher(self) -> JobRunner:
        """The batcher. Its threads start when it is first used."""
        return self.make_batcher(self.models, self.settings, self.metrics.batch)

    def start(self) -> None:
        """Start the batcher before requests arrive.

        Raises:
            RetinaNetError: workers elsewhere cannot be used.
        """
        self.batcher.stuck(0)

    @property
    def default_model(self) -> str:
        """Name of the model of requests that name none."""
        return next(iter(self.models))

    def options(self, model: str | None, score: float | None, limit: int | None, tile: TileSide | None) -> Options:
        """Check what a request asks for, and fill in the defaults.

        Raises:
            Refusal: there is no such model, or the model cannot do it.
        """
        name = self.default_model if model is None else model
        if name not in self.models:
            raise Refusal("unknown_model", f"no such model; there is {', '.join(self.models)}")
        detector = self.models[name]
        chosen = self.scores[name] if score is None else score
        if limit is not None and limit > self.settings.limits.detections:
            raise Refusal("invalid_option", f"max_detections may be at most {self.settings.limits.detections}")
        try:
            detector.decode_config(chosen, limit)
        except ConfigError as error:  # its message names the path of the file
            raise Refusal(
                "invalid_option", f"the model {name} has a fixed lowest score and number of detections; see /v1/models"
            ) from error
        return Options(name, chosen, limit, self._tiling(name, tile))

    def _tiling(self, name: str, tile: TileSide | None) -> Tiling | None:
        """The division into tiles that a request asks for."""
        detector = self.models[name]
        wanted = TileOptions.of(tile)
        try:
            return detector.chosen_tiling(wanted)
        except ConfigError as error:
            hint = "needs larger tiles" if isinstance(tile, int) else "stores no object sizes, so give tile as a number"
            raise Refusal("invalid_option", f"the model {name} {hint}") from error

    async def detect(self, job: Job, receive: Receive) -> Found:
        """Let the batcher work on a job. If the client leaves, the job is dropped.

        Raises:
            Refusal: the image cannot be decoded, the request was too slow, or the client left.
        """
        left: asyncio.Future[Any] = asyncio.ensure_future(
            receive()
        )  # after the body, the only message is that the client has left
        found = asyncio.wrap_future(self.batcher.submit(job))
        try:
            waiting: set[asyncio.Future[Any]] = {left, found}
            await asyncio.wait(waiting, timeout=job.deadline - monotonic() + 1, return_when=asyncio.FIRST_COMPLETED)
            if found.done():
                return found.result()
        finally:
            left.cancel()
            found.cancel()
        if left.done():
            raise Refusal("client_left", "the client left")
        raise Refusal("deadline_exceeded", "the request took too long; try again later", retry_after=2)

    def describe(self) -> list[dict[str, Any]]:
        """Describe the models, as ``/v1/models`` lists them."""
        return [
            {
                "name": name,
                "default": name == self.default_model,
                "classes": list(detector.classes),
                "score": self.scores[name],
                "lowest_score": lowest_score(detector),
                "max_detections": detector.decode_config().max_detections,
                "auto_tile": auto_tile(detector),
            }
            for name, detector in self.models.items()
        ]


def lowest_score(detector: Detector) -> float:
    """Return the lowest score that the detector can report. A file with post-processing stores one."""
    try:
        detector.decode_config(0.0)
    except ConfigError:
        return detector.info.config.decode.score
    return 0.0


def auto_tile(detector: Detector) -> int | None:
    """Return the side in pixels that ``tile=auto`` chooses; ``None``: the model stores no object sizes."""
    try:
        return detector.tiling(TileOptions("auto")).side
    except ConfigError:
        return None
