"""``torchrun``: two processes train what one trains, evaluate each image once, and do not outlive each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.multiprocessing.spawn import spawn

from retinanet.data.synthetic import write_sample
from retinanet.training.distributed import Processes, joined_processes
from retinanet.zoo.weights import read_info

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this PyTorch has no gloo")

FLAGS = """
--model.backbone test_efficientnet --model.channels 32 --model.subnet-depth 1 --model.no-pretrained --data.size 64
--data.workers 0 --train.epochs 2 --train.batch 3 --train.precision fp32 --train.device cpu --train.optimizer sgd
--train.lr 0.01
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_sample(folder, images=20, seed=3, size=96)
    return folder


def start(parts: Path, out: Path, processes: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "retinanet", "train", str(parts), "--out", str(out), *FLAGS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [(), ("--data.tile", "64")], ids=["images", "tiles"])
def test_two_processes_train_and_evaluate_as_one(parts: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    runs = {}
    for count in (1, 2):
        process = start(parts, tmp_path / str(count), count, *more)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert said.count("\nbest AP ") == 1  # one of them speaks
        runs[count] = lines(tmp_path / str(count))
    alone, together = runs[1], runs[2]
    assert [line["step"] for line in alone] == [line["step"] for line in together]
    for one, two in zip(alone, together, strict=True):
        for key in ("loss", "classification", "box", "grad_norm"):
            if key in one:
                assert two[key] == pytest.approx(one[key], rel=1e-3, abs=2e-4), (one, two)
        assert one.get("foreground") == two.get("foreground")
        for key in (key for key in one if key.startswith("positives")):
            assert two[key] == one[key]
        for key in (key for key in one if key.startswith("share")):
            assert two[key] == pytest.approx(one[key], abs=1e-3)
        if "AP" in one:
            assert two["AP"] == pytest.approx(one["AP"], abs=1e-3)
    first, second = (load_file(tmp_path / str(count) / "last.safetensors") for count in (1, 2))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)


def test_one_is_killed_and_all_end_with_a_word(parts: Path, tmp_path: Path) -> None:
    process = start(parts, tmp_path / "run", 2, "--train.epochs", "1000")
    log = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 200
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    workers = children(process.pid)
    assert len(workers) == 2
    killed = time.monotonic()
    os.kill(max(workers), signal.SIGKILL)
    said, _ = process.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    own = [line for line in said.splitlines() if line.startswith("error:")]
    assert any("another process of this training ended" in line for line in own) or "Signal 9" in said, said


def test_ctrl_c_saves_the_state_of_all(parts: Path, tmp_path: Path) -> None:
    process = start(parts, tmp_path / "run", 2, "--train.epochs", "1000", "--train.checkpoint-minutes", "60")
    last = tmp_path / "run" / "last.safetensors"
    until = time.monotonic() + 200
    while not last.exists():  # the first epoch's
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: torchrun and both processes
    said, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "go on with --resume" in said
    assert "src/retinanet" not in said  # torchrun prints a traceback of its own, we none
    logged = max(line["step"] for line in lines(tmp_path / "run"))
    assert read_info(last).progress["step"] == logged


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def talk(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=2), world_size=3, rank=rank)
    processes = Processes(rank, 3)
    assert processes.gather({"rank": rank, "text": "é" * rank}) == [{"rank": r, "text": "é" * r} for r in range(3)]
    rows = processes.gather_rows(np.full((rank, 2), float(rank)))
    assert rows.tolist() == [[1, 1], [2, 2], [2, 2]]
    assert processes.largest(rank, 5 - rank) == [2, 5]
    assert processes.sum(torch.tensor([1.0, rank])).tolist() == [3, 3]
    distributed.destroy_process_group()


def test_processes_exchange_values(tmp_path: Path) -> None:
    spawn(talk, (str(tmp_path),), nprocs=3)  # type: ignore[no-untyped-call]


def test_a_process_alone_asks_nobody() -> None:
    with joined_processes() as processes:
        assert processes == Processes(0, 1, 0)
        assert processes.gather([1]) == [[1]]
        assert processes.largest(3, 4) == [3, 4]
        assert processes.share([5, 6]) == [5, 6]
        assert processes.gather_rows(np.ones((2, 7))).shape == (2, 7)


def test_shares_cover_everything_once() -> None:
    parts = [Processes(rank, 4).share(range(10)) for rank in range(4)]
    assert sorted(i for part in parts for i in part) == list(range(10))
