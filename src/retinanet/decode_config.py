"""The settings of post-processing, with limits on detections and candidates that follow the data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Literal

from retinanet.schema import require, require_at_least, require_finite

# The limits for data with few objects. COCO's protocol counts 100 detections, and the paper decodes the 1000 highest
# scores of a level.
LEAST_DETECTIONS, LEAST_CANDIDATES = 100, 1000

# An unset ``max_detections`` is this multiple of the objects in the densest training image.
_ROOM = 2

# An unset ``top_k`` is this multiple of ``max_detections``. Several anchors detect the same object, so a level needs
# more candidates before NMS than the image has objects.
_CANDIDATES = 10

# The lowest score of a detection. auto: the threshold that the weights store.
LowestScore = float | Literal["auto"]

# Largest limit that tensors can be compared with.
_MOST = 2**31 - 1


def require_lowest_score(score: object) -> None:
    """Raise ConfigError unless ``score`` is a :data:`LowestScore`."""
    valid = score == "auto" or (isinstance(score, int | float) and 0 <= score < 1)
    require(valid, f"--score is {score!r}; give a number, at least 0 and below 1, or auto")


@dataclass(frozen=True)
class DecodeConfig:
    """Conversion of the network's outputs to detections (section 4 of the paper, inference)."""

    score: float = 0.05
    """Lowest score of a detection. Evaluation needs a low value, because AP counts detections of every score."""
    top_k: int | None = None
    """Number of highest-scoring predictions per pyramid level that are kept before NMS. Unset: 10 × max-detections, but
    at least 1000, the paper's number."""
    nms: float = 0.5
    """IoU above which the box with the lower score is dropped, per class. Raise it for objects that overlap much."""
    max_detections: int | None = None
    """Largest number of detections per image. Unset: chosen when the training starts, as twice the number of objects in
    the densest training image, but at least 100. The weights store the number."""
    clip: Literal["image", "after_nms", "padded"] = "image"
    """How boxes are clipped: to the image before NMS; to the image after NMS, so that NMS compares whole boxes
    (detectron2); or to the padded input before NMS, so that boxes may reach beyond the image (odtk)."""
    size_limit: Literal["above", "both", "none"] = "above"
    """Limits of a box's sides relative to its anchor: at most 62.5 times as long; also at least 1/62.5 as long
    (mmdetection); or no limit (odtk)."""

    def __post_init__(self) -> None:
        require_finite(self, "decode")
        require(0 <= self.score < 1, f"decode.score is {self.score}; it must be at least 0 and below 1")
        require(0 < self.nms <= 1, f"decode.nms is {self.nms}; it must lie between 0 and 1")
        require_at_least(1, self, "decode", "top_k", "max_detections")

    def resolved(self, objects: int = 0) -> ResolvedDecodeConfig:
        """Return the settings with both limits set, for images with up to ``objects`` objects.

        An unset ``max_detections`` becomes twice ``objects``, rounded up to one significant digit, and at least 100. An
        unset ``top_k`` becomes 10 × ``max_detections``, and at least 1000.
        """
        limit = min(_MOST, self.max_detections or max(LEAST_DETECTIONS, _rounded_up(_ROOM * objects)))
        top_k = min(_MOST, self.top_k or max(LEAST_CANDIDATES, _CANDIDATES * limit))
        own = {field.name: getattr(self, field.name) for field in fields(DecodeConfig)}
        return ResolvedDecodeConfig(**{**own, "top_k": top_k, "max_detections": limit})

    def at_most(self, max_detections: int | None) -> ResolvedDecodeConfig:
        """Return the settings with both limits set, and with another ``max_detections`` unless it is ``None``.

        ``top_k`` is raised if it would be too low for ``max_detections``.

        Raises:
            ConfigError: ``max_detections`` is not a whole number of at least 1.
        """
        own = self.resolved()
        if max_detections is None:
            return own
        whole = isinstance(max_detections, Integral) and not isinstance(max_detections, bool)
        require(
            whole and max_detections >= 1,
            f"max-detections is {max_detections}; it must be a whole number of at least 1",
        )
        fitting = DecodeConfig(max_detections=int(max_detections)).resolved()
        return replace(own, top_k=max(own.top_k, fitting.top_k), max_detections=fitting.max_detections)


@dataclass(frozen=True)
class ResolvedDecodeConfig(DecodeConfig):
    """:class:`DecodeConfig` with both limits set; see :meth:`DecodeConfig.resolved`."""

    top_k: int = LEAST_CANDIDATES
    max_detections: int = LEAST_DETECTIONS


def leaves_room(max_detections: int, objects: int) -> bool:
    """Whether a limit is as far above the objects of the densest image as a training would choose it.

    Most images of an ordinary dataset reach such a limit, too, with detections of low scores; it hides no objects.
    """
    return max_detections >= _ROOM * objects


def limit_note(limited: int, images: int, config: ResolvedDecodeConfig, per: Literal["image", "tile"] = "image") -> str:
    """Say that ``limited`` of ``images`` images reached a limit of ``config``, and which option raises it.

    ``per`` says what the limits are for.
    """
    return (
        f"{limited} of {images} images reached a limit ({config.max_detections} detections per {per}, {config.top_k} "
        f"candidates per pyramid level, score ≥ {config.score:g}), so detections with lower scores may be missing; "
        "--max-detections (Python: max_detections) raises both limits"
    )


def nonfinite_note(nonfinite: int, images: int) -> str:
    """Say that predictions of ``nonfinite`` of ``images`` images were left out because they are not finite."""
    return (
        f"predictions of the network are NaN or infinite on {nonfinite} of {images} images and left out; check that "
        "its training did not diverge, or use precision fp32"
    )


def _rounded_up(number: int) -> int:
    """Round up to one significant digit."""
    unit: int = 10 ** (len(str(number)) - 1)
    return -(-number // unit) * unit
