"""A training that is killed, or that cannot write, ends as if it had not been interrupted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retinanet.data.dataset import Dataset
from retinanet.errors import CheckpointError
from retinanet.training import loop
from retinanet.zoo.weights import read_info
from training_runs import FLAGS, log_lines, sample_dataset, small_config, train_and_val


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(parts: Path) -> tuple[Dataset, Dataset]:
    return train_and_val(parts)


def start(parts: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "retinanet", "train", str(parts), "--out", str(out), *FLAGS, *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=300)
    text = output.decode()
    assert process.returncode == 0, text
    return text


def wait_for_steps(out: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    """Until ``steps`` steps are logged and a checkpoint exists."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        log = out / "metrics.jsonl"
        done = log.read_text().count('"lr"') if log.exists() else 0
        if done >= steps and (out / "last.safetensors").exists():
            return
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)
    raise AssertionError("the training did not get that far")


def test_killed_in_mid_epoch_and_resumed_is_bit_identical(parts: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(parts, whole))

    process = start(parts, killed)
    wait_for_steps(killed, 5, process)  # three steps an epoch: inside the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    step = int(read_info(killed / "last.safetensors").progress["step"])
    assert 1 <= step < 9
    finish(start(parts, killed, "--resume"))

    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert expected.keys() == found.keys()
        different = [key for key in expected if not torch.equal(expected[key], found[key])]
        assert not different
        assert read_info(whole / name).metrics == read_info(killed / name).metrics
    without_time = [
        [{**line, "seconds": 0, "data_wait": 0} for line in log_lines(run / "metrics.jsonl")] for run in (whole, killed)
    ]
    assert without_time[0] == without_time[1]


def test_a_folder_in_use_is_refused_until_its_training_has_ended(parts: Path, tmp_path: Path) -> None:
    """Two trainings that write the same files; even a killed one leaves nothing that keeps the next one out."""
    out = tmp_path / "run"
    started = [start(parts, out, "--train.epochs", "1000", "--data.workers", "2")]
    try:
        wait_for_steps(out, 1, started[0])
        for flags in ((), ("--resume",)):
            started.append(start(parts, out, "--train.epochs", "1000", *flags))
            said = started[-1].communicate(timeout=100)[0].decode()
            assert started[-1].returncode == 1
            assert said.count("\n") == 1
            assert f"process {started[0].pid} is writing to it; wait until it has ended, or choose another" in said
        assert started[0].poll() is None
        started[0].kill()  # its workers live a little longer
        started[0].wait(timeout=30)
        step = int(read_info(out / "last.safetensors").progress["step"])
        started.append(start(parts, out, "--train.epochs", "1000", "--resume"))
        wait_for_steps(out, step + 1, started[-1])
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def test_killed_at_twenty_moments_the_weights_are_those_of_an_uninterrupted_run(parts: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import killing

    killing.train(parts, tmp_path / "whole")
    command = [sys.executable, str(Path(killing.__file__)), str(parts), str(tmp_path / "killed"), "20", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["kills"] == ["random", "writing"] * 10
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert expected.keys() == found.keys()
        assert not [key for key in expected if not torch.equal(expected[key], found[key])]


def test_sigterm_saves_the_exact_step_first(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(parts, out, "--train.checkpoint-minutes", "60")
    wait_for_steps(out, 4, process)  # the first epoch's checkpoint is there, the second epoch is under way
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in output.decode()
    assert "Traceback" not in output.decode()
    logged = max(line["step"] for line in log_lines(out / "metrics.jsonl"))
    assert read_info(out / "last.safetensors").progress["step"] == logged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_the_exact_step_first(
    parts: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As terminals, ``timeout`` and schedulers send it: to the processes that load images, too."""
    out = tmp_path / "run"
    process = start(parts, out, "--train.checkpoint-minutes", "60", "--data.workers", "2")
    wait_for_steps(out, 4, process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output.decode()
    assert "--resume" in output.decode()
    assert "Traceback" not in output.decode()
    logged = max(line["step"] for line in log_lines(out / "metrics.jsonl"))
    assert read_info(out / "last.safetensors").progress["step"] == logged


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that load images."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="ps of Linux")
def test_killed_workers_do_not_change_the_result(parts: Path, tmp_path: Path) -> None:
    """As the kernel does when memory runs out."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(parts, whole))
    process = start(parts, killed, "--data.workers", "2")
    while len(workers := workers_of(process)) < 2:
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    text = finish(process)
    assert "an image-loading process ended unexpectedly (killed, usually because memory ran out)" in text
    assert "Fewer --data.workers need less memory" in text
    expected, found = load_file(whole / "last.safetensors"), load_file(killed / "last.safetensors")
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]


@pytest.mark.skipif(sys.platform != "linux", reason="ps of Linux")
def test_sigterm_ends_a_training_whose_workers_hang(parts: Path, tmp_path: Path) -> None:
    """As they do when a network drive no longer answers."""
    out = tmp_path / "run"
    process = start(parts, out, "--train.epochs", "1000", "--data.workers", "2")
    wait_for_steps(out, 4, process)
    while not (workers := workers_of(process)):
        time.sleep(0.01)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output.decode()
    assert "--resume" in output.decode()
    logged = max(line["step"] for line in log_lines(out / "metrics.jsonl"))
    assert read_info(out / "last.safetensors").progress["step"] == logged


def test_killed_between_the_best_weights_and_the_first_checkpoint(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    loop.train_on(small_config(), *sets, out)
    expected = load_file(out / "last.safetensors")
    (out / "last.safetensors").rename(out / ".last.123456.safetensors")  # what such a kill leaves
    with pytest.raises(CheckpointError, match="earlier run"):
        loop.train_on(small_config(), *sets, out)
    loop.train_on(small_config(), *sets, out, resume=True)
    assert all(torch.equal(load_file(out / "last.safetensors")[name], tensor) for name, tensor in expected.items())
    assert not list(out.glob(".*.*"))


def test_a_full_disk_keeps_the_last_checkpoint(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, writes = Path.write_bytes, 0

    def full(path: Path, content: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == 3:
            genuine(path, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    config = small_config(epochs=2, checkpoint_minutes=1e-9)
    with pytest.raises(CheckpointError, match="No space left on device"):
        loop.train_on(config, *sets, tmp_path / "run")
    monkeypatch.undo()
    assert read_info(tmp_path / "run" / "last.safetensors").progress["step"] == 2
    assert not list((tmp_path / "run").glob(".*.*"))  # no half-written file is left to fill the disk
    loop.train_on(config, *sets, tmp_path / "run", resume=True)
    loop.train_on(config, *sets, tmp_path / "whole")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
