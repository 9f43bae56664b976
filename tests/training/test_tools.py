"""What each tool keeps is read back with its own means; nothing of it goes over a network."""

from __future__ import annotations

import io
import json
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from retinanet.config import Config
from retinanet.detection.example_images import save_images
from retinanet.errors import ConfigError
from retinanet.training.log import Log
from retinanet.training.tools import logged_in
from retinanet.training.tracking import open_trackers

pytest.importorskip("tensorboard", reason="pip install 'retinanet[tensorboard]'")
wandb = pytest.importorskip("wandb", reason="pip install 'retinanet[wandb]'")
pytest.importorskip("mlflow", reason="pip install 'retinanet[mlflow]'")

TOOLS = ("tensorboard", "wandb", "mlflow")
CONFIG = Config.from_dict({"train": {"lr": 0.015}})
STEPS_PER_EPOCH = 5


class Kept(NamedTuple):
    """What a tool holds: per scalar its (step, value) pairs, per image its (step, mean colour), and settings."""

    scalars: dict[str, list[tuple[int, float]]]
    images: dict[str, list[tuple[int, int]]]
    settings: str


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Fail on every connection but those between processes of this machine; the environment says nothing of servers."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    genuine, calls = socket.socket.connect, []

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            calls.append(address)
            raise OSError("no network in tests")
        genuine(self, address)

    def resolve(*arguments: Any, **_: Any) -> Any:
        calls.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # what W&B's second process would ask first
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        yield
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert calls == []


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, which takes seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def out(tmp_path: Path, database: Path) -> Path:
    folder = tmp_path / "runs [1]" / "my run"
    folder.mkdir(parents=True)
    shutil.copy(database, folder)
    return folder


def train(names: tuple[str, ...], out: Path, first: int, last: int, close: bool = True) -> None:
    """Steps ``first`` to ``last`` of a training that is evaluated and painted after each epoch."""
    log = Log(out / "metrics.jsonl", resume_at=first - 1)
    trackers = open_trackers(names, out, CONFIG, first - 1)
    for step in range(first, last + 1):
        line: dict[str, Any] = {"step": step, "epoch": step / STEPS_PER_EPOCH, "loss": 1 / step, "lr": 0.5}
        log.write(**line)
        trackers.log_line(line)
        if step % STEPS_PER_EPOCH == 0:
            per_class = {"a/b": {"AP": 0.25, "AP50": 0.5, "boxes": 3}, "жук": {"AP": 0.75, "AP50": 1.0, "boxes": 1}}
            line = {"step": step, "epoch": step // STEPS_PER_EPOCH, "AP": step / 100, "per_class": per_class}
            log.write(**line)
            trackers.log_line(line)
            images = {"photo 1": np.full((24, 32, 3), 10 * step, dtype=np.uint8)}
            save_images(out / "images" / f"epoch_{step // STEPS_PER_EPOCH:04d}", images)
            trackers.images(step, images)
    if close:
        trackers.close()
        wandb.teardown()  # as the end of a process does: its own process writes until then


def read(name: str, out: Path) -> Kept:
    return {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}[name](out)


def read_tensorboard(out: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(out / "tensorboard"), size_guidance=everything).Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(e.step, _colour(e.encoded_image_string)) for e in events.Images(tag)] for tag in tags["images"]}
    *_, config = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("config/text_summary")]
    return Kept(scalars, images, config)


def read_wandb(out: Path) -> Kept:
    [folder] = (out / "wandb").glob("offline-run-*")
    scalars: dict[str, list[tuple[int, float]]] = {}
    images: dict[str, list[tuple[int, int]]] = {}
    settings = ""
    for record in wandb_records(next(folder.glob("run-*.wandb"))):
        if record.run.run_id:
            settings = "\n".join(f"{item.key}: {item.value_json}" for item in record.run.config.update)
        for item in record.history.item:
            step, value = record.history.step.num, json.loads(item.value_json)
            key, *rest = item.nested_key or [item.key]
            if rest == ["path"]:
                images.setdefault(key, []).append((step, _colour((folder / "files" / value).read_bytes())))
            elif not rest and not key.startswith("_"):
                scalars.setdefault(key, []).append((step, value))
    return Kept(scalars, images, settings)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        if 32768 - place % 32768 < 7:  # the end of a block, too short for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            whole = b""
            yield record


def read_mlflow(out: Path) -> Kept:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    run = client.get_run(json.loads((out / "tracking.json").read_text())["mlflow"])
    assert run.info.status == "FINISHED"
    names = run.data.metrics
    scalars = {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in names}
    images: dict[str, list[tuple[int, int]]] = {}
    for folder in client.list_artifacts(run.info.run_id, "images"):
        for file in client.list_artifacts(run.info.run_id, folder.path):
            path = out / "mlflow" / run.info.run_id / "artifacts" / file.path
            step = int(Path(folder.path).name.removeprefix("step_"))
            images.setdefault(f"images/{path.stem}", []).append((step, _colour(path.read_bytes())))
    return Kept(scalars, images, "\n".join(f"{k}: {v}" for k, v in run.data.params.items()))


