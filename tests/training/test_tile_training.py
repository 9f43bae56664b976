"""Trainings on tiles of large images (``data.tile``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.synthetic import write_sample
from retinanet.detection.loading import load
from retinanet.detection.run import detect
from retinanet.errors import CheckpointError, DataError, RetinaNetError
from retinanet.evaluation.model_evaluation import evaluate
from retinanet.serve.service import Service
from retinanet.serve.settings import ServeSettings
from retinanet.training import loop
from retinanet.training.state import TrainingState
from retinanet.zoo.weights import read_info
from training_runs import log_lines, small_config, train_and_val

TILE = 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of 200 pixels, larger than four tiles."""
    folder = tmp_path_factory.mktemp("data") / "large"
    write_sample(folder, images=5, seed=3, size=200)
    return folder


@pytest.fixture(scope="module")
def sets(large: Path) -> tuple[Dataset, Dataset]:
    return train_and_val(large)


def tile_config(tile: int | None = TILE, **train: Any) -> Config:
    config = small_config(**train)
    model = replace(config.model, backbone="test_efficientnet", pretrained=False)
    return replace(config, model=model, data=replace(config.data, size=64, tile=tile))


@pytest.fixture(scope="module")
def trained(sets: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training of two epochs, and its output."""
    out = tmp_path_factory.mktemp("trained") / "run"
    console = Console(record=True, width=400, quiet=False, file=(out.parent / "said").open("w"))
    loop.train_on(tile_config(epochs=2), *sets, out, console=console)
    return out, console.export_text()


def test_a_training_says_how_the_images_are_cut(trained: tuple[Path, str]) -> None:
    out, said = trained
    assert "4 images are cut into " in said
    assert "tiles of 64×64 pixels, which overlap by 32" in said
    assert "4 images are decoded to " in said
    assert "(0.0 GB, removed at the end)" in said
    assert not (out / ".decoded").exists()


def test_equal_seeds_give_equal_weights(
    trained: tuple[Path, str], sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    loop.train_on(tile_config(epochs=2), *sets, tmp_path / "run")
    found, expected = (load_file(run / "last.safetensors") for run in (tmp_path / "run", trained[0]))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    trained: tuple[Path, str], sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, genuine, steps = tmp_path / "run", TrainingState.step, 0

    def interrupted(self: TrainingState, *arguments: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            assert (out / ".decoded").is_dir()
            raise KeyboardInterrupt
        return genuine(self, *arguments, **more)

    config = tile_config(epochs=2, checkpoint_minutes=1e-9)
    monkeypatch.setattr(TrainingState, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train_on(config, *sets, out)
    assert not (out / ".decoded").exists()
    monkeypatch.undo()
    loop.train_on(config, *sets, out, resume=True)
    found, expected = (load_file(run / "last.safetensors") for run in (out, trained[0]))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_tiles_are_refused_when_a_run_is_resumed(
    trained: tuple[Path, str], sets: tuple[Dataset, Dataset]
) -> None:
    with pytest.raises(CheckpointError, match=r"data\.tile 64 → 96"):
        loop.train_on(tile_config(96, epochs=2), *sets, trained[0], resume=True)


def test_decoded_images_of_a_killed_run_are_removed(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    left = tmp_path / "run" / ".decoded"
    left.mkdir(parents=True)
    (left / "7.npy").write_bytes(b"left by a killed run")
    loop.train_on(tile_config(None), *sets, tmp_path / "run")
    assert not left.exists()


def test_weights_remember_their_tiles(trained: tuple[Path, str], large: Path, tmp_path: Path) -> None:
    weights = trained[0] / "best.safetensors"
    info = read_info(weights)
    assert info.config.data.tile == TILE
    assert info.objects is not None
    assert info.objects.scale == 1
    detector = load(weights)
    tiling = detector.chosen_tiling(None)
    assert tiling is not None
    assert (tiling.side, tiling.input_side) == (TILE, 64)
    found = detect(weights, large / "images", tmp_path / "out", draw=False)
    assert any(note.startswith("tiles of 64 pixels") for note in found.notes)
    whole = detect(weights, large / "images", tmp_path / "whole", draw=False, tile="none")
    assert not any(note.startswith("tiles") for note in whole.notes)


def test_a_server_of_such_weights_divides_images_too(trained: tuple[Path, str]) -> None:
    service = Service({"tiles": load(trained[0] / "best.safetensors")}, ServeSettings())
    options = service.options(None, None, None, None)
    assert options.tiling is not None
    assert options.tiling.side == TILE
    assert service.options(None, None, None, "none").tiling is None


def test_evaluation_after_and_during_the_training_merges_tiles(trained: tuple[Path, str], large: Path) -> None:
    result = evaluate(trained[0] / "best.safetensors", large)
    assert any(note.startswith("tiles of 64 pixels") for note in result.notes)
    logged = max(line["AP"] for line in log_lines(trained[0] / "metrics.jsonl") if "AP" in line)
    assert result.to_dict()["AP"] == pytest.approx(logged, abs=1e-6)


def test_objects_larger_than_a_tile_are_named(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = sets
    boxes = train_set.boxes.copy()
    boxes[0] = (0, 0, 200, 200)
    console = Console(record=True, width=400, file=(tmp_path / "said").open("w"))
    loop.train_on(tile_config(), replace(train_set, boxes=boxes), val_set, tmp_path / "run", console=console)
    said = console.export_text()
    assert "objects are not learned, because a tile of 64 pixels shows less than 50% of them" in said
    assert "warning: 1 of " in said
    huge = replace(train_set, boxes=boxes[[0] * len(boxes)])
    with pytest.raises(DataError, match="every object is larger than a tile of 64 pixels"):
        loop.train_on(tile_config(), huge, val_set, tmp_path / "other")


def test_a_full_disk_is_found_before_anything_is_decoded(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinanet.data.tile_pixels._SPARE_BYTES", 1 << 60)
    with pytest.raises(RetinaNetError, match=r"the decoded images need 0\.0 GB, but only"):
        loop.train_on(tile_config(), *sets, tmp_path / "run")
    assert not (tmp_path / "run" / ".decoded").exists()
