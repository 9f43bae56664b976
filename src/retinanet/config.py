"""All settings: these dataclasses define defaults, command-line flags, YAML keys and the settings in a checkpoint.

The defaults are the paper's values (*Focal Loss for Dense Object Detection*, https://arxiv.org/abs/1708.02002). A
recipe in ``recipes/`` lists its differences from them; :mod:`retinanet.recipes` reads it. No torch is imported here, so
that ``--help`` stays fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from retinanet.decode_config import DecodeConfig as DecodeConfig
from retinanet.read_options import ReadOptions
from retinanet.schema import only_with, require, require_at_least, require_finite, require_positive, updated

# Strides of the pyramid levels P3–P7.
PYRAMID_STRIDES = (8, 16, 32, 64, 128)

# An unset ``data.background`` with ``data.tile``. Most tiles of a large image have no objects, and a tile with objects
# is mostly background, too. So tiles without objects take only a fifth of an epoch; others are shown in other epochs.
_TILE_BACKGROUND = 0.2


@dataclass(frozen=True)
class ModelConfig:
    """The network: a backbone, the feature pyramid P3–P7 and two convolutional subnets."""

    backbone: str = "resnet50"
    """Name of a timm network with features at strides 8, 16 and 32. A larger network is slower and more accurate."""
    pretrained: bool = True
    """Start from ImageNet weights. Turn it off only with a lot of data and a long training."""
    weights: str | None = None
    """Local file with the backbone's ImageNet weights (.safetensors or .pth), for machines without a network."""
    init: str | None = None
    """Detector to start from (fine-tuning): a weight file, or the name of a bundled model. The network, the anchors and
    the way images are resized are taken from it; classes that it does not know start anew."""
    norm: Literal["frozen", "trained"] = "frozen"
    """Batch norm of the backbone: fixed at its ImageNet statistics, or trained, which needs large batches."""
    norm_eps: float | None = None
    """Epsilon that is added to the variance in the backbone's batch norm. Unset: the epsilon of the timm network."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a ResNet's bottleneck that has the stride. 1x1: the first one, as in ResNets of Caffe and MSRA.
    Change it only to match the weights of another program."""
    stage_channels: tuple[int, ...] | None = None
    """Channels inside the blocks of a ResNet's four stages, for narrower or wider networks. Unset: those of the timm
    network, 64 128 256 512."""
    freeze_stages: int = 0
    """Number of backbone stages, counted from the stem, that are not trained. Raise it for little data."""
    channels: int | None = None
    """Channels of the pyramid and the subnets. Unset: 256, or 128 if the backbone's last stage has fewer than 512."""
    subnet_depth: int = 4
    """Number of 3×3 convolutions in each subnet before the convolution that predicts. Fewer are faster."""
    subnet_norm: Literal["none", "group"] = "none"
    """Normalization after each convolution of the subnets. Group norm helps training at small batches."""
    prior: float = 0.01
    """Object probability π that every anchor predicts before training. Larger values can cause divergence."""
    p6_from: Literal["c5", "p5"] = "c5"
    """Input of the convolution that computes P6. Change it only to match the weights of another program."""
    relu_before_p7: bool = True
    """Apply ReLU to P6 before the convolution that computes P7. Change it only to match other weights."""

    def __post_init__(self) -> None:
        require_finite(self, "model")
        require(0 < self.prior < 1, f"model.prior is {self.prior}; it must be a probability between 0 and 1")
        require_at_least(0, self, "model", "subnet_depth", "freeze_stages", "norm_eps")
        valid = self.channels is None or (self.channels > 0 and self.channels % 32 == 0)
        require(valid, f"model.channels is {self.channels}; use a positive multiple of 32")
        stages = self.stage_channels
        valid = stages is None or (len(stages) == 4 and min(stages) > 0)
        require(valid, f"model.stage-channels is {stages}; give four positive numbers")


