"""Commands, several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retinanet.reproduce.queue import Ended, Task, run_tasks


def python(name: str, code: str) -> Task:
    return Task(name, (sys.executable, "-c", code))


def test_every_command_ends_with_what_it_said() -> None:
    ended: list[Ended] = []
    tasks = [
        python("good", "import os; print('a'); print(os.environ['OMP_NUM_THREADS'])"),
        python("bad", "import sys; print('said'); sys.exit('reason')"),
        python("long", "print('x' * 300_000)"),  # more than a pipe holds
    ]
    run_tasks(tasks, 2, ended.append)
    by_name = {each.task.name: each for each in ended}
    assert by_name["good"].output.split() == ["a", "1"]
    assert (by_name["good"].code, by_name["bad"].code, by_name["long"].code) == (0, 1, 0)
    assert (by_name["bad"].output.strip(), by_name["bad"].errors.strip()) == ("said", "reason")
    assert len(by_name["long"].output.strip()) == 300_000


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_so_many_at_once_and_in_order(at_once: int, tmp_path: Path) -> None:
    code = (
        f"import os, sys, time; open(r'{tmp_path}/' + sys.argv[1], 'w').close(); time.sleep(0.3); "
        f"print(len([f for f in os.listdir(r'{tmp_path}') if not f.startswith('.')])); "
        f"os.remove(r'{tmp_path}/' + sys.argv[1])"
    )
    tasks = [Task(str(i), (sys.executable, "-c", code, str(i))) for i in range(5)]
    ended: list[Ended] = []
    ticks: list[int] = []
    run_tasks(tasks, at_once, ended.append, lambda: ticks.append(len(ended)))
    assert max(int(each.output) for each in ended) <= at_once
    assert sorted(each.task.name for each in ended) == [str(i) for i in range(5)]
    if at_once == 1:
        assert [each.task.name for each in ended] == [str(i) for i in range(5)]
    assert ticks == sorted(ticks)
    assert ticks[0] == 0


def test_threads_are_left_alone_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    ended: list[Ended] = []
    run_tasks([python("", "import os; print(os.environ['OMP_NUM_THREADS'])")], 1, ended.append, one_thread=False)
    assert ended[0].output.strip() == "7"


def test_leaving_early_asks_the_rest_to_stop(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    patient = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open(r'{stopped}', 'w').close(), sys.exit(1)))\n"
        f"open(r'{tmp_path}/ready', 'w').close(); time.sleep(60)"
    )

    def fail() -> None:
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks([python("patient", patient), python("never", "open(r'x', 'w')")], 1, lambda _: None, fail)
    assert time.monotonic() - began < 50
    assert stopped.exists()


def test_a_killed_queue_ends_the_input_of_its_commands(tmp_path: Path) -> None:
    """So a training can tell that nobody waits for it any more; see worker.py."""
    child = (
        f"import os; open(r'{tmp_path}/ready', 'w').close(); os.read(0, 1); open(r'{tmp_path}/noticed', 'w').close()"
    )
    queue = (
        "import sys; from retinanet.reproduce.queue import Task, run_tasks; "
        f"run_tasks([Task('', (sys.executable, '-c', {child!r}))], 1, print)"
    )
    process = subprocess.Popen([sys.executable, "-c", queue])
    _wait_for(tmp_path / "ready")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _wait_for(tmp_path / "noticed")


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not appear"
        time.sleep(0.05)