def _colour(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (32, 24)
        return round(float(np.asarray(image.convert("RGB")).mean()))


def check_complete(kept: Kept, steps: int) -> None:
    """Every step once, as if the training had never been interrupted."""
    ends = list(range(STEPS_PER_EPOCH, steps + 1, STEPS_PER_EPOCH))
    assert set(kept.scalars) == {"train/epoch", "train/loss", "train/lr", "val/AP", "val/AP/a_b", "val/AP/жук"}
    assert [step for step, _ in kept.scalars["train/loss"]] == list(range(1, steps + 1))
    assert [v for _, v in kept.scalars["train/loss"]] == pytest.approx([1 / s for s in range(1, steps + 1)])
    assert [step for step, _ in kept.scalars["val/AP"]] == ends
    assert [v for _, v in kept.scalars["val/AP"]] == pytest.approx([step / 100 for step in ends])
    assert kept.scalars["val/AP/жук"] == [(step, 0.75) for step in ends]
    assert list(kept.images) == ["images/photo 1"]
    assert [step for step, _ in kept.images["images/photo 1"]] == ends
    assert [v for _, v in kept.images["images/photo 1"]] == pytest.approx([10 * step for step in ends], abs=2)


@pytest.mark.parametrize("name", TOOLS)
def test_a_resumed_training_is_kept_once_and_whole(name: str, out: Path) -> None:
    train((name,), out, 1, 12)
    check_complete(read(name, out), 12)
    assert "0.015" in read(name, out).settings
    train((name,), out, 11, 18)  # from the checkpoint of step 10
    check_complete(read(name, out), 18)


def test_a_tool_added_on_resuming_gets_the_steps_before(out: Path) -> None:
    train((), out, 1, 12)
    train(TOOLS, out, 11, 15)
    for name in TOOLS:
        check_complete(read(name, out), 15)


def test_what_mlflow_had_not_written_before_a_kill_comes_on_resuming(out: Path) -> None:
    train(("mlflow",), out, 1, 12, close=False)
    train(("mlflow",), out, 11, 15)
    check_complete(read("mlflow", out), 15)


def test_a_run_that_was_moved_starts_anew_in_mlflow(out: Path) -> None:
    train(("mlflow",), out, 1, 10)
    there = out.rename(out.with_name("moved"))
    train(("mlflow",), there, 11, 15)
    check_complete(read("mlflow", there), 15)
    train(("mlflow",), there, 16, 20)
    check_complete(read("mlflow", there), 20)
    assert not out.exists()


def test_a_new_training_in_the_same_folder_is_a_new_run(out: Path) -> None:
    train(TOOLS, out, 1, 8, close=False)  # killed before its first checkpoint
    shutil.rmtree(out / "images")
    train(TOOLS, out, 1, 6)
    for name in ("tensorboard", "mlflow"):
        check_complete(read(name, out), 6)
    identity = json.loads((out / "tracking.json").read_text())["wandb"]
    [file] = (out / "wandb").glob(f"offline-run-*/run-{identity}.wandb")
    steps = [record.history.step.num for record in wandb_records(file) if record.history.item]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
@pytest.mark.parametrize("name", TOOLS)
def test_a_full_disk_ends_no_training(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    console = Console(file=(text := io.StringIO()), width=500)
    Log(out / "metrics.jsonl")
    with open_trackers([name], out, CONFIG, 0, console) as trackers:
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        monkeypatch.setattr("wandb.Run.log", full)
        monkeypatch.setattr("mlflow.MlflowClient.log_batch", full)
        for step in range(1, 1000):
            trackers.log_line({"step": step, "loss": 1.0})
            if "warning" in text.getvalue():
                break
    assert text.getvalue().count("warning:") == 1
    assert f"warning: {name} failed ([Errno 28] No space left on device)" in text.getvalue()


def test_a_failed_training_is_marked_in_mlflow(out: Path) -> None:
    from mlflow import MlflowClient

    with pytest.raises(ZeroDivisionError), open_trackers(["mlflow"], out, CONFIG):
        _ = 1 / 0
    run = json.loads((out / "tracking.json").read_text())["mlflow"]
    assert MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}").get_run(run).info.status == "FAILED"


def test_wandb_never_asks_for_a_key(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.errors import term

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(term, "_in_jupyter", lambda: True)  # there, wandb thinks that it can ask
    with pytest.raises(ConfigError, match=r"--train.track wandb: cannot start \(No API key.*WANDB_MODE=offline"):
        open_trackers(["wandb"], out, CONFIG)


def test_wandb_is_online_for_those_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert logged_in()


def test_mlflow_refuses_paths_it_would_read_otherwise(out: Path) -> None:
    odd = out / "50%25?"
    odd.mkdir()
    with pytest.raises(ConfigError, match="MLflow does not accept % or"):
        open_trackers(["mlflow"], odd, CONFIG)
    assert list(odd.iterdir()) == []


def test_mlflow_goes_where_its_variable_says(out: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(database, out.parent / 'all runs.db')}"
    (out / "mlflow.db").unlink()
    monkeypatch.chdir(out.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "boats")
    train(("mlflow",), out, 1, 5)
    client = MlflowClient(tracking_uri=uri)
    boats = client.get_experiment_by_name("boats")
    assert boats is not None
    [run] = client.search_runs([boats.experiment_id])
    assert run.data.metrics["val/AP"] == pytest.approx(0.05)
    assert not (out / "mlflow.db").exists()
