"""Advice to train on tiles, from the sizes of objects in the images and at the network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retinanet.config import Config, DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.inspection.anchor_coverage import positives
from retinanet.inspection.tile_advice import advised_tile, tile_findings
from retinanet.recipes import load_recipe
from retinanet.training.outlook import outlook


def objects_of(side: float, image: int = 5000, count: int = 40) -> Dataset:
    """An image with square objects."""
    builder = DatasetBuilder("aerial", Path(), ("car",))
    builder.add_image("0.tif", image, image)
    corners = np.random.default_rng(0).uniform(0, image - side, (count, 2))
    for x, y in corners.tolist():
        builder.add_box((x, y, x + side, y + side), 0, "0")
    return builder.build()


@pytest.mark.parametrize(
    ("side", "image", "size", "tile"),
    [
        (20, 5000, 512, 512),  # 2 pixels at the input: tiles at the resolution of the image
        (64, 5000, 512, 1024),  # 6.6 pixels at the input: tiles at half of it
        (20, 5000, 320, 320),
        (10, 5000, 512, None),  # small in the image, too
        (100, 5000, 512, None),  # 10 pixels at the input
        (20, 1000, 512, None),
    ],
)
def test_tiles_are_advised_for_objects_that_shrink_too_much(side: int, image: int, size: int, tile: int | None) -> None:
    assert advised_tile(objects_of(side, image), DataConfig(size=size)) == tile


def test_a_finding_names_the_flag() -> None:
    [found] = tile_findings("train", objects_of(20), DataConfig(size=512))
    assert (found.code, found.severity) == ("small-objects", "warning")
    assert found.what == "the median object has 20 pixels, but 2.0 at data.size 512"
    assert found.effect.endswith("--data.tile 512 trains on tiles, in which they have 20")
    assert not list(tile_findings("train", objects_of(20), DataConfig(size=512, tile=512)))


def test_the_start_of_a_training_names_the_flag() -> None:
    data = objects_of(20)
    assert "--data.tile 512" in outlook(data, data, load_recipe("modern"))
    tiled = Config.from_dict({"data": {"size": 512, "tile": 640}})
    said = outlook(data, data, tiled)
    assert "--data.tile" not in said
    assert "at 512 px in tiles of 640 px of the images" in said


def test_anchors_are_assigned_in_tiles() -> None:
    whole, tiled = (Config.from_dict({"data": {"size": 256, "tile": tile}}) for tile in (None, 256))
    data = objects_of(40, image=1000)
    assert (positives(data, whole) == 0).all()
    assert (positives(data, tiled) > 0).mean() > 0.9
