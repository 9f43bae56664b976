"""The sides that ``gpu.py`` compares: this package and torchvision on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from gpu_timing import Bench, Call
from retinanet.anchors import BACKGROUND, AnchorSpec, make_grid
from retinanet.bench.peer import torchvision_retinanet
from retinanet.config import Config
from retinanet.data.loader import Batch
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.hardware import autocast, resolve_precision
from retinanet.losses import Normalizer, focal_loss
from retinanet.model import RetinaNet
from retinanet.model.backbone import load_backbone_weights
from retinanet.recipes import load_recipe
from retinanet.training.distributed import Processes
from retinanet.training.optim import make_optimizer
from retinanet.training.step import backward
from retinanet.zoo.importers import from_torchvision

CLASSES = 80


def random_logits(bench: Bench, images: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits near the prior, ``(images, A, classes)``, and labels with 40 foreground anchors per image."""
    torch.manual_seed(0)
    anchors = len(make_grid(AnchorSpec(), (bench.side, bench.side)).boxes)
    logits = (torch.randn(images, anchors, classes, device=bench.device) - 4.6).to(dtype)
    labels = torch.full((images, anchors), BACKGROUND)
    labels.view(-1)[torch.randperm(labels.numel())[: 40 * images]] = 0
    return logits, labels.to(bench.device)


def loss_sides(logits: Tensor, labels: Tensor, compiled: bool = False) -> dict[str, Call]:
    """Focal loss and gradient of each side; the floor copies the logits."""
    target = torch.empty_like(logits)

    def ours() -> Tensor:
        x = logits.detach().requires_grad_()
        loss = focal_loss(x, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().float()

    def peer(summed: Callable[[Tensor, Tensor], Tensor]) -> Call:
        def call() -> Tensor:
            x = logits.detach().requires_grad_()
            targets = torch.zeros_like(x)
            rows = torch.nonzero(labels >= 0, as_tuple=True)
            targets[(*rows, labels[rows])] = 1.0
            loss = summed(x, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach().float()

        return call

    def focal(x: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = sigmoid_focal_loss(x, targets, reduction="none").sum(dtype=torch.float32)
        return loss

    sides = {"ours": ours, "torchvision": peer(focal), "floor": lambda: target.copy_(logits)}
    if compiled:
        sides["torchvision compiled"] = peer(torch.compile(focal, dynamic=False))
    return sides


def our_step(bench: Bench, compiled: str | None) -> Callable[[Batch], None]:
    """A training step of this package; ``compiled`` is the mode of ``torch.compile``, if any."""
    values = load_recipe("paper").to_dict()
    values["model"] |= {"backbone": "resnet50", "pretrained": False, "freeze_stages": 2}
    config = Config.from_dict(values)
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model, config.anchors, CLASSES)
    # Both sides start with the same backbone: activations and gradients that are 0 would speed one of them up.
    peer = torchvision_retinanet(CLASSES).backbone.body.state_dict()
    load_backbone_weights(model.backbone.body, peer, "torchvision")
    model = model.to(bench.device, memory_format=torch.channels_last).train()
    if compiled:
        model.compile(mode=compiled, dynamic=False)
    optimizer = make_optimizer(model, config.train)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    normalizer, processes = Normalizer(config.loss), Processes()
    dtype = resolve_precision("bf16", bench.device)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(model, batch, config, normalizer, dtype, processes, len(batch.images))
        optimizer.step()

    return step


def their_step(bench: Bench, compiled: bool = False) -> Callable[[Batch], None]:
    """A training step of torchvision's network."""
    peer = their_network(bench, compiled).train()
    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=bench.device.type == "cuda")

    def step(batch: Batch) -> None:
        images = [image.to(bench.device, non_blocking=True).float() / 255 for image in batch.images]
        targets = [
            {"boxes": boxes.to(bench.device), "labels": labels.to(bench.device)}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        with autocast(bench.device, torch.bfloat16):
            found = peer(images, targets)
        sum(found.values()).backward()
        optimizer.step()

    return step


@torch.inference_mode()
def their_detections(peer: Any, images: list[Tensor], bench: Bench) -> list[dict[str, Tensor]]:
    """Detections of torchvision's network ``peer`` in uint8 images, on the CPU."""
    there = [image.to(bench.device, non_blocking=True).float() / 255 for image in images]
    with autocast(bench.device, torch.bfloat16):
        found = peer(there)
    return [{name: value.cpu() for name, value in each.items()} for each in found]


def our_detector(bench: Bench, mode: str | None = None) -> PyTorchDetector:
    """The network and the weights of :func:`their_network`; ``mode`` is that of ``torch.compile``, if any."""
    detector = from_torchvision(torchvision_retinanet(CLASSES).state_dict(), "bf16", str(bench.device))
    if mode:
        detector.network.compile(mode=mode, dynamic=False)
    return detector


def their_network(bench: Bench, compiled: bool = False) -> Any:
    """torchvision's RetinaNet; the stem, the first stage and batch norm are frozen as with published weights."""
    peer = torchvision_retinanet(CLASSES)
    peer.transform.min_size, peer.transform.max_size = (bench.side,), bench.side
    peer = peer.to(bench.device, memory_format=torch.channels_last)
    if compiled:
        peer.backbone.compile(dynamic=False)
        peer.head.compile(dynamic=False)
    return peer


def random_batch(images: int, bench: Bench) -> Batch:
    """Images with 12 boxes each, in pinned memory, so that the copy to the GPU does not block the CPU."""
    generator = torch.Generator().manual_seed(images)
    shape = (3, bench.side, bench.side)
    pixels = [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for _ in range(images)]
    if bench.device.type == "cuda":
        pixels = [image.pin_memory() for image in pixels]
    boxes = [random_boxes(12, bench.side, seed) for seed in range(images)]
    labels = [torch.randint(CLASSES, (12,), generator=generator) for _ in range(images)]
    return Batch(pixels, boxes, labels, [torch.zeros(0, 4)] * images, list(range(images)))


def random_boxes(count: int, side: int, seed: int) -> Tensor:
    """Boxes with sides of 10–200 px in an image of 800 px, uniform on a log scale."""
    generator = torch.Generator().manual_seed(1000 * count + seed)
    corner = torch.rand(count, 2, generator=generator) * 0.9 * side
    size = side / 80 * torch.exp(3 * torch.rand(count, 2, generator=generator))
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=1)