@dataclass(frozen=True)
class AnchorSpec:
    """Anchor boxes (section 4 of the paper): one size per pyramid level, times scales, times aspect ratios.

    The A anchors of a location are ordered scale by scale, and within a scale ratio by ratio.
    """

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side of the square anchor at each level, in pixels of the network's input. 'retinanet data anchors' fits them."""
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    """Factors by which each size is multiplied."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Aspect ratios, height divided by width, at constant area. Add ratios for long or tall objects."""
    strides: tuple[int, ...] = PYRAMID_STRIDES
    """Distance between neighboring anchors at each level, in pixels. The network allows only these values."""
    layout: Literal["paper", "torchvision", "inclusive"] = "paper"
    """Real-valued anchors (paper); torchvision's, which are rounded to whole pixels; or real-valued anchors whose last
    row and column of pixels count as inside (odtk), so that they are one pixel larger. Set by 'retinanet convert'."""
    offset: float = 0.0
    """Center of the first anchor of each level, in strides: 0 is the corner of the image, 0.5 the middle of a cell."""

    def __post_init__(self) -> None:
        require_finite(self, "anchors")
        same = len(self.sizes) == len(self.strides)
        require(same, f"anchors.sizes has {len(self.sizes)} values and anchors.strides {len(self.strides)}")
        require(0 <= self.offset <= 1, f"anchors.offset is {self.offset}; it must lie between 0 and 1")
        fits = self.layout != "torchvision" or self.offset == 0
        require(fits, f"anchors.offset is {self.offset}; torchvision's layout has an offset of 0")
        for name in ("sizes", "scales", "ratios", "strides"):
            values = getattr(self, name)
            require(len(values) > 0 and min(values) > 0, f"anchors.{name} is {values}; give positive numbers")

    @property
    def per_location(self) -> int:
        """Anchors at each position of a feature map (the paper's A)."""
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True)
class AssignConfig:
    """How anchors are matched with objects."""

    method: Literal["iou", "atss"] = "iou"
    """Match by fixed IoU thresholds (the paper), or by statistics of each object (ATSS, arXiv:1912.02424)."""
    foreground: float = field(default=0.5, metadata=only_with("assign.method", "iou"))
    """Lowest IoU at which an anchor is positive (method iou). Lower it if small objects get too few anchors."""
    background: float = field(default=0.4, metadata=only_with("assign.method", "iou"))
    """IoU below which an anchor is negative (method iou). Between the two thresholds it is ignored."""
    force_best: bool = field(default=False, metadata=only_with("assign.method", "iou"))
    """Also match each object with the anchors of highest IoU, even below the threshold (method iou)."""
    candidates: int = field(default=9, metadata=only_with("assign.method", "atss"))
    """Nearest anchor positions per level and object that ATSS considers (method atss)."""
    ignore_overlap: float = 0.5
    """A negative anchor is ignored if at least this fraction of its area lies inside an ignore region."""

    def __post_init__(self) -> None:
        require_finite(self, "assign")
        require_at_least(1, self, "assign", "candidates")
        valid = 0 < self.ignore_overlap <= 1
        require(valid, f"assign.ignore-overlap is {self.ignore_overlap}; it must lie between 0 and 1")
        ordered = 0 <= self.background <= self.foreground <= 1 and self.foreground > 0
        require(ordered, f"assign: need 0 ≤ background ({self.background}) ≤ foreground ({self.foreground}) in (0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """The classification loss and the box loss, both divided by the number of positive anchors."""

    classification: Literal[
        "focal", "focal_star", "ce", "alpha_ce", "ohem", "ohem_1_3", "quality_focal", "varifocal"
    ] = "focal"
    """Loss of the class scores. ce: cross entropy. alpha_ce: cross entropy weighted by α. ohem, ohem_1_3: cross entropy
    of the hardest anchors only."""
    alpha: float | None = field(
        default=0.25, metadata=only_with("loss.classification", "focal", "focal_star", "alpha_ce", "varifocal")
    )
    """Weight α of positive anchors; negative anchors get 1 − α. varifocal: weight of negative anchors, usually 0.75."""
    gamma: float = field(
        default=2.0, metadata=only_with("loss.classification", "focal", "focal_star", "quality_focal", "varifocal")
    )
    """Focusing parameter γ. Larger values lower the weight of easy anchors; 0 is (α-balanced) cross entropy."""
    star_beta: float = field(default=1.0, metadata=only_with("loss.classification", "focal_star"))
    """Shift β of the logits in the paper's FL* (classification focal_star)."""
    ohem_batch: int = field(default=128, metadata=only_with("loss.classification", "ohem", "ohem_1_3"))
    """Number of hardest anchors per image in the loss (ohem). With ohem_1_3, at most a quarter of them is positive."""
    ohem_nms: float = field(default=0.5, metadata=only_with("loss.classification", "ohem", "ohem_1_3"))
    """IoU above which the easier of two anchors is left out of the loss (ohem, ohem_1_3)."""
    box: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = "smooth_l1"
    """Loss of the box deltas (smooth_l1, l1) or of the decoded box (the IoU losses)."""
    beta: float = field(default=0.11, metadata=only_with("loss.box", "smooth_l1"))
    """Absolute error at which smooth L1 turns from quadratic to linear. The default is from the authors' code."""
    box_weight: float = 1.0
    """Factor on the box loss. Raise it if objects are found but their boxes are imprecise."""
    normalizer: Literal["batch", "image", "rank", "moving"] = "batch"
    """Number of positive anchors that divides the loss: per batch (the paper), image or rank, or a moving average."""

    def __post_init__(self) -> None:
        require_finite(self, "loss")
        require(self.alpha is None or 0 <= self.alpha <= 1, f"loss.alpha is {self.alpha}; it must lie between 0 and 1")
        require_at_least(0, self, "loss", "gamma", "box_weight")
        require_positive(self, "loss", "beta")
        starred = self.classification != "focal_star" or self.gamma > 0
        require(starred, "loss.gamma is 0; FL* divides by it, so it must be positive")
        require_at_least(4, self, "loss", "ohem_batch")
        require(0 < self.ohem_nms <= 1, f"loss.ohem-nms is {self.ohem_nms}; it must lie between 0 and 1")


@dataclass(frozen=True)
class DataConfig(ReadOptions):
    """The images, their size and their augmentation."""

    train: str | None = None
    """Split of DATA, or annotation file, to train on. Unset: found by name, such as train."""
    val: str | None = None
    """Split of DATA, or annotation file, to evaluate on. Unset: found by name, else a subset of train."""
    val_fraction: float = 0.1
    """Fraction of the training images that is set aside for evaluation if there is no val split."""
    size: int = 800
    """Shorter side of the network's input, in pixels. Larger inputs help with small objects and take more time."""
    max_size: int | None = None
    """Upper limit of the longer side, in pixels. Unset: size × 1333 / 800. Raise it for panoramas."""
    tile: int | None = None
    """Side of the square tiles that images are cut into, in pixels of the image. A tile is scaled to data.size. Set it
    if objects are small against their images. Unset: whole images."""
    visible: float = 0.5
    """Smallest visible fraction of an object that is cut by a tile or a random crop. An object with a smaller fraction
    is an ignore region."""
    resize: Literal["antialiased", "bilinear", "pillow", "pillow_floor", "opencv"] = "antialiased"
    """Resizing method. bilinear: without antialiasing and with sides rounded down, as torchvision's detectors do.
    pillow: by Pillow, as detectron2 does. pillow_floor: by Pillow with sides rounded down, as odtk does. opencv:
    without antialiasing, in OpenCV's integer arithmetic, as mmdetection does."""
    pad_to: int = 32
    """Sides of the network's input are padded to multiples of this number of pixels, itself a multiple of 32."""
    crowd: Literal["ignore", "drop", "object"] = "ignore"
    """Crowd and difficult boxes in training: ignored by the loss, dropped (background), or ordinary objects."""
    flip: float = 0.5
    """Probability of a horizontal flip. Set it to 0 if left and right differ, as in text."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random factor that multiplies data.size, drawn once per batch."""
    crop: float = 0.0
    """Probability of a random crop, whose sides are 0.5 to 1 times the sides of the image."""
    color: float = 0.0
    """Strength of random changes in brightness, contrast and saturation, from 0 (none) to below 1."""
    repeat_rare: float = 0.0
    """Oversample images that contain a class present in fewer than this fraction of the images. 0 disables it."""
    background: float | None = None
    """Images (with data.tile: tiles) without objects are at most this fraction of an epoch. Those that are left out are
    shown in other epochs. Unset: no limit, or 0.2 with data.tile."""
    workers: int | None = None
    """Processes that decode images. Unset: half of the cores, at most 8. Raise it if the training waits for images."""
    pixel_range: tuple[float, float] | None = None
    """Values that become black and white in images with more than 8 bits. Unset: from the training images. It is stored
    with the weights."""
    verify: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"former_values": {True: "auto", False: "never"}}
    )
    """Decode every image before training, so that a broken file is reported at once and not after hours. auto: without
    files that are unchanged since an earlier check. always: also those. never: check nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "data")
        require(32 <= self.size <= 8192, f"data.size is {self.size}; use 32 to 8192 pixels")
        long_enough = self.max_size is None or self.max_size >= self.size
        require(long_enough, f"data.max-size ({self.max_size}) is smaller than data.size ({self.size})")
        require(self.tile is None or self.tile >= 64, f"data.tile is {self.tile}; use at least 64 pixels")
        require(0 < self.visible <= 1, f"data.visible is {self.visible}; it must be a fraction, above 0 and at most 1")
        padded = self.pad_to >= 32 and self.pad_to % 32 == 0
        require(padded, f"data.pad-to is {self.pad_to}; use a multiple of 32, at least 32")
        require(0 < self.val_fraction < 1, f"data.val-fraction is {self.val_fraction}; it must lie between 0 and 1")
        limits = self.pixel_range
        require(limits is None or limits[0] < limits[1], f"data.pixel-range is {limits}; give low < high")
        require(0 < self.scale[0] <= self.scale[1], f"data.scale is {self.scale}; give 0 < low ≤ high")
        for name in ("flip", "crop"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data.{name} is {value}; it must be a probability between 0 and 1")
        require(0 <= self.repeat_rare <= 1, f"data.repeat-rare is {self.repeat_rare}; it must lie between 0 and 1")
        valid = self.background is None or 0 <= self.background < 1
        require(valid, f"data.background is {self.background}; it must be a fraction, at least 0 and below 1")
        require(0 <= self.color < 1, f"data.color is {self.color}; it must be at least 0 and below 1")
        require_at_least(0, self, "data", "workers")

    @property
    def longest(self) -> int:
        """Upper limit of the longer side, in pixels."""
        return self.max_size or round(self.size * 1333 / 800)

    @property
    def background_limit(self) -> float | None:
        """Largest fraction of an epoch that has no objects; ``None`` without a limit."""
        return _TILE_BACKGROUND if self.background is None and self.tile is not None else self.background


@dataclass(frozen=True)
class TrainConfig:
    """The optimization."""

    epochs: int = 12
    """Passes over the training images. Raise it if AP still rises at the end."""
    batch: int = 16
    """Images per step, on all ranks together."""
    accumulate: int = 1
    """Number of slices that each rank divides a step into. Raise it if memory is short; the result is the same."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum (the paper), or AdamW."""
    lr: float = 0.01
    """Learning rate for 16 images per step, scaled in proportion to the batch. Lower it if the loss diverges."""
    find_lr: bool = False
    """First train 100 steps at rising learning rates, choose a rate, and train from the start with it."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the backbone. Below 1 keeps more of its pre-trained weights."""
    momentum: float = 0.9
    """Momentum of SGD, or β₁ of AdamW."""
    weight_decay: float = 1e-4
    """Weight decay. AdamW exempts norm weights and biases."""
    bias_lr: float = 1.0
    """Factor on the learning rate of biases. 2 matches the authors' code, together with bias-decay off."""
    bias_decay: bool = field(default=True, metadata=only_with("train.optimizer", "sgd"))
    """Apply weight decay to biases, too (sgd). Off: only weights decay, as in the authors' code."""
    warmup: int = 8000
    """Number of images over which the learning rate rises linearly. It is limited to a tenth of the training."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate divided by 10 at 2/3 and at 8/9 of the training (the paper), or half a cosine to 0."""
    clip: float | None = None
    """Largest norm of the gradient; a larger gradient is scaled down. Unset: no limit. Try 10 if the loss diverges."""
    ema: float | None = None
    """Decay of the moving average of the weights (EMA), per 16 images. The EMA is evaluated and saved. Unset: none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network. auto: bf16 if the hardware has instructions for it. Losses are always fp32."""
    device: str = "auto"
    """Device that the network runs on, such as cpu or cuda:1. auto: a GPU if there is one."""
    seed: int = 0
    """Seed of initial weights, image order and augmentation. Equal seeds give equal checkpoints on one machine."""
    eval_every: int = 1
    """Epochs between evaluations. The last epoch is always evaluated."""
    patience: int | None = None
    """Stop if AP has not improved for this many epochs. Unset: never."""
    sync_norm: bool = field(default=False, metadata=only_with("model.norm", "trained"))
    """Compute trained batch norm over the images of all ranks, not of each rank separately (GPUs only)."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch. A checkpoint is also saved at the end of each epoch."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Experiment trackers that get the metrics in addition to metrics.jsonl."""
    images_every: int = field(default=0, metadata={"formerly": "pictures_every"})
    """Epochs between drawings of predictions on four val images, saved in RUN/images. 0: never."""

    def __post_init__(self) -> None:
        require_finite(self, "train")
        require_at_least(1, self, "train", "epochs", "batch", "accumulate", "eval_every", "patience")
        require_positive(self, "train", "lr", "backbone_lr", "bias_lr", "checkpoint_minutes")
        drawn = self.images_every >= 0
        require(drawn, f"train.images-every is {self.images_every}; use 0 (no drawings) or a number of epochs")
        require(self.clip is None or self.clip > 0, f"train.clip is {self.clip}; it must be positive")
        require(self.ema is None or 0 < self.ema < 1, f"train.ema is {self.ema}; it must lie between 0 and 1")
        require(0 <= self.momentum < 1, f"train.momentum is {self.momentum}; it must be at least 0 and below 1")
        require_at_least(0, self, "train", "weight_decay", "warmup")


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    assign: AssignConfig = field(default_factory=AssignConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        strides = self.anchors.strides
        require(strides == PYRAMID_STRIDES, f"anchors.strides is {strides}; the network's are {PYRAMID_STRIDES}")
        mined = self.loss.classification in ("ohem", "ohem_1_3")
        divided = self.train.accumulate > 1 and mined
        require(not divided, "train.accumulate: OHEM chooses the hardest anchors of a whole step; use 1")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as YAML or JSON hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Return the defaults with ``values`` replaced.

        Raises:
            ConfigError: an unknown key (the message names the most similar key) or a value of an invalid type.
        """
        return updated(cls(), values, where)
