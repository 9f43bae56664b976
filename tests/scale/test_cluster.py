"""``retinanet detect --ray`` and ``retinanet eval --ray`` on a small cluster of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from commands import Command
from retinanet.data.images import read_image
from retinanet.detection.loading import load
from retinanet.detection.pipeline import MakeRunner
from retinanet.detection.run import detect
from retinanet.scale.detection import cluster_runner
from retinanet.scale.options import LOCAL, ScaleOptions, is_address
from retinanet.scale.serving import remote_workers
from retinanet.scale.work import ModelSource
from retinanet.serve.batcher import Job, Options
from retinanet.serve.run import ServeOptions

pytest.importorskip("ray", reason="the extra [scale] is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine that all tests of this file share. Tests of errors do not use it."""
    import ray

    from retinanet.scale.joining import join

    leave = join(LOCAL, ScaleOptions())
    yield
    leave()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images of three sizes; one is no image, and one is cut off."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(100):
        height, width = ((64, 96), (96, 64), (96, 96))[int(rng.integers(3))]
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number:03}.jpg")
    (folder / "031.jpg").write_bytes(b"no image")
    (folder / "099.jpg").write_bytes((folder / "098.jpg").read_bytes()[:-200])
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """The content of all files below ``out``."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def runner(weights: Path, workers: int = 1) -> MakeRunner:
    return cluster_runner(LOCAL, ScaleOptions(workers), ModelSource(str(weights)))


@pytest.fixture(scope="module")
def alone(folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run without Ray."""
    out = tmp_path_factory.mktemp("alone") / "out"
    detect(str(weights), folder, out, score=0.2, formats=("coco", "csv", "voc"))
    return out


@pytest.mark.usefixtures("cluster")
def test_files_are_those_of_a_run_without_ray(folder: Path, weights: Path, alone: Path, tmp_path: Path) -> None:
    found = detect(
        str(weights),
        folder,
        tmp_path / "out",
        score=0.2,
        formats=("coco", "csv", "voc"),
        make_runner=runner(weights, workers=2),
    )
    assert (found.images, found.failed) == (98, 2)
    assert sum(found.counts.values()) > 100
    assert "on the cluster" in found.speed
    ours, theirs = contents(tmp_path / "out"), contents(alone)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.usefixtures("cluster")
