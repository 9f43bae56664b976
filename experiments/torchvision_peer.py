"""The alternative detectors: torchvision's ``RetinaNet`` class, and the training of both of torchvision's detectors.

Network, anchors, matching, losses and post-processing are torchvision's. Backbone weights, images, resolution and
evaluation are the same as in our runs. Batch norm is frozen, the only augmentation is a horizontal flip, SGD has 100
steps of warm-up and two drops, gradients are clipped at 10, and crowd boxes are dropped. ``torchvision_two_stage.py``
has the Faster R-CNN, which is trained by the same functions.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.loader import load_sample
from retinanet.data.transforms import horizontal_flip, resize
from retinanet.detections import Detections
from retinanet.errors import NonFiniteLossError
from retinanet.evaluation.coco_ap import Metrics, coco_metrics
from retinanet.files import write_atomically
from retinanet.hardware import resolve_device
from retinanet.model.backbone import Backbone
from runs import MAX_SIZE, SIZE

SCALING = DataConfig(size=SIZE, max_size=MAX_SIZE)

BATCH, CHANNELS, WARMUP = 8, 128, 100


class _Features(nn.Module):
    """EfficientNet-Lite0 with torchvision's pyramid. It computes in bf16, as our own runs do."""

    out_channels = CHANNELS

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16
        self.body = Backbone("tf_efficientnet_lite0", pretrained=True)
        last = self.body.channels[-1]
        self.fpn = FeaturePyramidNetwork(list(self.body.channels), CHANNELS, LastLevelP6P7(last, CHANNELS))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.body(images.contiguous(memory_format=torch.channels_last))
            return dict(self.fpn({str(level): feature for level, feature in enumerate(features)}))


class InBf16(nn.Module):
    """``module`` in bf16 with float32 outputs, so that losses and boxes are computed in float32."""

    def __init__(self, module: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.module, self.bf16 = module, bf16

    def forward(self, features: Any) -> Any:
        """The outputs of ``module``; ``features`` is a tensor or a list of tensors."""
        first = features if isinstance(features, Tensor) else features[0]
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.module(features)
        return in_float32(outputs)


def in_float32(outputs: Any) -> Any:
    """``outputs`` with all tensors in float32; ``outputs`` is a tensor, or dictionaries, lists or tuples of tensors."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: in_float32(value) for name, value in outputs.items()}
    return type(outputs)(in_float32(value) for value in outputs)


class _Head(InBf16):
    """torchvision's RetinaNet head in bf16."""

    def compute_loss(self, *arguments: Any) -> dict[str, Tensor]:
        result: dict[str, Tensor] = self.module.compute_loss(*arguments)  # type: ignore[operator]
        return result


def build(classes: int, bf16: bool, scaling: DataConfig = SCALING, limit: int = 100, top_k: int = 1000) -> RetinaNet:
    """torchvision's RetinaNet with our backbone: at most ``limit`` detections, of ``top_k`` candidates per level."""
    sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    model = RetinaNet(
        _Features(bf16),
        classes,
        min_size=scaling.size,
        max_size=scaling.longest,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        detections_per_img=limit,
        topk_candidates=top_k,
    )
    model.head = _Head(model.head, bf16)
    return model


def train_peer(
    model: nn.Module, train_set: Dataset, val_set: Dataset, epochs: int, lr: float, seed: int, folder: Path
) -> Metrics:
    """Train ``model`` and evaluate it on ``val_set``. An interrupted training is resumed from its last epoch.

    ``folder`` gets ``state.pt`` during the training and ``weights.safetensors`` after it.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    weights, state = folder / "weights.safetensors", folder / "state.pt"
    folder.mkdir(parents=True, exist_ok=True)
    if weights.exists():
        model.load_state_dict(load_file(weights))
    else:
        train(model, train_set, epochs, lr, seed, state=state)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(weights, lambda temporary: save_file(tensors, temporary))
        state.unlink(missing_ok=True)
    return coco_metrics(val_set, detect(model, val_set))


def train(
    model: nn.Module,
    train_set: Dataset,
    epochs: int,
    lr: float,
    seed: int,
    scaling: DataConfig = SCALING,
    state: Path | None = None,
) -> None:
    """Train ``model`` in place. After each epoch, everything is saved in the file ``state``, and read from it.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    rng = random.Random(seed)
    train_set = train_set.with_crowds("drop")
    device = resolve_device()
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(train_set) // BATCH)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.1 ** ((step > steps * 2 / 3) + (step > steps * 0.9))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    done = _restore(state, parts, rng) if state and state.exists() else 0
    for epoch in range(done, epochs):
        torch.manual_seed(1000 * seed + epoch)  # of the anchors and proposals that Faster R-CNN samples
        order = rng.sample(range(len(train_set)), len(train_set))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            images, targets = [], []
            for index in order[first : first + BATCH]:
                sample = resize(load_sample(train_set, index), scaling)
                if rng.random() < 0.5:
                    sample = horizontal_flip(sample)
                images.append(sample.image.to(device).float() / 255)
                targets.append({"boxes": sample.boxes.to(device), "labels": sample.labels.to(device)})
            loss = sum(model(images, targets).values())
            if not torch.isfinite(loss):
                raise NonFiniteLossError(f"the loss became NaN or infinite in epoch {epoch + 1} of {epochs}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch + 1} of {epochs}, last loss {loss.item():.4f}", flush=True)
        if state:
            content = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**content, "epoch": epoch + 1, "rng": rng.getstate()}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)


def _restore(state: Path, parts: dict[str, Any], rng: random.Random) -> int:
    content = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(content[name])
    version, numbers, following = content["rng"]
    rng.setstate((version, tuple(numbers), following))
    return int(content["epoch"])


@torch.inference_mode()
def detect(model: nn.Module, dataset: Dataset, scaling: DataConfig = SCALING) -> Detections:
    """Detections of ``model`` in each image of ``dataset``, in pixels of the image."""
    device = next(model.parameters()).device
    model.eval()
    columns: list[list[np.ndarray[Any, Any]]] = [[], [], [], []]
    for index in dataset:
        sample = resize(load_sample(dataset, index), scaling)
        found = {key: value.cpu() for key, value in model([sample.image.to(device).float() / 255])[0].items()}
        height, width = sample.image.shape[-2:]
        factors = torch.tensor([sample.size[0] / width, sample.size[1] / height] * 2)
        columns[0].append(np.full(len(found["scores"]), index, dtype=np.int64))
        columns[1].append((found["boxes"] * factors).numpy())
        columns[2].append(found["scores"].numpy())
        columns[3].append(found["labels"].numpy())
    return Detections(*(np.concatenate(column) for column in columns))
