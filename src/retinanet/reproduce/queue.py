"""Run commands in parallel processes. With few cores, several processes with one thread each are
faster than one process with several threads."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

# Seconds between two checks of the processes, and seconds for a stopped process to save its state.
_POLL, _GRACE = 0.2, 60.0


@dataclass(frozen=True)
class Task:
    """A command and its name."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, seconds, stdout and stderr."""

    task: Task
    code: int
    seconds: float
    output: str
    errors: str


@dataclass(frozen=True)
class _Process:
    task: Task
    began: float
    output: IO[str]
    errors: IO[str]
    process: subprocess.Popen[str]


def run_tasks(
    tasks: Sequence[Task],
    at_once: int,
    ended: Callable[[Ended], object],
    tick: Callable[[], object] = lambda: None,
    one_thread: bool = True,
) -> None:
    """Run all commands, ``at_once`` at a time.

    The standard input of each command is a pipe that closes when this process ends for any reason. If the queue stops
    early (Ctrl-C, an error in ``ended``), the running commands get SIGTERM and a minute to save their state.

    Args:
        tasks: the commands, in the order in which they start.
        at_once: number of processes that run in parallel.
        ended: called with each command that ended, including failed commands.
        tick: called several times a second.
        one_thread: set ``OMP_NUM_THREADS=1`` for each command.
    """
    waiting, running = list(reversed(tasks)), list[_Process]()
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": "1"} if one_thread else {})
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.pop(), environment))
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                ended(_finish(each))
            tick()
            if running:
                time.sleep(_POLL)
    finally:
        _stop(running)


def _start(task: Task, environment: dict[str, str]) -> _Process:
    output, errors = (tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(2))  # noqa: SIM115
    process = subprocess.Popen(
        task.command, stdin=subprocess.PIPE, stdout=output, stderr=errors, env=environment, text=True
    )
    return _Process(task, time.monotonic(), output, errors, process)


def _finish(each: _Process) -> Ended:
    code, seconds = each.process.wait(), time.monotonic() - each.began
    said = []
    for file in (each.output, each.errors):
        file.seek(0)
        said.append(file.read())
        file.close()
    if each.process.stdin is not None:
        each.process.stdin.close()
    return Ended(each.task, code, seconds, *said)


def _stop(running: Sequence[_Process]) -> None:
    for each in running:
        each.process.terminate()
    until = time.monotonic() + _GRACE
    for each in running:
        try:
            each.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
        _finish(each)
