from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.images import read_image
from retinanet.data.thumbnails import read_thumbnail
from retinanet.errors import DataError
from retinanet.inspection.duplicates import Pair, difference_hash, find_pairs, scan


def noise(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def dataset(folder: Path, names: list[str]) -> Dataset:
    builder = DatasetBuilder("images", folder, ["cat"])
    for name in names:
        builder.add_image(name, 120, 90)
    return builder.build()


def pairs(*datasets: Dataset) -> list[Pair]:
    return find_pairs(datasets, scan(datasets))


def test_different_images_are_no_pair(tmp_path: Path) -> None:
    names = [f"{seed}.jpg" for seed in range(30)]
    for seed, name in enumerate(names):
        noise(seed).save(tmp_path / name)
    assert pairs(dataset(tmp_path, names)) == []


@pytest.mark.parametrize("change", ["bytes", "pixels", "quality", "smaller", "brighter"])
def test_copies(tmp_path: Path, change: str) -> None:
    noise(0).save(tmp_path / "a.png")
    copy, exact, name = noise(0), change in ("bytes", "pixels"), "b.png"
    if change == "bytes":
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    elif change == "pixels":
        copy.save(tmp_path / name, compress_level=1)
        assert (tmp_path / name).read_bytes() != (tmp_path / "a.png").read_bytes()
    elif change == "quality":
        copy.save(tmp_path / (name := "b.jpg"), quality=50)
    elif change == "smaller":
        copy.resize((60, 45)).save(tmp_path / name)
    else:
        copy.point(lambda v: min(255, v + 15)).save(tmp_path / name)
    noise(1).save(tmp_path / "c.png")
    assert pairs(dataset(tmp_path, ["a.png", "c.png", name])) == [Pair(0, 2, exact)]


def test_each_image_is_paired_once_with_each_dataset(tmp_path: Path) -> None:
    for name in "abcd":
        noise(0).save(tmp_path / f"{name}.png")
    train, val = dataset(tmp_path, ["a.png", "b.png"]), dataset(tmp_path, ["c.png", "d.png"])
    assert pairs(train, val) == [Pair(0, 1, True), Pair(0, 2, True), Pair(0, 3, True), Pair(2, 3, True)]


def test_images_without_contrast_are_not_nearly_the_same(tmp_path: Path) -> None:
    for level in range(3):
        Image.new("RGB", (120, 90), (100 + level,) * 3).save(tmp_path / f"{level}.png")
    assert pairs(dataset(tmp_path, ["0.png", "1.png", "2.png"])) == []


def test_broken_files_are_said_and_not_compared(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "whole.jpg", quality=95)
    content = (tmp_path / "whole.jpg").read_bytes()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "folder.jpg").mkdir()
    data = dataset(tmp_path, ["a.jpg", "b.jpg", "missing.jpg", "folder.jpg", "whole.jpg"])
    counted: list[int] = []
    found = scan([data], counted.append)
    assert [each.error is None for each in found] == [False, False, False, False, True]
    assert sum(counted) == 5
    assert "truncated" in str(found[0].error)
    assert "missing.jpg: no such image file" in str(found[2].error)
    assert find_pairs([data], found) == []


def test_hash_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (8, 9), dtype=np.uint8)
    bits = "".join(str(int(image[y, x] < image[y, x + 1])) for y in range(8) for x in range(8))
    assert difference_hash(image) == int(bits, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnail_is_the_image_that_training_sees(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    ImageOps.grayscale(noise(3)).convert("RGB").save(tmp_path / "a.jpg", exif=exif, quality=95)
    thumbnail, size, contrast = read_thumbnail(tmp_path / "a.jpg", 16)
    whole = read_image(tmp_path / "a.jpg")
    assert size == (whole.shape[1], whole.shape[0])
    small = np.asarray(Image.fromarray(whole).convert("L").resize((16, 16), Image.Resampling.BOX))
    assert np.abs(thumbnail.astype(int) - small).max() <= 8
    assert contrast > 100


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "F", "1"])
def test_thumbnails_of_every_kind_of_image(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "F": "tiff"}.get(mode, "png")
    grey = noise(3).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else noise(3).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    thumbnail, size, _ = read_thumbnail(tmp_path / f"a.{suffix}", 16)
    assert size == (120, 90)
    whole = Image.fromarray(read_image(tmp_path / f"a.{suffix}")).convert("L")
    small = np.asarray(whole.resize((16, 16), Image.Resampling.BOX)).astype(int)
    assert np.corrcoef(thumbnail.ravel(), small.ravel())[0, 1] > 0.99


def test_thumbnail_of_a_file_that_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image"):
        read_thumbnail(tmp_path / "a.jpg", 16)
