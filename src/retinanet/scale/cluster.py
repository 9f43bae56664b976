"""A Ray cluster: join it or start one on this machine, and run workers on it with Ray Data.

One task lists the images and forms the batches on the machine of the command. Actors hold the model and take batches as
they become free. Ray Data starts lost actors again and repeats their work, and it stops listing while too many results
wait, so memory does not grow with the number of images.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retinanet._version import __version__
from retinanet.errors import RetinaNetError
from retinanet.scale.joining import join, workers_with_room
from retinanet.scale.options import ScaleOptions
from retinanet.scale.work import Batch, NumberedResult, WorkerSettings

# Batches that a worker takes at once. More keep it busier, fewer divide a small number of images better.
_BATCHES = 4


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined; see :func:`joined`.

    Attributes:
        options: its workers.
    """

    options: ScaleOptions

    def run(self, batches: Iterable[Batch], settings: WorkerSettings) -> Iterator[NumberedResult]:
        """Detect objects in the images of all batches, in the order of the batches.

        Args:
            batches: the batches; an iterable that can be sent to another process, which iterates over it.
            settings: the settings of the workers.

        Raises:
            RetinaNetError: the images cannot be listed, or a worker cannot work.
        """
        import ray.exceptions

        following, ended = 0, False
        try:
            for row in _dataset(batches, settings, self.options).iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])
                if row["number"] != following or ended:
                    raise RetinaNetError("the cluster lost or repeated results")
                following, ended = following + 1, row["last"]
                yield from pickle.loads(row["work"])
        except ray.exceptions.RayError as error:
            raise RetinaNetError(f"the cluster failed: {_reason(error)}") from error
        if not ended:
            raise RetinaNetError("the cluster lost results")


@contextmanager
def joined(address: str, options: ScaleOptions) -> Iterator[Cluster]:
    """Join a cluster while the block runs, and leave it afterwards.

    Args:
        address: ``local``: a cluster of this machine that ends with the block; or ``HOST:PORT``. If this process has
            joined a cluster already, it is used.
        options: the workers.

    Raises:
        MissingPackageError: Ray is not installed.
        RetinaNetError: the cluster cannot be joined, or has no room for a worker.
    """
    leave = join(address, options)
    try:
        yield Cluster(options)
    finally:
        leave()


def _dataset(batches: Iterable[Batch], settings: WorkerSettings, options: ScaleOptions) -> Any:
    """Return the Ray dataset whose rows have the results."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from retinanet.scale.rows import RowList, Rows, RowWorker

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # every row is a block, so that it is sent to a worker at once
    context.execution_options.preserve_order = True
    per_row = 1 if settings.tiling is not None else _BATCHES
    with DataContext.current(context):
        rows = ray.data.read_datasource(
            Rows(RowList(batches, per_row, settings.folder)),
            override_num_blocks=1,
            # The images and the record are listed on the machine of the command.
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        )
        return rows.map(
            RowWorker,
            fn_constructor_args=(settings, __version__),
            compute=ActorPoolStrategy(
                min_size=1,
                max_size=options.workers or workers_with_room(options),
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
        )


def _reason(error: BaseException) -> str:
    """Return the last line of an error of Ray, whose first lines are a traceback."""
    return str(error).strip().splitlines()[-1][:300]
