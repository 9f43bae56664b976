from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from retinanet.anchors import AnchorSpec
from retinanet.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.errors import CheckpointError
from retinanet.losses import Normalizer
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.training.checkpoint import (
    Checkpoint,
    Progress,
    check_same_data,
    check_same_settings,
    describe_data,
    restore_training,
    save_training,
)
from retinanet.training.distributed import Processes
from retinanet.training.optim import MovingAverage, make_average, make_optimizer
from retinanet.training.state import TrainingState
from retinanet.zoo.weights import load_weights

CLASSES = ("cat", "dog")
ANCHORS = AnchorSpec(scales=(1.0,))
ALONE = Processes()
MOVING = LossConfig(normalizer="moving")


def check_same_training(path: Path, info: ModelInfo, config: Config, data: Dataset) -> None:
    """What a resumed training checks."""
    check_same_settings(path, info.config, config)
    check_same_data(path, info.progress["data"], describe_data(data), "training", data)


def config(optimizer: str, ema: float | None = None, norm: str = "frozen") -> Config:
    model = ModelConfig(backbone="resnet18", channels=32, subnet_depth=1, norm=norm)  # type: ignore[arg-type]
    train = TrainConfig(optimizer=optimizer, lr=1e-3, ema=ema, backbone_lr=0.5)  # type: ignore[arg-type]
    return Config(model=model, anchors=ANCHORS, train=train)


class Training:
    """A training state, and steps whose data depend on their number only."""

    def __init__(self, settings: Config, seed: int, processes: Processes = ALONE) -> None:
        torch.manual_seed(seed)
        self.settings = settings
        self.model = RetinaNet.from_config(settings.model, settings.anchors, len(CLASSES), pretrained=False)
        self.model.to(memory_format=torch.channels_last).train()
        self.ema: MovingAverage | None = make_average(self.model, settings.train)
        self.optimizer = make_optimizer(self.model, settings.train)
        self.normalizer = Normalizer(settings.loss)
        self.checkpointed = TrainingState(
            settings, self.model, self.model, self.ema, self.optimizer, self.normalizer, torch.float32, processes
        )

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            outputs = self.model(x)
            loss = sum((level - 0.1 * step).square().mean() for level in (*outputs.logits, *outputs.deltas))
            assert isinstance(loss, Tensor)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(self.model)

    def state(self) -> dict[str, Tensor]:
        result = {f"model.{k}": v.clone() for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            result |= {f"ema.{k}": v.clone() for k, v in self.ema.state_dict().items()}
        return result

    def save(self, path: Path) -> None:
        progress = Progress(step=2, epoch=0.5).to_dict()
        save_training(path, self.checkpointed, ModelInfo.of(self.model, CLASSES, self.settings, progress=progress))

    def restore(self, path: Path) -> None:
        restore_training(path, self.checkpointed)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("norm", ["frozen", "trained"])
def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, ema: float | None, norm: str) -> None:
    settings = config(optimizer, ema, norm)
    first = Training(settings, seed=1)
    first.steps(0, 3)
    path = tmp_path / "last.safetensors"
    first.save(path)
    saved = first.state()
    first.steps(3, 6)

    second = Training(settings, seed=2)  # other initial weights
    assert not torch.equal(second.model.fpn.p6.weight, saved["model.fpn.p6.weight"])
    second.restore(path)
    assert Checkpoint.read(path).progress == Progress(step=2, epoch=0.5)
    for name, value in second.state().items():
        assert torch.equal(value, saved[name]), name
    second.steps(3, 6)
    expected = first.state()
    assert not torch.equal(expected["model.fpn.p6.weight"], saved["model.fpn.p6.weight"])
    for name, value in second.state().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_checkpoint_loads_as_the_model_to_use(tmp_path: Path, ema: float | None) -> None:
    training = Training(config("adamw", ema), seed=1)
    training.steps(0, 3)
    path = tmp_path / "last.safetensors"
    training.save(path)
    loaded, _ = load_weights(path)
    wanted: Any = training.model if training.ema is None else training.ema.module
    assert training.checkpointed.best_model is wanted
    for name, value in wanted.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    if training.ema is not None:
        assert not torch.equal(wanted.fpn.p6.weight, training.model.fpn.p6.weight)


def test_the_moving_average_of_foreground_anchors_is_restored(tmp_path: Path) -> None:
    settings = dataclasses.replace(config("sgd"), loss=MOVING)
    first = Training(settings, seed=1)
    for count in (7, 0, 31):
        first.normalizer(count)
    path = tmp_path / "last.safetensors"
    first.save(path)
    saved = first.normalizer.average.clone()

    second = Training(settings, seed=2)
    assert second.normalizer.average.item() == 100
    second.restore(path)
    assert second.normalizer.average.dtype == saved.dtype
    assert torch.equal(second.normalizer.average, saved)
    for count in (5, 300):
        assert second.normalizer(count) == first.normalizer(count)
    assert "foreground" not in " ".join(load_weights(path)[0].state_dict())  # no part of the model


