"""Workers may die at any moment: results, order and errors stay the same, and nothing hangs."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retinanet.data.workers import Workers
from retinanet.errors import DataError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signals and mounts of Linux")


def image(task: int) -> list[Tensor]:
    """A large permuted image, a small tensor and an empty one."""
    pixels = torch.full((40 + task, 300, 3), task, dtype=torch.uint8)
    return [pixels.permute(2, 0, 1), torch.tensor([1.5 * task]), torch.zeros(0, 4)]


def run(function: Callable[[int], Any], workers: int, tasks: int = 12, **more: Any) -> tuple[list[Any], list[str]]:
    """The results of the tasks and the warnings."""
    warnings: list[str] = []
    results = list(Workers(function, workers, warnings.append, **more).run(range(tasks)))
    return results, warnings


@dataclass
class Dies:
    """Ends its process with a signal; only once if there is a file for a note, else in every worker."""

    number: int
    at: int
    note: Path | None = None
    main: int = 0

    def __post_init__(self) -> None:
        self.main = os.getpid()

    def __call__(self, task: int) -> int:
        if task == self.at and os.getpid() != self.main and not (self.note and self.note.exists()):
            if self.note:
                self.note.touch()
            faulthandler.disable()  # pytest enabled it; it prints a long text
            os.kill(os.getpid(), self.number)
            time.sleep(30)
        return 10 * task


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_tensors_arrive_in_order_with_their_strides(workers: int) -> None:
    results, warnings = run(image, workers)
    assert warnings == []
    for task, (pixels, small, empty) in enumerate(results):
        expected = image(task)
        assert torch.equal(pixels, expected[0])
        assert pixels.stride() == expected[0].stride()
        assert torch.equal(small, expected[1])
        assert empty.shape == (0, 4)
    assert len(results) == 12


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGALRM])
def test_the_work_of_a_dead_worker_is_done_by_another(tmp_path: Path, number: int) -> None:
    results, warnings = run(Dies(number, 3, tmp_path / "died"), 2)
    assert results == [10 * task for task in range(12)]
    assert len(warnings) == 1
    assert "1 of 2 go on" in warnings[0]
    assert ("memory" in warnings[0]) == (number == signal.SIGKILL)


@LINUX
def test_without_any_worker_left_the_main_process_goes_on() -> None:
    results, warnings = run(Dies(signal.SIGKILL, 3), 2)
    assert results == [10 * task for task in range(12)]
    assert ["1 of 2 go on" in warnings[0], "the main process loads the images" in warnings[1]] == [True, True]


@LINUX
def test_a_task_that_crashes_two_workers_is_an_error() -> None:
    """It would crash the main process, too."""
    with pytest.raises(DataError, match=r"two processes crashed \(SIGSEGV\).*: image 3;") as failure:
        run(Dies(signal.SIGSEGV, 3), 3, describe=lambda task: f"image {task}")
    assert "\n" not in str(failure.value)


def fails(task: int) -> int:
    if task == 5:
        raise MemoryError("no memory for task 5")
    return task


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_in_a_worker_is_raised_with_its_type(workers: int) -> None:
    with pytest.raises(MemoryError, match="no memory for task 5"):
        run(fails, workers)


def test_processes_that_cannot_be_started_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(process: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.get_context().Process, "start", start)
    results, warnings = run(image, 2)
    assert len(results) == 12
    assert warnings == ["only 0 of 2 image-loading processes could be started (Resource temporarily unavailable)"]


def waits(task: int) -> int:
    time.sleep(0 if task < 2 else 600)
    return task


def test_a_request_to_stop_ends_the_wait_for_a_worker_that_hangs() -> None:
    began = time.monotonic()
    results, _ = run(waits, 1, stop=lambda: True)
    assert results == [0, 1]
    assert time.monotonic() - began < 60


def test_closing_early_ends_the_processes() -> None:
    running = Workers(image, 2, print).run(range(100))
    next(running)
    assert len(multiprocessing.active_children()) == 2
    running.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


MAIN = """
import multiprocessing, sys, time
from retinanet.data.workers import Workers
def load(task):
    return bytes(1_000_000)
running = Workers(load, 3, print).run(range(10**6))
next(running)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_main_process(number: int) -> None:
    main = subprocess.Popen([sys.executable, "-c", MAIN], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    workers = [int(word) for word in main.stdout.readline().split()]
    assert len(workers) == 3
    main.send_signal(number)
    main.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


@LINUX
@pytest.mark.parametrize("size", ["0", "64k", "1m", "64m"])
def test_shared_memory_is_not_needed(tmp_path: Path, size: str) -> None:
    """``/dev/shm`` of Docker's default of 64 MB, of less, and unwritable."""
    script = tmp_path / "load.py"
    script.write_text(
        "import torch\nfrom retinanet.data.workers import Workers\n"
        "def load(task): return torch.full((40_000_000,), task, dtype=torch.uint8)\n"
        "if __name__ == '__main__':\n    print([int(r[-1]) for r in Workers(load, 2, print).run(range(4))])\n"
    )
    mount = "mount -t tmpfs -o size=64k,ro tmpfs" if size == "0" else f"mount -t tmpfs -o size={size} tmpfs"
    wrap = ["unshare", "-rm", "sh", "-c", f'{mount} /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    done = subprocess.run([*wrap, sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 1, 2, 3]\n", "")
