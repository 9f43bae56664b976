"""The tiles of a training, and the decoded images that they are read from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from retinanet.data.loader import TileSource
from retinanet.data.tile_pixels import (
    TilePixels,
    decode_images,
    decoded_bytes,
    decoded_file,
    images_to_decode,
    require_room,
)
from retinanet.data.training_tiles import TrainingTiles, training_tiles
from retinanet.errors import DataError
from retinanet.files import not_written
from retinanet.progress import progress_bar
from retinanet.training.job import Job

# Folder in that of the run. It exists only while the training runs, or after the training was killed.
_FOLDER = ".decoded"


@contextmanager
def with_tiles(job: Job) -> Iterator[Job]:
    """Add the tiles to a job if ``config.data.tile`` is set, and keep decoded images while the block runs.

    Raises:
        DataError: no object fits into a tile.
        RetinaNetError: the decoded images do not fit onto the disk.
    """
    folder = job.out / _FOLDER
    if job.processes.is_main:
        shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    if job.config.data.tile is None:
        yield job
        return
    tiles = training_tiles(job.train_set, job.config.data)
    job = replace(job, tiles=TileSource(tiles, TilePixels(job.train_set, folder)))
    _describe(job, tiles)
    job.processes.wait()  # until the folder of a killed run is removed
    with _decoded(job, folder):
        job.processes.wait()
        yield job


@contextmanager
def _decoded(job: Job, folder: Path) -> Iterator[None]:
    """Decode the images of this rank, and remove them after the block."""
    images = images_to_decode(job.train_set, job.config.data.tile or 0)
    own = job.processes.share(images)
    try:
        if images:
            _make(folder)
            needed = decoded_bytes(job.train_set, images)
            if job.processes.is_main:
                require_room(folder, needed)
                job.console.print(
                    f"{len(images)} images are decoded to {folder} ({needed / 1e9:.1f} GB, removed at the end), "
                    "because their formats cannot be read by window; tiled TIFF files need no copy",
                    highlight=False,
                )
        with progress_bar(job.console, "decoding images", len(own)) as bar:
            decode_images(job.train_set, own, folder, bar.advance)
        yield
    finally:
        for image in own:
            with suppress(OSError):
                decoded_file(folder, image).unlink(missing_ok=True)
        with suppress(OSError):
            os.rmdir(folder)  # the last rank succeeds


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error


def _describe(job: Job, tiles: TrainingTiles) -> None:
    """Print how the images are divided, and warn about objects that are larger than a tile."""
    side, objects = tiles.config.tile, int(tiles.has_objects.sum())
    if not objects:
        raise DataError(
            f"{job.train_set.name}: every object is larger than a tile of {side} pixels; set a larger --data.tile, or "
            "leave it out"
        )
    shown = job.training_order(epochs=1).images_per_epoch
    job.console.print(
        f"{len(job.train_set):,} images are cut into {len(tiles):,} tiles of {side}×{side} pixels, which overlap by "
        f"{tiles.overlap}; {objects:,} have objects; an epoch shows {shown:,}, each at a random place",
        highlight=False,
    )
    if tiles.too_large:
        job.warn(
            f"{tiles.too_large:,} of {int((~job.train_set.ignore).sum()):,} objects are not learned, because a tile of "
            f"{side} pixels shows less than {tiles.config.visible:.0%} of them; set a larger --data.tile"
        )
