"""Every setting, once: defaults, command-line flags, YAML keys and what a checkpoint stores are these dataclasses.

The defaults are the paper's values (*Focal Loss for Dense Object Detection*, https://arxiv.org/abs/1708.02002); a
recipe in ``recipes/`` lists its differences from them. No torch is imported here, so that ``--help`` stays fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from retinanet.errors import ConfigError

if TYPE_CHECKING:
    from retinanet.anchors.grid import AnchorGrid

# Of the pyramid's levels P3–P7.
PYRAMID_STRIDES = (8, 16, 32, 64, 128)

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class ModelConfig:
    """The network: a backbone, the feature pyramid P3–P7 and two convolutional subnets."""

    backbone: str = "resnet50"
    """Any timm network that gives features at strides 8, 16 and 32."""
    pretrained: bool = True
    """Start from ImageNet weights."""
    weights: str | None = None
    """Local file with the backbone's ImageNet weights (.safetensors or .pth), for machines without a network."""
    norm: Literal["frozen", "trained"] = "frozen"
    """Batch norm of the backbone: fixed at its ImageNet statistics, or trained."""
    norm_eps: float | None = None
    """Added to the variance in the backbone's batch norm; unset: the backbone's own."""
    freeze_stages: int = 0
    """Number of backbone stages, from the stem, whose weights stay as they are."""
    channels: int | None = None
    """Channels of the pyramid and subnets; unset: 256, or 128 for backbones whose last stage has under 512 channels."""
    subnet_depth: int = 4
    """3×3 convolutions in each subnet before the predicting one."""
    subnet_norm: Literal["none", "group"] = "none"
    """Normalisation after each convolution of the subnets."""
    prior: float = 0.01
    """Probability of an object that every anchor starts with (π); without it, training diverges."""
    p6_from: Literal["c5", "p5"] = "c5"
    """Input of the convolution that makes P6."""
    relu_before_p7: bool = True
    """Apply ReLU to P6 before the convolution that makes P7."""

    def __post_init__(self) -> None:
        _require_finite(self, "model")
        _require(0 < self.prior < 1, f"model.prior is {self.prior}; it is a probability between 0 and 1")
        _require(self.subnet_depth >= 0, f"model.subnet-depth is {self.subnet_depth}; it cannot be negative")
        _require(self.freeze_stages >= 0, f"model.freeze-stages is {self.freeze_stages}; it cannot be negative")
        positive = self.norm_eps is None or self.norm_eps >= 0
        _require(positive, f"model.norm-eps is {self.norm_eps}; it cannot be negative")
        valid = self.channels is None or (self.channels > 0 and self.channels % 32 == 0)
        _require(valid, f"model.channels is {self.channels}; use a positive multiple of 32")


@dataclass(frozen=True)
class AnchorSpec:
    """Anchor boxes of section 4: one size per pyramid level, times scales, times aspect ratios.

    The A boxes of a location come scale by scale, and within a scale ratio by ratio.
    """

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side of the square anchor at each level, in pixels."""
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    """Factors on the side."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width, at constant area."""
    strides: tuple[int, ...] = PYRAMID_STRIDES
    """Pixels between neighbouring anchors at each level."""
    layout: Literal["paper", "torchvision"] = "paper"
    """Real-valued anchors, or torchvision's: sides cut and corners rounded to whole pixels, steps from the image."""

    def __post_init__(self) -> None:
        _require_finite(self, "anchors")
        same = len(self.sizes) == len(self.strides)
        _require(same, f"anchors.sizes has {len(self.sizes)} values and anchors.strides {len(self.strides)}")
        for name in ("sizes", "scales", "ratios", "strides"):
            values = getattr(self, name)
            _require(len(values) > 0 and min(values) > 0, f"anchors.{name} is {values}; give positive numbers")

    @property
    def per_location(self) -> int:
        """Anchors at each position of a feature map (the paper's A)."""
        return len(self.scales) * len(self.ratios)

    def grid(self, image_size: tuple[int, int]) -> AnchorGrid:
        """All anchors of an image of ``(height, width)`` pixels, see :class:`retinanet.anchors.grid.AnchorGrid`."""
        from retinanet.anchors.grid import make_grid

        return make_grid(self, image_size)


