"""The metadata of an exported file: the description of the model, and what the file contains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from retinanet._version import __version__
from retinanet.data.image_sizes import PAD_TO
from retinanet.errors import CheckpointError, ConfigError
from retinanet.model_info import ModelInfo

# The key of the metadata in an exported file, and the format of its text. The number rises when older versions of the
# package can no longer read the file.
METADATA_KEY = "retinanet"
_FORMAT, _NUMBER = "retinanet-export", 1

_DAMAGED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    ConfigError,
)

Kind = Literal["network", "detector"]
ExportPrecision = Literal["fp32", "int8"]
Arithmetic = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class ExportedModel:
    """What an exported file contains.

    Attributes:
        info: classes and settings of the model.
        kind: ``network``: the file computes logits and deltas. ``detector``: it also contains the post-processing.
        precision: arithmetic that the file was made for.
        size: ``(H, W)`` of the input; ``None``: any multiples of 32.
        batch: number of images of the input; ``None``: any.
        verified: result of comparing the file with the weights; ``None``: it was not verified.
        version: version of the package that wrote the file.
    """

    info: ModelInfo
    kind: Kind = "network"
    precision: ExportPrecision = "fp32"
    size: tuple[int, int] | None = None
    batch: int | None = None
    verified: dict[str, Any] | None = None
    version: str = __version__

    @property
    def input_type(self) -> type[np.uint8] | type[np.float32]:
        """Type of the pixels of the input."""
        return np.float32 if self.info.config.data.resize == "bilinear" else np.uint8

    @property
    def bf16_accepted(self) -> bool:
        """Whether the verification has accepted bf16, or has not measured it."""
        found = (self.verified or {}).get("bf16")
        return not isinstance(found, dict) or found.get("passed") is not False

    def to_json(self) -> str:
        """Convert to the text that the file stores."""
        description = self.info.to_dict()
        del description["progress"]  # of the training; a file that is shipped does not need it
        values = {
            "format": f"{_FORMAT}/{_NUMBER}",
            "version": self.version,
            "kind": self.kind,
            **description,
            "precision": self.precision,
            "size": self.size,
            "batch": self.batch,
            "verified": self.verified,
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> ExportedModel:
        """Read the text that a file stores; ``None`` if it stores none.

        Raises:
            CheckpointError: another program or a newer version wrote the file, or the text is damaged.
        """
        if text is None:
            raise CheckpointError(
                f"{path}: written by another program, its metadata has no key {METADATA_KEY!r}; "
                "write the file with 'retinanet export'"
            )
        try:
            values = json.loads(text)
            name, _, number = values["format"].partition("/")
            if name != _FORMAT:
                raise ValueError(f"its format is {values['format']!r}")
            newer = int(number) > _NUMBER
        except _DAMAGED as error:
            raise CheckpointError(f"{path}: its metadata cannot be read ({error}); export the model again") from error
        if newer:
            raise CheckpointError(
                f"{path}: a newer version of this package ({values.get('version', 'unknown')}; this is {__version__}) "
                "wrote the file; update the package, or export the model again with this version"
            )
        try:
            return cls(
                info=ModelInfo.from_dict(values, where=str(path)),
                kind=_one_of(values["kind"], Kind),
                precision=_one_of(values["precision"], ExportPrecision),
                size=None if values["size"] is None else _input_size(values["size"]),
                batch=None if values["batch"] is None else _whole(values["batch"]),
                verified=None if values["verified"] is None else dict(values["verified"]),
                version=str(values["version"]),
            )
        except _DAMAGED as error:
            raise CheckpointError(f"{path}: its metadata cannot be read ({error}); export the model again") from error


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a number of images or pixels")
    return value


def _input_size(value: Any) -> tuple[int, int]:
    height, width = (_whole(side) for side in value)
    if height % PAD_TO or width % PAD_TO:
        raise ValueError(f"the sides of its input, {height} and {width}, are not multiples of {PAD_TO}")
    return height, width


def _one_of(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is not one of {', '.join(get_args(choices))}")
    return value


class ExportedNetwork(Protocol):
    """An exported file that a runtime has loaded.

    Attributes:
        path: the file.
        model: its metadata.
        arithmetic: ``fp32``, ``bf16`` or ``int8``: the lowest precision that the runtime computes with.
    """

    path: Path
    model: ExportedModel
    arithmetic: Arithmetic

    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
        """Compute the outputs of the file, by name.

        Args:
            images: RGB ``(B, 3, H, W)`` of the type ``model.input_type``, 0–255; each image is at the top left.
            sizes: int64 ``(B, 2)``, height and width of each image inside the batch.
        """


# Sides of a tensor; ``None``: any length.
Shape = Sequence[int | None]


def require_graph(model: ExportedModel, path: Path, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> None:
    """Check that the inputs and outputs of a file are those that its metadata describes.

    Raises:
        CheckpointError: they are not.
    """
    height, width = model.size or (None, None)
    expected: dict[str, Shape] = {"images": (model.batch, 3, height, width), "sizes": (model.batch, 2)}
    classes, decode = len(model.info.classes), model.info.config.decode.resolved()
    if model.kind == "detector":
        limit = decode.max_detections
        found = {"boxes": (model.batch, limit, 4), "scores": (model.batch, limit), "labels": (model.batch, limit)}
        expected |= {**found, "counts": (model.batch,), "limits": (model.batch,), "nonfinite": (model.batch,)}
    else:
        for level in range(len(model.info.config.anchors.strides)):
            expected[f"logits_{level}"] = (model.batch, None, classes)
            expected[f"deltas_{level}"] = (model.batch, None, 4)
    shapes = {**inputs, **outputs}
    for name, shape in expected.items():
        own = shapes.get(name)
        if own is None or len(own) != len(shape) or any(a and b and a != b for a, b in zip(own, shape, strict=True)):
            raise CheckpointError(f"{path}: {name!r} is not as its metadata says; export the model again")


def require_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        CheckpointError: with the reason.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the exported file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; write it with 'retinanet export'")
