"""A step in parts, or shared by processes, has the gradient of the whole batch: in float64, to 1e-6."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from retinanet.config import Config, LossConfig, ModelConfig, TrainConfig
from retinanet.data.loader import Batch
from retinanet.data.transforms import normalized_batch
from retinanet.errors import ConfigError
from retinanet.losses import Normalizer
from retinanet.model import RetinaNet
from retinanet.training import step
from retinanet.training.distributed import Processes

SIZES = ((64, 96), (96, 64), (32, 40), (96, 96), (64, 64), (80, 30), (50, 96), (64, 33))


def config(normalizer: str = "batch", accumulate: int = 1, classification: str = "focal") -> Config:
    loss = LossConfig(normalizer=normalizer, classification=classification)  # type: ignore[arg-type]
    model = ModelConfig(backbone="test_efficientnet", pretrained=False, channels=32, subnet_depth=1)
    return Config(model=model, loss=loss, train=TrainConfig(accumulate=accumulate))


def batch(images: int) -> Batch:
    """Images of different sizes, with none to three objects."""
    rng = torch.Generator().manual_seed(1)
    tensors, boxes, labels = [], [], []
    for number, (height, width) in enumerate(SIZES[:images]):
        tensors.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng))
        corner = torch.rand(number % 4, 2, generator=rng) * 10
        boxes.append(torch.cat([corner, corner + 22 + 10 * torch.rand(number % 4, 2, generator=rng)], dim=1))
        labels.append(torch.randint(0, 2, (number % 4,), generator=rng))
    nothing = [torch.zeros(0, 4)] * images
    return Batch(tensors, boxes, labels, nothing, list(range(images)))


def gradient(settings: Config, processes: Processes, images: int) -> tuple[Tensor, Tensor, int]:
    """All gradients in a row, the two losses over all processes, and the foreground anchors."""
    torch.manual_seed(0)
    model = RetinaNet.from_config(settings.model, settings.anchors, 2).double().train()
    network = processes.wrap(model, torch.device("cpu"))
    whole = batch(images)
    own = list(processes.share(range(images)))
    columns = ("images", "boxes", "labels", "ignore", "indices")
    mine = Batch(*([getattr(whole, name)[i] for i in own] for name in columns))
    losses, _ = step.backward(network, mine, settings, Normalizer(settings.loss), torch.float32, processes, images)
    values = processes.sum(torch.stack([losses.classification, losses.box, losses.foreground.double()]))
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return grads, values[:2] / processes.world_size, int(values[2])


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "normalized_batch", lambda *a: normalized_batch(*a).double())


@pytest.mark.parametrize(
    ("normalizer", "accumulate", "classification"),
    [("batch", 3, "varifocal"), ("batch", 99, "focal"), ("image", 3, "focal"), ("moving", 2, "focal")],
)
def test_parts_add_up_to_the_whole(normalizer: str, accumulate: int, classification: str) -> None:
    alone = Processes()
    whole, losses, foreground = gradient(config(normalizer, 1, classification), alone, 8)
    parts, same, count = gradient(config(normalizer, accumulate, classification), alone, 8)
    assert foreground == count > 8
    torch.testing.assert_close(same, losses, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))


# Parts and images, for three processes; with two images one has none.
SHARED = ((2, 8), (1, 2))
NORMALIZERS = ("batch", "image")


def one_process(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=5), world_size=3, rank=rank)
    vars(step)["normalized_batch"] = lambda *a: normalized_batch(*a).double()
    torch.set_num_threads(1)
    processes = Processes(rank, 3)
    found = [gradient(config(n, accumulate), processes, images) for accumulate, images in SHARED for n in NORMALIZERS]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this PyTorch has no gloo")
def test_processes_together_are_one(tmp_path: Path) -> None:
    spawn(one_process, (str(tmp_path),), nprocs=3)  # type: ignore[no-untyped-call]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    cases = [(normalizer, images) for _, images in SHARED for normalizer in NORMALIZERS]
    for (normalizer, images), *found in zip(cases, *results, strict=True):
        whole, losses, foreground = gradient(config(normalizer), Processes(), images)
        for grads, same, total in found:
            assert total == foreground
            torch.testing.assert_close(same, losses, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(grads, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))


def test_a_process_without_images_takes_part_and_adds_nothing() -> None:
    settings = config()
    torch.manual_seed(0)
    model = RetinaNet.from_config(settings.model, settings.anchors, 2).double().train()
    nothing = Batch([], [], [], [], [])
    losses, imbalance = step.backward(
        model, nothing, settings, Normalizer(settings.loss), torch.float32, Processes(), 1, measure_imbalance=True
    )
    assert losses.total == 0
    assert imbalance is not None
    assert not any(part.any() for part in imbalance)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("classification", ["focal", "ohem", "ohem_1_3"])
def test_an_image_alone_asks_no_other_process(monkeypatch: pytest.MonkeyPatch, classification: str) -> None:
    """Where a loss is not finite, each process looks at its own images, of which it may have more than another."""
    settings = config(classification=classification)
    torch.manual_seed(0)
    model = RetinaNet.from_config(settings.model, settings.anchors, 2).double().train()

    def refuse(*_: object) -> None:
        raise AssertionError("asked the others")

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", refuse)
    _, losses = step.forward_alone(model, batch(8)[slice(2, 3)], settings, torch.float32)
    assert losses.classification > 0
    assert losses.foreground > 0


def test_the_imbalance_of_all_parts() -> None:
    found = []
    for accumulate in (1, 3):
        settings = config(accumulate=accumulate)
        torch.manual_seed(0)
        model = RetinaNet.from_config(settings.model, settings.anchors, 2).double().train()
        normalizer = Normalizer(settings.loss)
        _, imbalance = step.backward(
            model, batch(8), settings, normalizer, torch.float32, Processes(), 8, measure_imbalance=True
        )
        assert imbalance is not None
        found.append(torch.stack([*imbalance[:3]]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def test_mined_anchors_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="OHEM"):
        replace(config(classification="ohem"), train=TrainConfig(accumulate=2))