@dataclass(frozen=True)
class AssignConfig:
    """Which anchors learn which object."""

    method: Literal["iou", "atss"] = "iou"
    """By fixed IoU thresholds (the paper), or by per-object statistics (ATSS, https://arxiv.org/abs/1912.02424)."""
    foreground: float = 0.5
    """IoU from which an anchor takes the object's class (method iou)."""
    background: float = 0.4
    """IoU below which it is background; between the two it is ignored (method iou)."""
    force_best: bool = False
    """Also match each object with the anchors that overlap it best, however little (method iou)."""
    candidates: int = 9
    """Nearest anchor positions per level and object that ATSS considers."""
    ignore_overlap: float = 0.5
    """Share of an anchor inside an ignore region from which a background anchor is ignored instead."""

    def __post_init__(self) -> None:
        _require_finite(self, "assign")
        _require(self.candidates >= 1, f"assign.candidates is {self.candidates}; it must be at least 1")
        _require(
            0 < self.ignore_overlap <= 1, f"assign.ignore-overlap is {self.ignore_overlap}; it lies between 0 and 1"
        )
        ordered = 0 <= self.background <= self.foreground <= 1 and self.foreground > 0
        _require(ordered, f"assign: need 0 ≤ background ({self.background}) ≤ foreground ({self.foreground}) in (0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """A loss for the classes, one for the boxes, both divided by the number of foreground anchors."""

    classification: Literal[
        "focal", "focal_star", "ce", "alpha_ce", "ohem", "ohem_1_3", "quality_focal", "varifocal"
    ] = "focal"
    """Loss of the class scores; ce: cross entropy, alpha_ce: weighted by α, ohem: of the hardest anchors alone."""
    alpha: float | None = 0.25
    """Weight α of the foreground, 1 − α of the background; under varifocal of the background (0.75 in its paper)."""
    gamma: float = 2.0
    """Focusing parameter γ; 0 is (α-balanced) cross entropy."""
    star_beta: float = 1.0
    """Shift β of the logits in FL* (classification focal_star)."""
    ohem_batch: int = 128
    """Anchors of an image that count, the hardest (ohem); under ohem_1_3 at most a quarter of them is foreground."""
    ohem_nms: float = 0.5
    """IoU above which the easier of two anchors does not count (ohem, ohem_1_3)."""
    box: Literal["smooth_l1", "l1", "giou", "diou", "ciou"] = "smooth_l1"
    """Loss of the four box numbers, or of the decoded box (IoU family)."""
    beta: float = 0.11
    """Where smooth L1 turns from squared to absolute error. The paper does not say; this is its authors' code's."""
    box_weight: float = 1.0
    """Factor on the box loss."""
    normalizer: Literal["batch", "image", "rank", "moving"] = "batch"
    """Foreground anchors to divide by: of the batch on all processes (the paper), of each image, of this process's
    batch, or the moving average of the latter."""

    def __post_init__(self) -> None:
        _require_finite(self, "loss")
        _require(self.alpha is None or 0 <= self.alpha <= 1, f"loss.alpha is {self.alpha}; it lies between 0 and 1")
        _require(0 <= self.gamma < math.inf, f"loss.gamma is {self.gamma}; it cannot be negative")
        _require(0 <= self.box_weight < math.inf, f"loss.box-weight is {self.box_weight}; it cannot be negative")
        _require(0 < self.beta < math.inf, f"loss.beta is {self.beta}; it must be positive")
        starred = self.classification != "focal_star" or self.gamma > 0
        _require(starred, "loss.gamma is 0; FL* divides by it, so it must be positive")
        _require(self.ohem_batch >= 4, f"loss.ohem-batch is {self.ohem_batch}; it must be at least 4")
        _require(0 < self.ohem_nms <= 1, f"loss.ohem-nms is {self.ohem_nms}; it lies between 0 and 1")


@dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they are sized and varied."""

    train: str | None = None
    """Split of DATA, or annotation file, to train on; unset: found by name."""
    val: str | None = None
    """Split of DATA, or annotation file, to evaluate on; unset: found by name, else set aside from train."""
    val_fraction: float = 0.1
    """Share of the training images set aside where there is no val split."""
    size: int = 800
    """Shorter side of the network's input, in pixels."""
    max_size: int | None = None
    """Longest side allowed; unset: size × 1333 / 800."""
    resize: Literal["antialiased", "bilinear"] = "antialiased"
    """Antialiased; or plainly bilinear with sides rounded down, as torchvision's detectors do it."""
    crowd: Literal["ignore", "drop", "object"] = "ignore"
    """Crowd and difficult boxes in training: neither object nor background, background, or ordinary objects."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a random factor on size, one for each training batch."""
    crop: float = 0.0
    """Probability of training on a random crop, 0.5–1 of each side."""
    color: float = 0.0
    """Strength of random brightness, contrast and saturation changes (0: none)."""
    repeat_rare: float = 0.0
    """Images with a class that under this share of all images show are shown more often (0: none)."""
    background: float | None = None
    """Largest share of images without objects in an epoch; others wait for a later one. Unset: all are shown."""
    workers: int | None = None
    """Processes that decode images; unset: half of the cores, at most 8."""
    verify: bool = True
    """Decode every image once before training, so that a broken file is named now and not after hours."""
    skip_broken: bool = False
    """Leave out (and list) images that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        _require_finite(self, "data")
        _require(32 <= self.size <= 8192, f"data.size is {self.size}; use 32 to 8192 pixels")
        long_enough = self.max_size is None or self.max_size >= self.size
        _require(long_enough, f"data.max-size ({self.max_size}) is smaller than data.size ({self.size})")
        _require(0 < self.val_fraction < 1, f"data.val-fraction is {self.val_fraction}; it lies between 0 and 1")
        _require(0 < self.scale[0] <= self.scale[1], f"data.scale is {self.scale}; give 0 < low ≤ high")
        for name in ("flip", "crop"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"data.{name} is {value}; it is a probability between 0 and 1")
        _require(0 <= self.repeat_rare <= 1, f"data.repeat-rare is {self.repeat_rare}; it lies between 0 and 1")
        valid = self.background is None or 0 <= self.background < 1
        _require(valid, f"data.background is {self.background}; it is a share, at least 0 and below 1")
        _require(0 <= self.color < 1, f"data.color is {self.color}; it lies between 0 and 1")
        _require(self.workers is None or self.workers >= 0, f"data.workers is {self.workers}; it cannot be negative")

    @property
    def longest(self) -> int:
        """Longest side allowed, in pixels."""
        return self.max_size or round(self.size * 1333 / 800)


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 12
    """Passes over the training images."""
    batch: int = 16
    """Images per step, on all processes together."""
    accumulate: int = 1
    """Parts that a process works through its images of a step in, to need less memory; the result is the same."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.01
    """Learning rate for 16 images per step; scaled in proportion to the batch."""
    find_lr: bool = False
    """First find the learning rate in 100 steps at rising rates, which are thrown away; then train with it."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the backbone."""
    momentum: float = 0.9
    """Momentum (SGD), or β₁ (AdamW)."""
    weight_decay: float = 1e-4
    """Weight decay; norm weights and biases are exempt under AdamW."""
    warmup: int = 8000
    """Images over which the learning rate rises linearly from a thousandth; at most a tenth of the training."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate ÷ 10 at 2/3 and 8/9 of the training (the paper's 60k and 80k of 90k steps), or a half cosine."""
    clip: float | None = None
    """Largest gradient norm; longer gradients are scaled down. Unset: none are."""
    ema: float | None = None
    """Decay per 16 images of the averaged weights that are evaluated and saved; unset: none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 where the hardware multiplies it. Losses are always fp32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto: a GPU if there is one."""
    seed: int = 0
    """Fixes initial weights, order and augmentation: same machine and seed, same checkpoint."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    patience: int | None = None
    """Stop after this many epochs without a better AP; unset: never."""
    sync_norm: bool = False
    """Trained batch norm over the images of all processes instead of each one's own (GPUs only)."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch; each epoch's end always saves one."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Tools that get the metrics as well as metrics.jsonl does."""
    pictures_every: int = 0
    """Epochs between pictures of predictions on val in RUN/pictures; 0: none."""

    def __post_init__(self) -> None:
        _require_finite(self, "train")
        for name in ("epochs", "batch", "accumulate", "eval_every"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name.replace('_', '-')} is {value}; it must be at least 1")
        for name in ("lr", "backbone_lr", "checkpoint_minutes"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"train.{name.replace('_', '-')} is {value}; it must be positive")
        patient = self.patience is None or self.patience >= 1
        _require(patient, f"train.patience is {self.patience}; it must be at least 1")
        never = self.pictures_every >= 0
        _require(never, f"train.pictures-every is {self.pictures_every}; use 0 (no pictures) or more epochs")
        _require(self.clip is None or self.clip > 0, f"train.clip is {self.clip}; it must be positive")
        _require(self.ema is None or 0 < self.ema < 1, f"train.ema is {self.ema}; it lies between 0 and 1")
        _require(0 <= self.momentum < 1, f"train.momentum is {self.momentum}; it lies between 0 and 1")
        _require(self.weight_decay >= 0, f"train.weight-decay is {self.weight_decay}; it cannot be negative")
        _require(self.warmup >= 0, f"train.warmup is {self.warmup}; it cannot be negative")


@dataclass(frozen=True)
class DecodeConfig:
    """From the network's outputs to detections (section 4, inference)."""

    score: float = 0.05
    """Lowest score considered."""
    top_k: int = 1000
    """Highest-scoring predictions decoded per pyramid level."""
    nms: float = 0.5
    """IoU above which the lower-scored of two boxes of a class is dropped."""
    max_detections: int = 100
    """Detections kept per image."""

    def __post_init__(self) -> None:
        _require_finite(self, "decode")
        _require(0 <= self.score < 1, f"decode.score is {self.score}; it lies between 0 and 1")
        _require(0 < self.nms <= 1, f"decode.nms is {self.nms}; it lies between 0 and 1")
        _require(self.top_k >= 1, f"decode.top-k is {self.top_k}; it must be at least 1")
        _require(self.max_detections >= 1, f"decode.max-detections is {self.max_detections}; it must be at least 1")


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
        _require(strides == PYRAMID_STRIDES, f"anchors.strides is {strides}; the network's are {PYRAMID_STRIDES}")
        mined = self.loss.classification in ("ohem", "ohem_1_3")
        divided = self.train.accumulate > 1 and mined
        _require(not divided, "train.accumulate: the hardest anchors (OHEM) are those of a whole step; use 1")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as YAML or JSON hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """The defaults with ``values`` over them.

        Raises:
            ConfigError: an unknown key (the nearest known one is named) or a value of the wrong type.
        """
        config: Self = _updated(cls(), values, where)
        return config


def load_recipe(name: str) -> Config:
    """The settings of a recipe that comes with the package (``paper``, ``modern``) or of a YAML file.

    A file may start from another recipe: ``recipe: modern``, or ``recipe: other.yaml``, a path seen from its own
    folder. Without that key it starts from the defaults.

    Raises:
        ConfigError: no such recipe or file, its content cannot be used, or recipes that start from each other.
    """
    return _load_recipe(name, Path(), ())


def _load_recipe(name: str, folder: Path, before: tuple[Path, ...]) -> Config:
    """``before``: the files that led here, each starting from the next."""
    import yaml

    bundled = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{name}.yaml" if name in bundled else folder / name
    asked = f"{before[-1]}: " if before else ""
    if not path.is_file():
        raise ConfigError(f"{asked}no recipe {name!r}; there are {', '.join(bundled)}, or give the path of a YAML file")
    if path.resolve() in [other.resolve() for other in before]:
        raise ConfigError(f"{asked}recipe {name!r} starts from this one; end the loop with {' or '.join(bundled)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ConfigError(f"{path}: not read, reading it is not permitted") from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: a recipe is a mapping such as 'train: {{epochs: 12}}'")
    values = dict(values or {})
    where = name if name in bundled else str(path)
    if "recipe" not in values:
        return Config.from_dict(values, where=where)
    base = values.pop("recipe")
    if not isinstance(base, str):
        raise ConfigError(f"{where}: recipe is {base!r}; give the name or the file of the recipe to start from")
    config: Config = _updated(_load_recipe(base, path.parent, (*before, path)), values, where)
    return config


def _updated(default: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key!r} is a group of settings, not {value!r}")
            changes[name] = _updated(current, value, f"{where}: {key}")
        else:
            changes[name] = _coerced(value, hints[name], f"{where}: {key}")
    return dataclasses.replace(default, **changes)


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type ``hint``; JSON and YAML write tuples as lists, and may write 1.0 as 1 or 1e-4 as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerced(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is {value!r}; choose from {', '.join(map(str, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_coerced(v, arguments[0], where) for v in value)
        if len(value) == len(arguments):
            return tuple(_coerced(v, a, where) for v, a in zip(value, arguments, strict=True))
    elif hint is bool and isinstance(value, bool):
        return value
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            if math.isfinite(float(value)):
                return float(value)
        except ValueError:
            pass
    elif (hint is int and isinstance(value, int) and not isinstance(value, bool)) or (
        hint is str and isinstance(value, str)
    ):
        return value
    raise ConfigError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_finite(settings: Any, group: str) -> None:
    """A file could not hold NaN or infinity, and nothing here means anything with them."""
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        or_none = ", or None" if "None" in str(setting.type) else ""
        _require(finite, f"{group}.{setting.name.replace('_', '-')} is {value}; give a finite number{or_none}")
