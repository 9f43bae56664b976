"""RetinaNets of torchvision with random weights, and their comparison with imported detectors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import (
    RetinaNet,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.anchors.grid import make_grid
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detections import Detections
from retinanet.model import Outputs
from retinanet.postprocess import postprocess
from retinanet.zoo.importers import from_torchvision

# What the tests shrink 800 and 1333 to; torchvision takes the numbers as arguments.
SIZE, LONGEST = 192, 320


def smooth_image(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random image: noise enlarged 16 times."""
    noise = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)[0]
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


def resnet_retinanet(
    name: str, classes: int, norm: type[nn.Module] = nn.BatchNorm2d, p6_channels: int = 256, **options: Any
) -> RetinaNet:
    """As torchvision's builder makes it, on another ResNet, with another batch norm or with P6 from C5."""
    extra = LastLevelP6P7(p6_channels, 256)
    backbone = resnet_fpn_backbone(
        backbone_name=name, weights=None, norm_layer=norm, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    return RetinaNet(backbone, classes, **options)


@torch.no_grad()
def randomize(model: RetinaNet, seed: int, middle: float = -4.5, spread: float = 1.5) -> RetinaNet:
    """Weights that keep activations of order one, and spread the logits around ``middle``: much is found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batch = torch.stack([smooth_image(128, 128, seed=100 + i) / 51 - 2.5 for i in range(2)])
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=0.2)
            elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.uniform_(layer.weight, 0.3, 0.9)
                nn.init.normal_(layer.bias, std=0.3)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of one batch
        model.backbone.train()
        model.backbone(batch)
        model.eval()
        for norm in norms:
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None
            assert var is not None
            mean += 0.2 * var.sqrt() * torch.randn(len(mean))
            var *= torch.empty(len(var)).uniform_(0.7, 1.4)
        heads = model.head.classification_head, model.head.regression_head
        fpn = model.backbone.fpn
        makers = *(block[0] for block in fpn.layer_blocks), fpn.extra_blocks.p6, fpn.extra_blocks.p7
        for level, layer in enumerate(makers):  # without this, the coarse levels would find nothing
            layer.weight /= list(model.backbone(batch).values())[level].std()
        features = list(model.backbone(batch).values())
        for layer, outputs, centre, deviation in (
            (heads[0].cls_logits, heads[0], middle, spread),
            (heads[1].bbox_reg, heads[1], 0.0, 0.3),
        ):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight *= deviation / outputs(features).std()
            nn.init.normal_(layer.bias, mean=centre, std=deviation / 3)
            # centred, so that no class and no side is preferred by more than its bias
            layer.bias -= outputs(features).mean() - centre
    return model


class Seen(NamedTuple):
    """What one detector makes of an image."""

    batch: Tensor
    logits: list[Tensor]
    deltas: list[Tensor]
    found: Detections


def see_theirs(model: RetinaNet, image: Tensor) -> Seen:
    seen: dict[str, Any] = {}

    def transformed(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["batch"] = output[0].tensors

    def predicted(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> None:
        sizes = [9 * feature.shape[-2] * feature.shape[-1] for feature in inputs[0]]
        seen.update({name: list(torch.split(values, sizes, dim=1)) for name, values in output.items()})

    hooks = model.transform.register_forward_hook(transformed), model.head.register_forward_hook(predicted)
    with torch.inference_mode():
        (result,) = model([image / 255])
    for hook in hooks:
        hook.remove()
    found = Detections.of_one_image(*(result[name].numpy() for name in ("boxes", "scores", "labels")))
    return Seen(seen["batch"], seen["cls_logits"], seen["bbox_regression"], found)


def as_array(image: Tensor) -> npt.NDArray[np.uint8]:
    """``(3, h, w)`` → ``(h, w, 3)``."""
    return image.permute(1, 2, 0).numpy()


def see_ours(detector: PyTorchDetector, image: Tensor) -> Seen:
    seen: dict[str, Any] = {}

    def predicted(module: nn.Module, inputs: tuple[Tensor], output: Outputs) -> None:
        seen.update(batch=inputs[0], outputs=output)

    hook = detector.network.register_forward_hook(predicted)
    (found,) = detector.detect([as_array(image)])
    hook.remove()
    return Seen(seen["batch"], seen["outputs"].logits, seen["outputs"].deltas, found)


def unpaired(ours: Detections, theirs: Detections) -> int:
    """Detections of either side without one of the same class, box and score on the other."""
    distance = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=2)
    same = distance < 0.05
    same &= np.abs(ours.scores[:, None] - theirs.scores[None]) < 1e-4
    same &= ours.labels[:, None] == theirs.labels[None]
    assert same.sum(axis=0).max() <= 1  # duplicates are suppressed: a partner is the only one
    return int((~same.any(axis=0)).sum() + (~same.any(axis=1)).sum())


def assert_same_outputs(ours: Seen, theirs: Seen) -> None:
    assert ours.batch.shape == theirs.batch.shape
    torch.testing.assert_close(ours.batch, theirs.batch, rtol=0, atol=1e-5)
    for our_levels, their_levels in ((ours.logits, theirs.logits), (ours.deltas, theirs.deltas)):
        assert [level.shape for level in our_levels] == [level.shape for level in their_levels]
        for our, their in zip(our_levels, their_levels, strict=True):
            assert (our - their).abs().max() <= 1e-4 * their.abs().max()


def assert_same_detections(ours: Detections, theirs: Detections, allowed: int = 0) -> None:
    # torchvision also returns boxes that clipping leaves without area; here, worse boxes take their places
    filled = np.flatnonzero((theirs.boxes[:, 2:] > theirs.boxes[:, :2]).all(axis=1))
    assert len(filled) <= len(ours) <= len(theirs)
    theirs = theirs.take(filled)
    ours = ours.take(slice(len(theirs)))
    assert (np.diff(ours.scores) <= 0).all()
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)  # rank by rank
    assert unpaired(ours, theirs) <= allowed


def assert_varied(found: Detections, least: int = 100) -> None:
    """Otherwise equality says little."""
    assert len(found.scores) > least
    assert found.scores.max() > 0.5
    assert found.scores.max() < 0.9995
    assert found.scores.max() - found.scores.min() > 0.3
    assert len(set(found.scores.tolist())) > 0.9 * len(found.scores)
    assert len(set(found.labels.tolist())) >= 3
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert sides.max() > 4 * sides.min()


def assert_parity(detector: PyTorchDetector, model: RetinaNet, image: Tensor, least: int = 100) -> None:
    ours, theirs = see_ours(detector, image), see_theirs(model, image)
    assert_varied(theirs.found, least)
    assert_same_outputs(ours, theirs)
    # From the same outputs, the same detections without exception …
    config = detector.info.config
    (height, width), padded = scaled_size(model, image), tuple(theirs.batch.shape[-2:])
    grid = make_grid(config.anchors, (padded[0], padded[1]))
    (found,) = postprocess(Outputs(theirs.logits, theirs.deltas), grid, [(height, width)], config.decode)
    assert_same_detections(found.rescaled((height, width), image.shape[-2:]), theirs.found)
    # … and from ours, whose last bits differ, all but the few that hang on an IoU of 0.5 ± 1e-6.
    assert_same_detections(ours.found, theirs.found, allowed=len(theirs.found.scores) // 50)


def scaled_size(model: RetinaNet, image: Tensor) -> tuple[int, int]:
    images, _ = model.transform([image / 255])
    height, width = images.image_sizes[0]
    return height, width


def imported(model: RetinaNet, size: int | None = SIZE, longest: int = LONGEST, **options: Any) -> PyTorchDetector:
    """The import of ``model`` and, unless ``size`` is None, the scaling that ``model`` was given."""
    detector = from_torchvision(model.state_dict(), "fp32", "cpu", **options)
    if size is not None:
        config = detector.info.config
        data = replace(config.data, size=size, max_size=longest)
        detector.info = replace(detector.info, config=replace(config, data=data))
    return detector


def light_retinanet() -> RetinaNet:
    """A RetinaNet of 7 classes on a ResNet-18, for what does not depend on the backbone."""
    return randomize(resnet_retinanet("resnet18", 7, min_size=SIZE, max_size=LONGEST), seed=3, middle=-10.0, spread=2.2)
