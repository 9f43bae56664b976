"""A replica of a server's models: an actor of Ray Serve. This module does not import Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from retinanet._version import __version__
from retinanet.detection.detector import Detector
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.scale.work import ModelSource
from retinanet.scale.worker import load_model, weights_digest
from retinanet.serve.batcher import Batcher, Found, Job, Options
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import ServeSettings

# A batch that takes longer than this number of seconds means that the network hangs. Ray replaces the replica.
_STUCK = 120.0


@dataclass(frozen=True)
class Refused:
    """A refusal as plain values, because Ray wraps errors."""

    code: str
    message: str
    retry_after: int | None


class Replica:
    """Holds the models and works on images, in batches of those that arrive together.

    Args:
        sources: how to load the models, by name.
        settings: sizes of batches and number of threads.
        folder: folder that relative paths start from.
    """

    def __init__(self, sources: Mapping[str, ModelSource], settings: ServeSettings, folder: Path) -> None:
        self._problem = ""
        self._batcher: Batcher | None = None
        self._digests: dict[str, str] = {}
        try:
            os.chdir(folder)
            models = {name: load_model(source) for name, source in sources.items()}
        except (RetinaNetError, OSError) as error:  # Ray would show a traceback, and start the replica again
            self._problem = f"a worker cannot load the models ({error})"
            return
        self._digests = {name: weights_digest(detector) for name, detector in models.items()}
        self._batcher = Batcher(models, settings)

    def describe(self) -> tuple[str, str, dict[str, str]]:
        """Return the version of the package, what is wrong (empty: nothing), and the digest of each model."""
        return __version__, self._problem, self._digests

    async def detect(self, content: bytes, options: Options, seconds: float, keep: bool) -> Found | Refused | str:
        """Detect objects in an image file.

        Returns:
            The detections; or why the request is refused; or what failed.
        """
        if self._batcher is None:
            return self._problem
        job = Job(content, options, monotonic() + seconds, keep)
        try:
            return await asyncio.wrap_future(self._batcher.submit(job))
        except Refusal as refusal:
            return Refused(refusal.code, str(refusal), refusal.retry_after)
        except Exception as error:  # the network failed on this image
            return f"{type(error).__name__}: {error}"

    def check_health(self) -> None:
        """Raise an error if the network hangs; Ray calls it."""
        if self._batcher is not None and self._batcher.stuck(_STUCK):
            raise RuntimeError("the network hangs")


def require_same(described: tuple[str, str, dict[str, str]], models: Mapping[str, Detector]) -> None:
    """Raise RetinaNetError unless a replica has this version and these models."""
    version, problem, digests = described
    if problem:
        raise RetinaNetError(f"{problem}; paths must lead to the same files on all machines")
    if version != __version__:
        raise ConfigError(f"the workers have retinanet {version} and this machine {__version__}; install one version")
    for name, detector in models.items():
        if digests[name] != weights_digest(detector):
            raise ConfigError(f"the model {name} of the workers is another file; give a path that all machines share")
