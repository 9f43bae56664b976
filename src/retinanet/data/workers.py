"""Run a function in worker processes, and keep going when a worker dies.

Each worker has a socket of its own. There is no shared memory (``/dev/shm``), semaphore or common queue, which a dying
process could leave full or locked. The end of a worker closes its socket, so it is noticed at once, and its tasks are
given to the other workers. If no worker is left, the main process runs the tasks itself. A task must give the same
result wherever it runs; then neither the number of workers nor their death changes the results.
"""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import queue
import signal
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from retinanet.data.transport import receive, send
from retinanet.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks per worker that are handed out before their results are needed.
_AHEAD = 2

# Seconds that a worker continues after SIGTERM, so that training can finish its step and write a checkpoint.
_PATIENCE = 60

# Seconds without a result after which a request to stop ends the wait, and after which a line is printed.
_STOP_SECONDS, _SLOW_SECONDS = 5.0, 120.0

# Signals that a fault of the program raises, in contrast to a signal from outside. A task that ends two workers in this
# way would end the main process, too.
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@dataclass
class Failure:
    """An exception in a worker, or in the thread that receives its results."""

    error: Exception


@dataclass
class _Worker:
    process: Any
    connection: socket.socket
    tasks: list[int] = field(default_factory=list)


class Workers(Generic[Task, Result]):
    """Runs ``function`` on tasks in worker processes, and gives the results in the order of the tasks."""

    def __init__(
        self,
        function: Callable[[Task], Result],
        workers: int,
        warn: Callable[[str], object],
        describe: Callable[[Task], str] = str,
        on_arrival: Callable[[Result], Result] = lambda result: result,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Describe the work; the processes start with :meth:`run`.

        Args:
            function: runs a task. It is pickled if the system starts processes without fork.
            workers: number of processes. 0: the main process runs the tasks.
            warn: called with a message when a worker dies.
            describe: names a task in an error message.
            on_arrival: called in a thread of the main process with each result.
            stop: while nothing arrives, whether to stop waiting.
        """
        self._function, self._count, self._on_arrival, self._stop = function, workers, on_arrival, stop
        self._warn, self._describe = warn, describe
        self._workers: list[_Worker] = []
        self._arrived: queue.SimpleQueue[tuple[_Worker, int | None, Any]] = queue.SimpleQueue()
        self._tasks: dict[int, Task] = {}  # handed out, without a result so far
        self._crashes: Counter[int] = Counter()

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task. If ``stop`` asks for it while nothing arrives, the rest is not yielded.

        Raises:
            DataError: two workers crashed while they ran the same task.
            Exception: an exception of ``function``.
        """
        if self._count == 0:
            yield from (self._on_arrival(self._function(task)) for task in tasks)
            return
        results: dict[int, Any] = {}
        numbered, handed_out, number = enumerate(tasks), 0, 0
        try:
            self._start()
            while True:
                while handed_out < number + _AHEAD * self._count and (following := next(numbered, None)):
                    handed_out += 1
                    self._tasks[following[0]] = following[1]
                    self._hand_out(following[0])
                if number == handed_out:
                    return
                if number not in results and self._workers:
                    received = self._wait()
                    if received is None:
                        return
                    results.update(received)
                    continue
                result = results.pop(number) if number in results else self._run_here(number)
                if isinstance(result, Failure):
                    raise result.error
                yield result
                number += 1
        finally:
            self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context()
        atexit.register(self._end)  # a traceback can keep the generator alive, so that it is never closed
        for _ in range(self._count):
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                self._could_not_start(error)
                break
            with theirs:
                # A forked process inherits our ends of the other sockets and must close them; otherwise those workers
                # would not notice the end of the main process.
                forked = context.get_start_method() == "fork"
                inherited = [ours, *(each.connection for each in self._workers)] if forked else []
                process = context.Process(target=_serve, args=(self._function, theirs, inherited), daemon=True)
                try:
                    with _signals_blocked():
                        process.start()
                except OSError as error:
                    ours.close()
                    self._could_not_start(error)
                    break
            worker = _Worker(process, ours)
            self._workers.append(worker)
            threading.Thread(target=self._read, args=(worker,), daemon=True).start()

    def _could_not_start(self, error: OSError) -> None:
        self._warn(
            f"only {len(self._workers)} of {self._count} image-loading processes could be started "
            f"({error.strerror or error})"
        )

    def _hand_out(self, number: int) -> None:
        if not self._workers:
            return
        worker = min(self._workers, key=lambda each: len(each.tasks))
        worker.tasks.append(number)
        with suppress(OSError):  # the worker has died; its thread reports that
            send(worker.connection, (number, self._tasks[number]))

    def _read(self, worker: _Worker) -> None:
        """Receive the results of a worker. A thread runs this, so that the worker need not wait for the main thread."""
        number = None
        try:
            while True:
                number, result = receive(worker.connection)
                received = result if isinstance(result, Failure) else self._on_arrival(result)
                self._arrived.put((worker, number, received))
        except (OSError, EOFError):
            self._arrived.put((worker, None, None))
        except Exception as error:  # such as MemoryError
            self._arrived.put((worker, None, Failure(error)))

    def _wait(self) -> dict[int, Any] | None:
        """Wait for a result. The answer is empty if a worker has died, and None if ``stop`` ended the wait."""
        began, said = time.monotonic(), False
        while True:
            try:
                worker, number, result = self._arrived.get(timeout=0.2)
            except queue.Empty:
                waited = time.monotonic() - began
                if waited > _STOP_SECONDS and self._stop():
                    return None
                if waited > _SLOW_SECONDS and not said:
                    said = True
                    self._warn(f"no image has arrived for {waited:.0f} s; the disk or the network drive may hang")
                continue
            if isinstance(result, Failure):
                raise result.error
            if number is None:
                self._remove(worker)
                return {}
            worker.tasks.remove(number)
            del self._tasks[number]
            return {number: result}

    def _run_here(self, number: int) -> Result:
        return self._on_arrival(self._function(self._tasks.pop(number)))

    def _remove(self, worker: _Worker) -> None:
        """Give the tasks of a dead worker to the others."""
        worker.process.join(timeout=5)
        worker.connection.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        name = _signal_name(code)
        if worker.tasks and name in _CRASHES:
            self._crashes[worker.tasks[0]] += 1
            if self._crashes[worker.tasks[0]] > 1:
                raise DataError(
                    f"two processes crashed ({name}) while they loaded these images: "
                    f"{self._describe(self._tasks[worker.tasks[0]])}; convert or remove the damaged one"
                )
        reason = {"SIGKILL": "killed, usually because memory ran out"}.get(name, name or f"exit status {code}")
        rest = f"{len(self._workers)} of {self._count} go on" if self._workers else "the main process loads the images"
        self._warn(f"an image-loading process ended unexpectedly ({reason}); {rest}")
        for number in worker.tasks:
            self._hand_out(number)

    def _end(self) -> None:
        atexit.unregister(self._end)
        for worker in self._workers:
            worker.process.kill()  # it has no state to save
            with suppress(OSError):
                worker.connection.shutdown(socket.SHUT_RDWR)  # ends its thread
        for worker in self._workers:
            worker.process.join(timeout=5)
            worker.connection.close()
        self._workers.clear()


def _serve(function: Callable[[Any], Any], connection: socket.socket, inherited: list[socket.socket]) -> None:
    """Run tasks until the main process closes the connection or ends."""
    _leave_signals_to_the_main_process()
    for each in inherited:
        each.close()
    torch.set_num_threads(1)
    with suppress(OSError, EOFError):
        while True:
            number, task = receive(connection)
            try:
                result = function(task)
            except Exception as error:
                result = _as_failure(error)
            send(connection, (number, result))


def _as_failure(error: Exception) -> Failure:
    if not isinstance(error, DataError):
        error.add_note(f"in an image-loading process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some exceptions cannot be pickled, or not created again from their pickle
        return Failure(RuntimeError(f"{type(error).__name__}: {error}"))
    return Failure(error)


def _leave_signals_to_the_main_process() -> None:
    """Ignore SIGINT, and delay SIGTERM, in a worker process.

    Terminals, ``timeout`` and schedulers signal every process of a group. The main process handles the signal: it
    writes a checkpoint and ends its workers. If a worker does not end by itself, SIGTERM ends it after a delay.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # the default action of SIGALRM ends the process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_PATIENCE))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Delay SIGINT and SIGTERM during the block. A new process would handle them as the main process does."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(code: int | None) -> str:
    try:
        return signal.Signals(abs(code or 0)).name if (code or 0) < 0 else ""
    except ValueError:
        return ""
