"""A loss or gradient that is not finite stops the training before the weights are changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retinanet.data.dataset import Dataset
from retinanet.data.loader import load_sample
from retinanet.data.sampling import TrainingOrder
from retinanet.data.transforms import normalized_batch, resize
from retinanet.errors import NonFiniteLossError
from retinanet.model import RetinaNet
from retinanet.training import loop, step
from retinanet.training.meter import Meter
from retinanet.zoo.weights import read_info
from training_runs import sample_dataset, small_config, train_and_val


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(parts: Path) -> tuple[Dataset, Dataset]:
    return train_and_val(parts)


def test_stops_at_the_first_non_finite_loss_and_names_the_image(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_set, val_set = sets
    config = small_config(epochs=2)
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
        loop.train_on(small_config(epochs=2), *sets, tmp_path / "run")
    assert len(models) == 2 + deferred
    assert all(torch.isfinite(p).all() for p in models[0].parameters())