def test_an_interrupted_run_is_resumed(folder: Path, weights: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    lines = (out / "detections.jsonl").read_bytes().splitlines(keepends=True)
    (out / "detections.jsonl").write_bytes(b"".join(lines[:37]) + lines[37][:20])
    found = detect(
        str(weights),
        folder,
        out,
        score=0.2,
        formats=("coco", "csv", "voc"),
        resume=True,
        make_runner=runner(weights),
    )
    assert found.resumed == 37
    assert contents(out) == contents(alone)


@pytest.mark.usefixtures("cluster")
def test_the_work_of_a_killed_worker_is_repeated(folder: Path, weights: Path, alone: Path, tmp_path: Path) -> None:
    record, killed = tmp_path / "out" / "detections.jsonl", list[int]()

    def kill() -> None:
        end = monotonic() + 60
        while monotonic() < end and not (record.exists() and record.stat().st_size):
            sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if not killed and (process.cmdline() or [""])[0].startswith("ray::MapWorker"):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    detect(str(weights), folder, tmp_path / "out", score=0.2, draw=False, make_runner=runner(weights))
    thread.join(60)
    assert len(killed) == 1
    assert record.read_bytes() == (alone / "detections.jsonl").read_bytes()


@pytest.mark.usefixtures("cluster")
def test_an_evaluation_gives_the_same_numbers(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    for name, more in (("alone", ()), ("cluster", ("--ray", "--scale.workers", "1"))):
        said = run("eval", weights, parts, "--out", tmp_path / name, *more)
        assert said.code == 0, said.err
    for file in ("metrics.json", "detections.json"):
        assert (tmp_path / "cluster" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    assert len(json.loads((tmp_path / "cluster" / "detections.json").read_text())) > 0


@pytest.mark.usefixtures("cluster")
def test_a_server_answers_while_its_replicas_run_elsewhere(
    weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve
    from ray.serve.handle import DeploymentHandle

    ended, shutdown = list[str](), DeploymentHandle.shutdown

    def recorded(handle: Any) -> None:
        shutdown(handle)
        ended.append(handle.deployment_name)

    # A handle that is not shut down goes on reporting to a cluster that has ended, in a thread that no test knows of.
    monkeypatch.setattr(DeploymentHandle, "shutdown", recorded)
    detector, options = load(weights), ServeOptions()
    content = (folder / "000.jpg").read_bytes()
    expected = detector.detect([read_image(folder / "000.jpg")], 0.2)[0]
    with remote_workers(LOCAL, ScaleOptions(workers=1), [f"parts={weights}"], options) as make_batcher:
        assert len(serve.status().applications) == 1
        batcher = make_batcher({"parts": detector}, options.settings, lambda images: None)
        jobs = [Job(content, Options("parts", 0.2), monotonic() + 60) for _ in range(20)]
        answers = [future.result(60) for future in [batcher.submit(job) for job in jobs]]
        batcher.close()
    assert ended == ["models"]
    assert not serve.status().applications
    assert len(expected) > 0
    for answer in answers:
        np.testing.assert_allclose(answer.detections.boxes, expected.boxes, atol=0.01)
        np.testing.assert_allclose(answer.detections.scores, expected.scores, atol=1e-4)


@pytest.mark.usefixtures("cluster")
def test_a_worker_without_room_is_one_clear_line(run: Command, weights: Path, folder: Path, tmp_path: Path) -> None:
    said = run.fails("detect", weights, folder, "--ray", "--scale.gpus", "1", "--out", tmp_path / "out")
    assert "no machine of the cluster has 1 cores and 1 GPUs for a worker; lower" in said


@pytest.mark.usefixtures("cluster")
def test_a_model_that_workers_cannot_load_is_one_clear_line(
    run: Command, weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet.scale.detection.weights_digest", lambda detector: "another")
    said = run.fails("detect", weights, folder, "--ray", "--scale.workers", "1", "--out", tmp_path / "out")
    assert "is not that of the command" in said
    assert said.endswith("then go on with --resume")


def test_ray_that_is_not_installed_is_one_clear_line(
    run: Command, weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = run.fails("detect", weights, folder, "--ray", "--out", tmp_path / "out")
    assert "--ray needs Ray; install it with: pip install 'retinanet[scale]'" in said


@pytest.mark.parametrize("answers", [False, True])
def test_an_address_without_a_cluster_is_one_clear_line(
    run: Command,
    weights: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
) -> None:
    """Nobody listens, or another program does, which says nothing."""
    monkeypatch.setattr("retinanet.scale.joining._ANSWER", 1.0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        begin = monotonic()
        said = run.fails("detect", weights, folder, "--ray", address, "--out", tmp_path / "out")
    assert f"--ray {address}: no cluster answers there; start one with 'ray start --head'" in said
    assert monotonic() - begin < 15


def test_a_cluster_of_another_version_is_one_clear_line(
    run: Command, weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1\n")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    said = run.fails("detect", weights, folder, "--ray", "--out", tmp_path / "out")
    assert "cannot be joined (Version mismatch: The cluster was started with: Ray: 2.9.0 Python: 3.9.1)" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("photo.jpg", "-", "--ray"), "workers cannot read the standard input"),
        (("clip.mp4", "--ray"), "--ray are for images"),
        (("photo.jpg", "--scale.workers", "2"), "--scale.workers, --scale.cpus and --scale.gpus are for --ray"),
        (("photo.jpg", "--ray", "--scale.workers", "0"), "--scale.workers is 0; give at least 1"),
        (("photo.jpg", "--ray", "--scale.cpus", "0"), "--scale.cpus is 0; give at least 1"),
        (("photo.jpg", "--ray", "--scale.gpus", "1.5"), "--scale.gpus is 1.5; give 0, a whole number"),
    ],
)
def test_settings_that_a_cluster_cannot_follow(
    run: Command, weights: Path, words: tuple[str, ...], expected: str
) -> None:
    assert expected in run.fails("detect", weights, *words, code=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("local", True), ("node:6379", True), ("[::1]:6379", True), ("photo.jpg", False), ("", False), ("-x", False)],
)
def test_addresses_are_told_from_sources(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_the_cluster_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(content))
    starts = content["head_start_ray_commands"] + content["worker_start_ray_commands"]
    assert all(
        "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" in command for command in starts if "ray start" in command
    )
    assert "retinanet[torch,scale]" in content["setup_commands"][0]