def of_one_process(rank: int, folder: str) -> None:
    """Two processes save, and so find their own average again."""
    path, settings = Path(folder) / "last.safetensors", dataclasses.replace(config("sgd"), loss=MOVING)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=2), world_size=2, rank=rank)
    processes = Processes(rank, 2)
    training = Training(settings, 1, processes)
    own = training.normalizer((3, 500)[rank])
    training.save(path)
    processes.wait()
    again = Training(settings, 1, processes)
    again.restore(path)
    assert again.normalizer.average.item() == own
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this PyTorch has no gloo")
def test_each_process_has_its_own_moving_average(tmp_path: Path) -> None:
    spawn(of_one_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    alone = Training(dataclasses.replace(config("sgd"), loss=MOVING), seed=1)
    alone.restore(tmp_path / "last.safetensors")  # with another number of processes: the mean
    assert alone.normalizer.average.item() == pytest.approx(((90 + 0.3) + (90 + 50)) / 2)


def test_a_moving_average_is_asked_for_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    Training(config("sgd"), seed=1).save(path)
    moving = dataclasses.replace(config("sgd"), loss=MOVING)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        Training(moving, seed=1).restore(path)


def test_a_failed_restore_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    Training(config("sgd"), seed=1).save(path)
    wider = dataclasses.replace(config("sgd"), model=ModelConfig(backbone="resnet18", channels=64, subnet_depth=1))
    with pytest.raises(CheckpointError, match=r"last\.safetensors") as caught:
        Training(wider, seed=1).restore(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        Training(config("sgd", ema=0.9), seed=1).restore(path)  # no average in the file


def dataset(images: int = 3, shift: float = 0.0, label: int = 0, name: str = "a.jpg", ignore: bool = False) -> Dataset:
    builder = DatasetBuilder("toy", Path("/data"), CLASSES)
    for i in range(images):
        builder.add_image(f"{i}{name}", 100, 50)
        builder.add_box((1 + shift, 2, 30, 40), label, f"{i}", ignore=ignore)
    return builder.build()


def info_of(settings: Config, data: Dataset) -> ModelInfo:
    resolved = dataclasses.replace(settings, model=dataclasses.replace(settings.model, channels=32))
    return ModelInfo(CLASSES, resolved, (0, 0, 0), (1, 1, 1), progress={"data": describe_data(data)})


PATH = Path("run/last.safetensors")
BASE = Config(model=ModelConfig(backbone="resnet18"))


def test_the_same_training_is_accepted() -> None:
    check_same_training(PATH, info_of(BASE, dataset()), BASE, dataset())
    free = dataclasses.replace(
        BASE,
        data=DataConfig(workers=3, verify="never"),
        train=TrainConfig(device="cpu", eval_every=2, checkpoint_minutes=1.0, track=("tensorboard",), images_every=3),
    )
    check_same_training(PATH, info_of(BASE, dataset()), free, dataset())


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (dataclasses.replace(BASE, train=TrainConfig(lr=0.02)), "train.lr 0.01 → 0.02"),
        (dataclasses.replace(BASE, train=TrainConfig(epochs=13)), "train.epochs 12 → 13"),
        (dataclasses.replace(BASE, data=DataConfig(size=600)), "data.size 800 → 600"),
        (dataclasses.replace(BASE, model=ModelConfig(backbone="resnet18", channels=64)), "model.channels 32 → 64"),
        (dataclasses.replace(BASE, anchors=AnchorSpec(ratios=(1.0,))), "anchors.ratios"),
    ],
)
def test_other_settings_are_refused(changed: Config, difference: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_same_training(PATH, info_of(BASE, dataset()), changed, dataset())
    assert difference in str(caught.value)
    assert str(PATH) in str(caught.value)
    assert "--out" in str(caught.value)


def test_many_differences_are_cut_short() -> None:
    train = TrainConfig(lr=0.5, epochs=1, batch=2, seed=9, clip=5.0)
    with pytest.raises(CheckpointError, match="and 2 more"):
        check_same_training(PATH, info_of(BASE, dataset()), dataclasses.replace(BASE, train=train), dataset())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (dataset(images=4), "3 images → 4; "),
        (dataset(shift=0.5), "different boxes or labels in the same number of images"),
        (dataset(label=1), "different boxes or labels in the same number of images"),
        (dataset(name="b.jpg"), "other image files"),
        (dataset(ignore=True), " boxes → 0"),
        (dataclasses.replace(dataset(), classes=("cat", "cow")), "classes cat, dog → cat, cow"),
        (dataset().subset(np.array([2, 1, 0])), "other "),
    ],
    ids=["more-images", "moved-box", "label", "file", "ignore", "class", "order"],
)
def test_other_data_is_refused_and_the_difference_named(other: Dataset, difference: str) -> None:
    assert describe_data(other) != describe_data(dataset())
    with pytest.raises(CheckpointError, match=f"data has changed.*{difference}"):
        check_same_training(PATH, info_of(BASE, dataset()), BASE, other)


def test_the_fingerprint_ignores_where_the_data_lies() -> None:
    assert describe_data(dataclasses.replace(dataset(), root=Path("/elsewhere"))) == describe_data(dataset())


def test_progress_has_the_keys_that_earlier_versions_wrote() -> None:
    written = Progress(30, 1.5, 0.25, 1, None, {"images": 3}, {"images": 2}).to_dict()
    assert list(written) == ["step", "epoch", "data", "val", "best_ap", "best_epoch", "finished"]
    assert Progress.from_dict(written) == Progress(30, 1.5, 0.25, 1, None, {"images": 3}, {"images": 2})
    assert Progress().to_dict()["best_ap"] is None  # JSON has no infinity
    assert Progress.from_dict(Progress().to_dict()) == Progress()


def test_progress_of_an_old_checkpoint_lacks_some_values() -> None:
    assert Progress.from_dict({"step": 4, "epoch": 2.0, "best_ap": None}) == Progress(step=4, epoch=2.0)


def test_a_weight_file_without_a_step_is_no_checkpoint(tmp_path: Path) -> None:
    training, path = Training(config("sgd"), seed=1), tmp_path / "last.safetensors"
    save_training(path, training.checkpointed, ModelInfo.of(training.model, CLASSES, training.settings))
    with pytest.raises(CheckpointError, match="lacks the progress of its training"):
        Checkpoint.read(path)
