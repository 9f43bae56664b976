"""The whole training: what it writes, that it learns, and that a killed one ends as if it had never been."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from retinanet import cli
from retinanet.config import Config
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.formats.open_dataset import read_train_val
from retinanet.data.loader import load_sample
from retinanet.data.sampling import TrainingOrder
from retinanet.data.synthetic import write_sample
from retinanet.data.transforms import normalized_batch, resize
from retinanet.errors import CheckpointError, ConfigError, DataError, NonFiniteLossError
from retinanet.model import RetinaNet
from retinanet.recipes import load_recipe
from retinanet.training import loop, step
from retinanet.training.meter import Meter
from retinanet.training.validation import epoch_line
from retinanet.zoo.weights import load_weights, read_info


def _config(**train: Any) -> Config:
    """The default recipe on a network small enough for a test."""
    config = load_recipe("modern")
    return replace(
        config,
        model=replace(config.model, channels=32, subnet_depth=1),
        data=replace(config.data, size=96, workers=0),
        train=replace(config.train, **{"epochs": 1, "batch": 4, "precision": "fp32", **train}),
    )


_FLAGS = [
    "--model.channels",
    "32",
    "--model.subnet-depth",
    "1",
    "--data.size",
    "96",
    "--data.workers",
    "1",
    "--train.epochs",
    "3",
    "--train.batch",
    "4",
    "--train.precision",
    "fp32",
    "--train.checkpoint-minutes",
    "0.000001",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_sample(folder, images=15, seed=3, size=96)
    return folder


@pytest.fixture(scope="module")
def sets(parts: Path) -> tuple[Dataset, Dataset]:
    train_set, val_set, _ = read_train_val(parts)
    return train_set, val_set


def _start(parts: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "retinanet", "train", str(parts), "--out", str(out), *_FLAGS, *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _finish(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=300)
    text = output.decode()
    assert process.returncode == 0, text
    return text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _wait_for_steps(out: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
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
    _finish(_start(parts, whole))

    process = _start(parts, killed)
    _wait_for_steps(killed, 5, process)  # three steps an epoch: inside the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    step = int(read_info(killed / "last.safetensors").progress["step"])
    assert 1 <= step < 9
    _finish(_start(parts, killed, "--resume"))

    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert expected.keys() == found.keys()
        different = [key for key in expected if not torch.equal(expected[key], found[key])]
        assert not different
        assert read_info(whole / name).metrics == read_info(killed / name).metrics
    without_time = [
        [{**line, "seconds": 0, "data_wait": 0} for line in _lines(run / "metrics.jsonl")] for run in (whole, killed)
    ]
    assert without_time[0] == without_time[1]


def test_a_folder_in_use_is_refused_until_its_training_has_ended(parts: Path, tmp_path: Path) -> None:
    """Two trainings that write the same files; even a killed one leaves nothing that keeps the next one out."""
    out = tmp_path / "run"
    started = [_start(parts, out, "--train.epochs", "1000", "--data.workers", "2")]
    try:
        _wait_for_steps(out, 1, started[0])
        for flags in ((), ("--resume",)):
            started.append(_start(parts, out, "--train.epochs", "1000", *flags))
            said = started[-1].communicate(timeout=100)[0].decode()
            assert started[-1].returncode == 1
            assert said.count("\n") == 1
            assert f"process {started[0].pid} is writing to it; wait until it has ended, or choose another" in said
        assert started[0].poll() is None
        started[0].kill()  # its workers live a little longer
        started[0].wait(timeout=30)
        step = int(read_info(out / "last.safetensors").progress["step"])
        started.append(_start(parts, out, "--train.epochs", "1000", "--resume"))
        _wait_for_steps(out, step + 1, started[-1])
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
    process = _start(parts, out, "--train.checkpoint-minutes", "60")
    _wait_for_steps(out, 4, process)  # the first epoch's checkpoint is there, the second epoch is under way
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in output.decode()
    assert "Traceback" not in output.decode()
    logged = max(line["step"] for line in _lines(out / "metrics.jsonl"))
    assert read_info(out / "last.safetensors").progress["step"] == logged


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_the_exact_step_first(
    parts: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As terminals, ``timeout`` and schedulers send it: to the processes that load images, too."""
    out = tmp_path / "run"
    process = _start(parts, out, "--train.checkpoint-minutes", "60", "--data.workers", "2")
    _wait_for_steps(out, 4, process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output.decode()
    assert "--resume" in output.decode()
    assert "Traceback" not in output.decode()
    logged = max(line["step"] for line in _lines(out / "metrics.jsonl"))
    assert read_info(out / "last.safetensors").progress["step"] == logged


def test_same_seed_same_weights_and_other_seed_others(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        loop.train_on(_config(seed=seed), *sets, tmp_path / name)
        runs[name] = load_file(tmp_path / name / "last.safetensors")
    assert all(torch.equal(runs["a"][key], runs["b"][key]) for key in runs["a"])
    assert any(not torch.equal(runs["a"][key], runs["c"][key]) for key in runs["a"])


def test_writes_what_it_promises(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    result = loop.train_on(_config(epochs=2), *sets, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock",
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
    }
    lines = _lines(tmp_path / "run" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "AP" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in evaluations] == [1, 2]
    assert all(abs(s["loss"] - s["classification"] - s["box"]) < 1e-3 for s in steps)
    assert result.metrics["AP"] == max(line["AP"] for line in evaluations)
    assert load_recipe(str(tmp_path / "run" / "config.yaml")) == _config(epochs=2)
    model, info = load_weights(result.best)
    assert info.classes == ("washer", "nut", "screw", "gear")
    assert not model.training


def test_averaged_weights_differ_from_raw_ones_and_are_the_ones_saved(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    loop.train_on(_config(ema=0.9), *sets, tmp_path / "run")
    state = load_file(tmp_path / "run" / "last.safetensors")
    name = "classification.predict.weight"
    assert not torch.equal(state[name], state[f"train.model.{name}"])
    model, _ = load_weights(tmp_path / "run" / "last.safetensors")
    assert torch.equal(model.state_dict()[name], state[name])


def test_learns_one_image_by_heart(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set = sets[0]
    # an image of a few parts; none is hidden so much that it looks like another class
    one = train_set.subset([next(i for i in train_set if 3 <= len(train_set.boxes[train_set.rows(i)]) <= 6)])
    config = _config(epochs=100, batch=1, eval_every=100, lr=0.02, ema=None)
    config = replace(config, data=replace(config.data, size=192, flip=0.0, scale=(1.0, 1.0), color=0.0))
    result = loop.train_on(config, one, one, tmp_path / "run")
    assert result.metrics["AP50"] > 0.9


def test_stops_at_the_first_non_finite_loss_and_names_the_image(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_set, val_set = sets
    config = _config(epochs=2)
    config = replace(config, data=replace(config.data, flip=0.0, color=0.0, crop=0.0, scale=(1.0, 1.0)))
    victim = TrainingOrder(train_set, 4, 2, 0).batches(1)[0][1]  # in the first step of the second epoch
    culprit = Path(train_set.files[victim]).name
    pixels = resize(load_sample(train_set, victim), config.data).image
    genuine, met = normalized_batch, 0

    def poisoned(images: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        nonlocal met
        batch = genuine(images, *rest)
        for row, image in enumerate(images):
            if torch.equal(image, pixels):
                met += 1
                batch[row] = float("nan") if met > 1 else batch[row]  # not in the first epoch
        return batch

    monkeypatch.setattr("retinanet.training.step.normalized_batch", poisoned)
    with pytest.raises(NonFiniteLossError) as caught:
        loop.train_on(config, train_set, val_set, tmp_path / "run")
    assert culprit in str(caught.value)
    assert ("--train.clip 10" in str(caught.value)) == (config.train.clip is None)
    assert "\n" not in str(caught.value)
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert [Path(image["file"]).name for image in report if not image["finite"]] == [culprit]
    # the weights on disk are those of the last good epoch
    assert read_info(tmp_path / "run" / "last.safetensors").progress["step"] == 3
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "run" / "last.safetensors").values())


def test_refuses_a_folder_that_holds_a_run(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    loop.train_on(_config(), *sets, tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="--resume"):
        loop.train_on(_config(), *sets, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_resume_refuses_other_settings_and_other_data(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = sets
    loop.train_on(_config(), *sets, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train\.lr"):
        loop.train_on(_config(lr=0.5), *sets, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="data has changed"):
        loop.train_on(_config(), train_set.subset(range(5)), val_set, tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    first = loop.train_on(_config(), *sets, tmp_path / "run")
    before = load_file(tmp_path / "run" / "last.safetensors")
    again = loop.train_on(_config(), *sets, tmp_path / "run", resume=True)
    after = load_file(tmp_path / "run" / "last.safetensors")
    assert again.metrics == first.metrics
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_resume_without_a_checkpoint_starts(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    assert loop.train_on(_config(), *sets, tmp_path / "run", resume=True).best.exists()


def test_a_set_without_boxes_is_refused_with_the_reason(tmp_path: Path) -> None:
    builder = DatasetBuilder("empty", tmp_path, ["cell"])
    builder.add_image("a.jpg", 10, 10)
    empty = builder.build()
    with pytest.raises(DataError, match="no box to learn from"):
        loop.train_on(_config(), empty, empty, tmp_path / "run")


def test_a_finished_run_says_so(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(parts), "--out", str(tmp_path / "run"), *_FLAGS, "--train.epochs", "1"]
    assert cli.main(command) == 0
    capsys.readouterr()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert cli.main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "is already finished (all 1 epochs are done); to train again, choose another --out" in said
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_stops_when_nothing_gets_better_and_stays_stopped(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    empty = {"AP50": 0.0, "AP75": 0.0, "per_class": {}}
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": next(precisions), **empty}, []))
    result = loop.train_on(_config(epochs=20, patience=3), *sets, tmp_path / "run")
    assert result.finished == "no better AP in the 3 epochs since epoch 2"
    assert result.metrics["AP"] == 0.3
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert info.progress["epoch"] == 5
    assert read_info(result.best).progress["epoch"] == 2
    again = loop.train_on(_config(epochs=20, patience=3), *sets, tmp_path / "run", resume=True)
    assert again.finished == result.finished
    assert read_info(tmp_path / "run" / "last.safetensors").progress["epoch"] == 5


def test_patience_survives_a_resume(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = iter([0.3, 0.2, 0.2])
    empty = {"AP50": 0.0, "AP75": 0.0, "per_class": {}}

    def measured(*_: object) -> tuple[dict[str, Any], list[str]]:
        try:
            return {"AP": next(precisions), **empty}, []
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("retinanet.training.validation.validate", measured)
    with pytest.raises(KeyboardInterrupt):
        loop.train_on(_config(epochs=20, patience=4), *sets, tmp_path / "run")
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.1, **empty}, []))
    result = loop.train_on(_config(epochs=20, patience=4), *sets, tmp_path / "run", resume=True)
    assert result.finished == "no better AP in the 4 epochs since epoch 1"


def test_more_patience_goes_on_with_a_training_that_stopped_early(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"AP50": 0.0, "AP75": 0.0, "per_class": {}}
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.3, **empty}, []))
    early = loop.train_on(_config(epochs=4, patience=1), *sets, tmp_path / "run")
    assert "no better AP" in early.finished
    longer = loop.train_on(_config(epochs=4, patience=30), *sets, tmp_path / "run", resume=True)
    assert longer.finished == "all 4 epochs are done"
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.3, **empty}, []))
    loop.train_on(_config(epochs=4, patience=30), *sets, tmp_path / "whole")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_killed_between_the_best_weights_and_the_first_checkpoint(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    loop.train_on(_config(), *sets, out)
    expected = load_file(out / "last.safetensors")
    (out / "last.safetensors").rename(out / ".last.123456.safetensors")  # what such a kill leaves
    with pytest.raises(CheckpointError, match="earlier run"):
        loop.train_on(_config(), *sets, out)
    loop.train_on(_config(), *sets, out, resume=True)
    assert all(torch.equal(load_file(out / "last.safetensors")[name], tensor) for name, tensor in expected.items())
    assert not list(out.glob(".*.*"))


def test_other_val_data_is_refused(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = sets
    loop.train_on(_config(), train_set, val_set, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the validation data has changed since .*3 images → 2"):
        loop.train_on(_config(), train_set, val_set.subset([0, 1]), tmp_path / "run", resume=True)


def test_val_without_boxes_is_said_and_the_newest_weights_are_kept(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train_set, val_set = sets
    nothing = replace(val_set, ignore=np.ones_like(val_set.ignore))
    console = Console(record=True, width=200)
    result = loop.train_on(_config(epochs=2), train_set, nothing, tmp_path / "run", console=console)
    assert "has no box to measure with; the newest weights are kept as the best" in console.export_text()
    assert read_info(result.best).progress["epoch"] == 2


def test_an_image_that_went_bad_is_replaced_named_and_counted(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "parts"
    shutil.copytree(parts, data)
    train_set, val_set, _ = read_train_val(data)
    bad, bad_val = train_set.path(2), val_set.path(0)
    bad.write_bytes(bad.read_bytes()[:300])
    bad_val.unlink()
    flags = [*_FLAGS, "--train.epochs", "2", "--data.no-verify"]
    assert cli.main(["train", str(data), "--out", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr().out
    named = [line for line in said.splitlines() if line.startswith("warning") and bad.name in line]
    assert len(named) == 1  # not in every epoch
    assert "another image takes its place" in named[0]
    assert "1 images could not be read (2 times in all); others took their places" in said
    left_out = [line for line in said.splitlines() if bad_val.name in line and "left out of this evaluation" in line]
    assert len(left_out) == 2  # in each
    warnings = [line["warning"] for line in _lines(tmp_path / "run" / "metrics.jsonl") if "warning" in line]
    assert any(bad.name in warning for warning in warnings)


def test_all_images_gone_ends_the_training_with_the_reason(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = (replace(dataset, root=Path("/gone")) for dataset in sets)
    with pytest.raises(DataError, match="8 images in a row cannot be read; check their disk"):
        loop.train_on(_config(), train_set, val_set, tmp_path / "run")


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
    config = _config(epochs=2, checkpoint_minutes=1e-9)
    with pytest.raises(CheckpointError, match="No space left on device"):
        loop.train_on(config, *sets, tmp_path / "run")
    monkeypatch.undo()
    assert read_info(tmp_path / "run" / "last.safetensors").progress["step"] == 2
    assert not list((tmp_path / "run").glob(".*.*"))  # no half-written file is left to fill the disk
    loop.train_on(config, *sets, tmp_path / "run", resume=True)
    loop.train_on(config, *sets, tmp_path / "whole")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_numbers_read_a_step_late_as_on_a_gpu_change_nothing(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(epochs=2)
    loop.train_on(config, *sets, tmp_path / "at once")
    monkeypatch.setattr(
        "retinanet.training.recorder.Meter", lambda processes, deferred: Meter(processes, deferred=True)
    )
    loop.train_on(config, *sets, tmp_path / "late")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("late", "at once"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    steps = [[line for line in _lines(tmp_path / r / "metrics.jsonl") if "loss" in line] for r in ("late", "at once")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("deferred", [False, True])
def test_a_step_that_is_not_finite_is_left_out(
    deferred: bool, sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its numbers are read a step late: the weights never meet them."""
    genuine, models = step.backward, []

    def poisoned(network: RetinaNet, *rest: Any) -> Any:
        losses, imbalance = genuine(network, *rest)
        models.append(network)
        if len(models) == 2:
            gradient = list(network.parameters())[-1].grad
            assert gradient is not None
            gradient.fill_(float("nan"))
        return losses, imbalance

    monkeypatch.setattr("retinanet.training.state.backward", poisoned)
    late = deferred
    monkeypatch.setattr(
        "retinanet.training.recorder.Meter", lambda processes, deferred: Meter(processes, deferred=late)
    )
    with pytest.raises(NonFiniteLossError):
        loop.train_on(_config(epochs=2), *sets, tmp_path / "run")
    assert len(models) == 2 + deferred
    assert all(torch.isfinite(p).all() for p in models[0].parameters())


def test_loss_shares_are_logged(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    loop.train_on(_config(), *sets, tmp_path / "run")
    first, *others = [line for line in _lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    shares = [first[f"share_{name}"] for name in ("foreground", "easy", "hard")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert sum(first[f"positives_p{level}"] for level in range(3, 8)) == first["foreground"]
    assert not any("share_easy" in line for line in others[:19])


def test_rare_classes_are_shown_more_often(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    config = _config()
    config = replace(config, data=replace(config.data, repeat_rare=1.0))
    loop.train_on(config, *sets, tmp_path / "run")
    plain = TrainingOrder(sets[0], 4, 1, 0).steps_per_epoch
    assert read_info(tmp_path / "run" / "last.safetensors").progress["step"] > plain


def test_parts_of_a_step_train_as_the_whole(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    for accumulate in (1, 3):
        loop.train_on(_config(optimizer="sgd", lr=0.01, accumulate=accumulate), *sets, tmp_path / str(accumulate))
    whole, parts = (load_file(tmp_path / run / "last.safetensors") for run in ("1", "3"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-3)


def crowded(folder: Path, boxes: int, images: int = 2) -> Dataset:
    """Images of noise, each with that many small boxes."""
    rng = np.random.default_rng(0)
    builder = DatasetBuilder("crowded", folder, ("cell",))
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        builder.add_image(f"{number}.png", 128, 128)
        for x, y in rng.uniform(0, 110, (boxes, 2)):
            builder.add_box((x, y, x + 15, y + 12), 0, "generated")
    return builder.build()


@pytest.mark.parametrize("method", ["atss", "iou"])
def test_an_image_with_5000_boxes(method: str, tmp_path: Path) -> None:
    dataset = crowded(tmp_path, 5000)
    config = _config()
    config = replace(config, assign=replace(config.assign, method=method))  # type: ignore[arg-type]
    result = loop.train_on(config, dataset, dataset, tmp_path / "run")
    (step,) = [line for line in _lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert step["foreground"] > 0 or method == "iou"
    assert result.metrics["AP"] >= 0


def test_objects_that_no_anchor_reaches_are_said(tmp_path: Path) -> None:
    """Boxes of 15 pixels, anchors of 32 and more: nothing can be learnt, and that is said before the first step."""
    console = Console(record=True, width=300)
    dataset = crowded(tmp_path, 60)
    config = _config(epochs=1)
    config = replace(config, assign=replace(config.assign, method="iou"))
    loop.train_on(config, dataset, dataset, tmp_path / "run", console=console)
    said = console.export_text()
    assert (
        "warning: 120 of 120 objects (100%, in 2 images) are matched with no anchor, so nothing is learned from them"
        in said
    )
    assert "'retinanet data anchors' fits anchors" in said
    assert _lines(tmp_path / "run" / "metrics.jsonl")[0]["warning"].startswith("120 of 120 objects")


def test_one_image_is_enough(tmp_path: Path) -> None:
    dataset = crowded(tmp_path, 5, images=1)
    assert loop.train_on(_config(), dataset, dataset, tmp_path / "run").metrics["AP"] >= 0


def test_synced_norm_needs_gpus(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="works on GPUs only"):
        loop.train_on(_config(sync_norm=True, device="cpu"), *sets, tmp_path / "run")


def test_paper_recipe_trains(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    paper = load_recipe("paper")
    config = replace(
        paper,
        model=replace(paper.model, backbone="resnet18", pretrained=False, norm="trained", channels=32, subnet_depth=1),
        data=replace(paper.data, size=96, workers=0),
        train=replace(paper.train, epochs=1, batch=4, precision="fp32"),
    )
    result = loop.train_on(config, *sets, tmp_path / "run")
    steps = [line for line in _lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(steps) == 3
    assert result.best.exists()


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_long_gradients_are_clipped(sets: tuple[Dataset, Dataset], tmp_path: Path, clip: float | None) -> None:
    """A step of plain SGD moves the weights by the learning rate times the gradient's norm."""
    config = _config(optimizer="sgd", momentum=0.0, weight_decay=0.0, ema=None, warmup=0, clip=clip, batch=64)
    train_set, val_set = sets
    out = tmp_path / "run"
    loop.train_on(config, train_set, val_set, out)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (step,) = (line for line in steps if "grad_norm" in line)
    torch.manual_seed(config.train.seed)
    before = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes)).state_dict()
    after = load_file(out / "last.safetensors")
    moved = sum((after[name] - value).square().sum() for name, value in before.items() if value.is_floating_point())
    assert step["grad_norm"] > 0.1
    expected = step["lr"] * (step["grad_norm"] if clip is None else clip)
    assert float(moved) ** 0.5 == pytest.approx(expected, rel=0.01)


def test_waiting_for_images_is_logged_and_printed_if_it_is_much() -> None:
    loss, metrics = 1.0, {"AP": 0.5, "AP50": 0.7, "AP75": 0.4}
    assert epoch_line(3, 10, loss, metrics, 0.05) == "epoch  3/10  loss 1.000  AP 0.500  AP50 0.700  AP75 0.400"
    assert "35% of the time waiting for images; try more --data.workers" in epoch_line(3, 10, loss, metrics, 0.35)
