"""The rows of a Ray dataset: each has some batches, then the results of their images. This module imports Ray."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from retinanet._version import __version__
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.scale.work import Batch, WorkerSettings
from retinanet.scale.worker import Worker


@dataclass(frozen=True)
class RowList:
    """The rows of the batches, in order. A failure of the list is a row with an error.

    Attributes:
        batches: the batches.
        per_row: batches in a row.
        folder: folder that relative paths start from.
    """

    batches: Iterable[Batch]
    per_row: int
    folder: Path

    def __call__(self) -> Iterator[pyarrow.Table]:
        """Yield each row as a table."""
        os.chdir(self.folder)
        number = -1
        try:
            batches = iter(self.batches)
            for number, some in enumerate(iter(lambda: list(islice(batches, self.per_row)), [])):
                yield _row(number, batches=some)
            yield _row(number + 1, last=True)
        except RetinaNetError as error:
            yield _row(number + 1, error=error)


class Rows(Datasource):  # type: ignore[misc]  # Ray has no types
    """A source of rows, which one task lists bit by bit."""

    def __init__(self, rows: Callable[[], Iterator[pyarrow.Table]]) -> None:
        super().__init__()
        self._rows = rows

    def get_name(self) -> str:
        """Return the name that Ray shows."""
        return "Images"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return the number of bytes of all rows, which is unknown."""
        return None

    def get_read_tasks(self, parallelism: int, **_: Any) -> list[ReadTask]:
        """Return the task that lists all rows."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._rows, unknown)]


class RowWorker:
    """An actor: replaces the batches of rows by results.

    An error of the package becomes a part of the row, because Ray would show a traceback, or start the actor again.
    """

    def __init__(self, settings: WorkerSettings, version: str) -> None:
        self._error: RetinaNetError | None = None
        try:
            if version != __version__:
                raise ConfigError(
                    f"the workers have retinanet {__version__} and this machine {version}; install the same version"
                )
            os.chdir(settings.folder)
            self._worker = Worker(settings)
        except RetinaNetError as error:
            self._error = error
        except OSError as error:
            self._error = RetinaNetError(
                f"{settings.folder}: a worker cannot use this folder ({error.strerror}); start the command in a folder "
                "that all machines share"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with its results."""
        if row["error"] or self._error is not None:
            return {**row, "work": b"", "error": row["error"] or pickle.dumps(self._error)}
        try:
            return {**row, "work": pickle.dumps(self._worker.results(pickle.loads(row["work"])))}
        except RetinaNetError as error:
            return {**row, "work": b"", "error": pickle.dumps(error)}


def _row(
    number: int, batches: list[Batch] | None = None, last: bool = False, error: RetinaNetError | None = None
) -> pyarrow.Table:
    """Return a row: ``work`` has the batches, and later the results."""
    failure = b"" if error is None else pickle.dumps(error)
    work = pickle.dumps([] if batches is None else batches)
    return pyarrow.table({"number": [number], "last": [last], "work": [work], "error": [failure]})
