"""Runs that are started in a used folder, resumed, or stopped early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retinanet import cli
from retinanet.data.dataset import Dataset
from retinanet.errors import CheckpointError
from retinanet.training import loop
from retinanet.zoo.weights import read_info
from training_runs import FLAGS, sample_dataset, small_config, train_and_val


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(parts: Path) -> tuple[Dataset, Dataset]:
    return train_and_val(parts)


def test_refuses_a_folder_that_holds_a_run(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    loop.train_on(small_config(), *sets, tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="--resume"):
        loop.train_on(small_config(), *sets, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_resume_refuses_other_settings_and_other_data(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = sets
    loop.train_on(small_config(), *sets, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train\.lr"):
        loop.train_on(small_config(lr=0.5), *sets, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="data has changed"):
        loop.train_on(small_config(), train_set.subset(range(5)), val_set, tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    first = loop.train_on(small_config(), *sets, tmp_path / "run")
    before = load_file(tmp_path / "run" / "last.safetensors")
    again = loop.train_on(small_config(), *sets, tmp_path / "run", resume=True)
    after = load_file(tmp_path / "run" / "last.safetensors")
    assert again.metrics == first.metrics
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_resume_without_a_checkpoint_starts(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    assert loop.train_on(small_config(), *sets, tmp_path / "run", resume=True).best.exists()


def test_a_finished_run_says_so(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(parts), "--out", str(tmp_path / "run"), *FLAGS, "--train.epochs", "1"]
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
    result = loop.train_on(small_config(epochs=20, patience=3), *sets, tmp_path / "run")
    assert result.finished == "no better AP in the 3 epochs since epoch 2"
    assert result.metrics["AP"] == 0.3
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert info.progress["epoch"] == 5
    assert read_info(result.best).progress["epoch"] == 2
    again = loop.train_on(small_config(epochs=20, patience=3), *sets, tmp_path / "run", resume=True)
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
        loop.train_on(small_config(epochs=20, patience=4), *sets, tmp_path / "run")
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.1, **empty}, []))
    result = loop.train_on(small_config(epochs=20, patience=4), *sets, tmp_path / "run", resume=True)
    assert result.finished == "no better AP in the 4 epochs since epoch 1"


def test_more_patience_goes_on_with_a_training_that_stopped_early(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"AP50": 0.0, "AP75": 0.0, "per_class": {}}
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.3, **empty}, []))
    early = loop.train_on(small_config(epochs=4, patience=1), *sets, tmp_path / "run")
    assert "no better AP" in early.finished
    longer = loop.train_on(small_config(epochs=4, patience=30), *sets, tmp_path / "run", resume=True)
    assert longer.finished == "all 4 epochs are done"
    monkeypatch.setattr("retinanet.training.validation.validate", lambda *_: ({"AP": 0.3, **empty}, []))
    loop.train_on(small_config(epochs=4, patience=30), *sets, tmp_path / "whole")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("run", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_val_data_is_refused(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = sets
    loop.train_on(small_config(), train_set, val_set, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the validation data has changed since .*3 images → 2"):
        loop.train_on(small_config(), train_set, val_set.subset([0, 1]), tmp_path / "run", resume=True)
