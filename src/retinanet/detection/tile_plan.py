"""Divide a large image into tiles: their side, their overlap, and their windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, Self, cast

from retinanet.data.window_reader import Window
from retinanet.errors import ConfigError
from retinanet.object_sizes import ObjectSizes

TileSide = int | Literal["auto", "none"]

# Smallest side of a tile in image pixels. Smaller tiles hold too little of the surroundings of an object.
LEAST_TILE = 64

# Smallest scale of a pass. At smaller scales, no image of a realistic size is larger than a few pixels.
_LEAST_SCALE = 0.001

# Longer side of an image in the network's input below which nothing is found; the smallest anchors have this side.
_LEAST_INPUT = 32

# The overlap is as long as all but 1 % of the learnt objects, plus these pixels of the network's input, so that every
# such object has some surroundings in a tile. It is at most the first share of a tile. Without learnt sizes it is the
# second share. With more than 16 pixels, AP does not rise (docs/big-images.md).
_PERCENT, _MARGIN, _MOST_OVERLAP, _USUAL_OVERLAP = 99, 16, 0.5, 0.25


@dataclass(frozen=True)
class TileOptions:
    """How the user wants large images to be divided.

    Attributes:
        tile: side of the tiles in image pixels; ``auto``: the side at which objects appear as large as in the training;
            ``none``: images are not divided, although the model was trained on tiles.
        overlap: pixels that neighboring tiles share. Unset: the length of the largest learnt object, and a margin.
        scales: a pass over the image for each number: 1 with tiles of this side, 0.5 with tiles of twice the side,
            reduced to half the resolution, for objects that are larger than a tile.
    """

    tile: TileSide = "auto"
    overlap: int | None = None
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.tile not in ("auto", "none"):
            object.__setattr__(
                self, "tile", _whole(self.tile, "--tile", "the side of the tiles in pixels, auto or none")
            )
        if self.overlap is not None:
            object.__setattr__(self, "overlap", _whole(self.overlap, "--overlap", "a whole number of pixels"))
        if isinstance(self.scales, str) or not isinstance(self.scales, Iterable):
            raise ConfigError(
                f"--tile-scales is {self.scales!r}; give several numbers, such as 1 0.5 (Python: (1, 0.5))"
            )
        if not all(isinstance(scale, Real) for scale in self.scales):
            raise ConfigError(f"--tile-scales is {self.scales}; give numbers, such as 1 0.5 (Python: (1, 0.5))")
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))
        if isinstance(self.tile, int) and self.tile < LEAST_TILE:
            raise ConfigError(f"--tile is {self.tile}; give at least {LEAST_TILE} pixels, or auto")
        if self.tile == "none" and (self.overlap is not None or self.scales != (1.0,)):
            raise ConfigError("--overlap and --tile-scales are settings of tiles; leave them out, or --tile none")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"--overlap is {self.overlap}; give 0 or more pixels")
        if not self.scales or not all(_LEAST_SCALE <= scale <= 1 for scale in self.scales):
            given = " ".join(f"{scale:g}" for scale in self.scales) or "empty"
            raise ConfigError(f"--tile-scales is {given}; give numbers from {_LEAST_SCALE} to 1, such as 1 0.5")

    @classmethod
    def of(
        cls,
        tile: TileOptions | TileSide | str | None,
        overlap: int | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> TileOptions | None:
        """Return the options that are meant by ``tile``, or ``None`` if nothing is given: the model decides.

        ``overlap`` or ``scales`` without ``tile`` means ``auto``.

        Raises:
            ConfigError: a value is out of range, or there are further settings with ``none``.
        """
        if isinstance(tile, TileOptions):
            return tile
        if tile is None:
            options = cls("auto", overlap, cast(tuple[float, ...], scales))
            return None if overlap is None and options.scales == (1.0,) else options
        if isinstance(tile, str) and tile not in ("auto", "none"):
            if not tile.isdecimal():
                raise ConfigError(f"--tile is {tile!r}; give the side of the tiles in pixels, auto or none")
            tile = int(tile)
        return cls(cast(TileSide, tile), overlap, cast(tuple[float, ...], scales))


@dataclass(frozen=True)
class Tiling:
    """The division of images into tiles.

    Attributes:
        side: side of the tiles at scale 1, in image pixels.
        overlap: pixels that neighboring tiles share at scale 1.
        scales: the passes over the image, in descending order.
        input_side: side of a tile in the network's input.
        note: a sentence for the user about the choice of side and overlap.
    """

    side: int
    overlap: int
    scales: tuple[float, ...]
    input_side: int
    note: str

    @classmethod
    def choose(
        cls, options: TileOptions, objects: ObjectSizes | None, input_side: int, name: str = "the model"
    ) -> Self:
        """Choose side and overlap for a model.

        Args:
            options: the wishes of the user.
            objects: the sizes of the training objects.
            input_side: side of the network's input for square images.
            name: the model, for messages.

        Raises:
            ConfigError: ``auto`` needs sizes that the model lacks, or the overlap is not smaller than the tile.
        """
        if not isinstance(options.tile, int):
            if objects is None:
                raise ConfigError(
                    f"{name} stores no object sizes (it is from an older version), so --tile auto cannot choose; give "
                    "the side of the tiles, such as --tile 640"
                )
            side = max(LEAST_TILE, round(input_side / objects.scale))
            why = "at which objects of the size learnt appear as in the training"
        else:
            side, why = options.tile, "as given"
        overlap, reason = _overlap(options, objects, side, input_side)
        if overlap >= side:
            raise ConfigError(f"--overlap is {overlap}, but tiles are {side} pixels wide; give a smaller overlap")
        note = f"tiles of {side} pixels ({why}), with an overlap of {overlap} ({reason})"
        return cls(side, overlap, tuple(sorted(set(options.scales), reverse=True)), input_side, note)

    def side_at(self, scale: float) -> int:
        """Side of the tiles of a pass, in image pixels."""
        return round(self.side / scale)

    def overlap_at(self, scale: float) -> int:
        """Pixels of the image that neighboring tiles of a pass share."""
        return round(self.overlap / scale)

    def windows(self, size: tuple[int, int], scale: float = 1.0) -> list[Window]:
        """Return the windows of a pass over an image of ``(height, width)``, row by row, all of one size.

        The last row and the last column are shifted inwards. A window is smaller than a tile only if the image is.
        """
        side, overlap = self.side_at(scale), self.overlap_at(scale)
        tops, lefts = (_starts(length, side, overlap) for length in size)
        height, width = (min(side, length) for length in size)
        return [Window(top, left, height, width) for top in tops for left in lefts]

    def input_shape(self, window: Window, scale: float = 1.0) -> tuple[int, int]:
        """Return the ``(height, width)`` that a window of a pass is scaled to for the network."""
        factor = self.input_side / self.side_at(scale)
        return max(1, round(window.height * factor)), max(1, round(window.width * factor))

    def notes(self, largest: tuple[int, int]) -> list[str]:
        """Return sentences for the user about images of up to ``(height, width)`` pixels."""
        notes = [self.note]
        if max(largest) < self.side:
            notes.append(
                f"no image is larger than a tile ({largest[1]}×{largest[0]} pixels at most), so each is detected in "
                "one piece, at the scale of a tile"
            )
        for scale in self.scales:
            pixels = max(largest) * self.input_side / self.side_at(scale)
            if pixels < _LEAST_INPUT:
                notes.append(
                    f"at scale {scale:g}, the largest image ({largest[1]}×{largest[0]} pixels) has a side of "
                    f"{pixels:.2g} pixels in the network's input, too few to find objects; choose smaller tiles or a "
                    "larger scale"
                )
        return notes


def _whole(value: object, flag: str, remedy: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{flag} is {value!r}; give {remedy}")
    return int(value)


def _overlap(options: TileOptions, objects: ObjectSizes | None, side: int, input_side: int) -> tuple[int, str]:
    """Return the overlap in image pixels, and the reason for it."""
    if options.overlap is not None:
        return options.overlap, "as given"
    if objects is None:
        return round(_USUAL_OVERLAP * side), "a quarter, because the model stores no object sizes"
    largest, margin = (round(length * side / input_side) for length in (objects.longer_side(_PERCENT), _MARGIN))
    most = int(_MOST_OVERLAP * side)
    if largest + margin > most:
        return most, f"half a tile; the largest learnt objects have {largest} pixels, see --tile-scales"
    return largest + margin, f"{_PERCENT} % of the learnt objects have up to {largest} pixels, and a margin of {margin}"


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """First pixels of the tiles along an axis of ``length`` pixels."""
    if length <= side:
        return [0]
    step = max(1, side - overlap)
    count = math.ceil((length - overlap) / step)
    return [min(i * step, length - side) for i in range(count)]
