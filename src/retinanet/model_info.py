"""The description of a model: classes, settings, normalization of the input, and metrics. It is stored with a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from retinanet.config import Config
from retinanet.object_sizes import ObjectSizes

if TYPE_CHECKING:
    from retinanet.model import RetinaNet


@dataclass(frozen=True)
class ModelInfo:
    """The description of a model in its weight file or exported file.

    Attributes:
        classes: names, in the order of the network's outputs.
        config: the settings of its training, with the number of channels filled in.
        mean: channel means that are subtracted from the input.
        std: channel standard deviations that the input is divided by.
        metrics: metrics of the last evaluation, e.g. ``{"AP": 0.51, …}``.
        progress: progress of the training that wrote the file, see :class:`retinanet.training.checkpoint.Progress`.
        objects: sizes of the training objects; ``None`` in files of older versions.
    """

    classes: tuple[str, ...]
    config: Config
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    objects: ObjectSizes | None = None

    @classmethod
    def of(cls, model: RetinaNet, classes: tuple[str, ...], config: Config, **rest: Any) -> Self:
        """Return the description of ``model``."""
        resolved = replace(config, model=replace(config.model, channels=model.channels))
        return cls(classes, resolved, model.mean, model.std, **rest)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, as JSON holds them."""
        return {
            "classes": self.classes,
            "config": self.config.to_dict(),
            "mean": self.mean,
            "std": self.std,
            "metrics": self.metrics,
            "progress": self.progress,
            "objects": self.objects.to_dict() if self.objects else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return the description that :meth:`to_dict` converted. Exported files have no ``progress``.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, ConfigError: a value is missing or invalid.
        """
        return cls(
            classes=_class_names(values["classes"]),
            config=Config.from_dict(values["config"], where=where),
            mean=_of_channels(values["mean"]),
            std=_of_channels(values["std"], above=0.0),
            metrics=dict(values["metrics"]),
            progress=dict(values.get("progress", {})),
            objects=ObjectSizes.from_dict(values.get("objects")),
        )


def _class_names(values: Any) -> tuple[str, ...]:
    names = () if isinstance(values, str) else tuple(values)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError("its class names are missing or not unique")
    return names


def _of_channels(values: Any, above: float = -math.inf) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(math.isfinite(number) and number > above for number in numbers):
        raise ValueError(f"{list(numbers)} is not a mean or standard deviation of three channels")
    return numbers
