"""Join a Ray cluster, or start one that only this machine reaches. A cluster that does not answer is an error, soon."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from retinanet.errors import RetinaNetError
from retinanet.machine import cores
from retinanet.optional_packages import explain_missing_packages
from retinanet.scale.options import LOCAL, ScaleOptions

# Seconds in which a cluster must answer.
_ANSWER = 10.0

# Bytes of the store for batches and results on this machine. Ray would take a third of the memory.
_STORE = 500_000_000


def join(address: str, options: ScaleOptions) -> Callable[[], object]:
    """Connect this process to a cluster: ``local`` or ``HOST:PORT``. If it is connected, only the room is checked.

    Returns:
        A function that leaves the cluster again.

    Raises:
        MissingPackageError: Ray is not installed.
        RetinaNetError: no cluster answers, it has another version, or it has no room for a worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's libraries also write to the terminal what they raise in Python.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address == LOCAL:
        # Despite its name, it keeps Ray on the loopback address on all systems. Ray reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with explain_missing_packages("--ray"):
        import ray
        import ray.data
    if ray.is_initialized():
        leave: Callable[[], object] = _stay
    else:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        _connect(address)
        leave = ray.shutdown
    try:
        workers_with_room(options)
    except RetinaNetError:
        leave()
        raise
    return leave


def _stay() -> None:
    """Leave the cluster to whoever has joined it."""


def _connect(address: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            quiet |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": _STORE}
        else:
            _require_answer(address)
        with _discarded_stderr():
            ray.init(address=address, **quiet)
    except RetinaNetError:
        raise
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError …
        reason = _reason(error.__cause__ or error)
        raise RetinaNetError(
            f"--ray {address}: the cluster cannot be joined ({reason}); all machines need the same versions and, if "
            "the cluster asks for a token, RAY_AUTH_MODE=token"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the text of an error in a line, or its last line, if a traceback precedes it."""
    text = str(error).strip()
    return " ".join((text if len(text) < 400 else text.splitlines()[-1]).split())[:400]


@contextmanager
def _discarded_stderr() -> Iterator[None]:
    """Discard what native libraries write to the standard error, such as their settings."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def workers_with_room(options: ScaleOptions) -> int:
    """Return the number of workers that the cluster has room for.

    Raises:
        RetinaNetError: there is room for none.
    """
    import ray

    room = [
        min(
            int(node["Resources"].get("CPU", 0) // options.cpus),
            int(node["Resources"].get("GPU", 0) // options.gpus) if options.gpus else 1_000_000,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    if not sum(room):
        raise RetinaNetError(
            f"no machine of the cluster has {options.cpus} cores and {options.gpus:g} GPUs for a worker; "
            "lower --scale.cpus or --scale.gpus"
        )
    return sum(room)


def _require_answer(address: str) -> None:
    """Raise RetinaNetError unless a server of Ray's kind answers. Ray itself would try for minutes."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER)
        except grpc.FutureTimeoutError as error:
            raise RetinaNetError(
                f"--ray {address}: no cluster answers there; start one with 'ray start --head', give its HOST:PORT, or "
                "leave the address out for workers on this machine"
            ) from error
