"""Which image the annotations refer to: stored or turned by EXIF, of the file's size or of another."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from retinanet.data.box_meaning import FRACTIONS, Meaning
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.exif import Header, turned_boxes
from retinanet.data.image_frames import Images, place
from retinanet.data.images import read_image
from retinanet.data.verify import verify_images
from retinanet.read_options import ReadOptions

Floats = npt.NDArray[np.float64]
STORED = (120, 80)
IMAGES, BOXES = 6, 4
COLOR = 200


def boxes_in(size: tuple[int, int], seed: int = 0) -> Floats:
    """Whole boxes of each image ``(IMAGES, BOXES, 4)``, one at the far corner; the images show them."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(10, 25, (IMAGES, BOXES, 2))
    first = (rng.random((IMAGES, BOXES, 2)) * (np.array(size) - sides)).astype(int)
    first[:, 0] = np.array(size) - sides[:, 0]
    return np.concatenate([first, first + sides], axis=2).astype(np.float64)


def write_images(
    folder: Path, stored_boxes: Floats, orientations: list[int], size: tuple[int, int] = STORED, bright: int = COLOR
) -> None:
    for i, orientation in enumerate(orientations):
        pixels = np.zeros((size[1], size[0]), np.uint8)
        for x1, y1, x2, y2 in stored_boxes[i].astype(int).tolist():
            pixels[y1:y2, x1:x2] = bright
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(folder / f"{i}.png", exif=exif)


def read(
    folder: Path,
    boxes: Floats,
    given: list[tuple[int, int]],
    measured: bool = False,
    options: ReadOptions | None = None,
    meaning: Meaning | None = None,
) -> Dataset:
    meaning = meaning or Meaning()
    builder = DatasetBuilder("toy", folder, ("cat",), None, False, options or ReadOptions(), meaning)
    for i, size in enumerate(given):
        builder.size_is_measured = measured
        builder.add_image(f"{i}.png", *size)
        for x1, y1, x2, y2 in boxes[i].tolist():
            scale = size if meaning.frame == FRACTIONS else (1, 1)
            builder.add_box((x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]), 0, f"{i}")
    return builder.build()


def turned(boxes: Floats, orientations: list[int], size: tuple[int, int] = STORED) -> Floats:
    return np.stack([turned_boxes(b, o, size) for b, o in zip(boxes, orientations, strict=True)])


def assert_boxes_lie_on_objects(data: Dataset) -> None:
    """Every box holds only bright pixels, in the image as training and detection read it."""
    for i in data:
        pixels = read_image(data.path(i))[:, :, 0]
        assert tuple(data.sizes[i].tolist()) == (pixels.shape[1], pixels.shape[0])
        for x1, y1, x2, y2 in data.boxes[data.rows(i)].round().astype(int).tolist():
            assert pixels[y1:y2, x1:x2].min() == COLOR
    assert verify_images(data)[1] == []


def codes(data: Dataset) -> list[str]:
    return [problem.code for problem in data.problems if problem.kind.sign]


def message(data: Dataset) -> str:
    [problem] = [p for p in data.problems if p.code == "exif-orientation"]
    return problem.message


ALL = [1, 6, 8, 3, 6, 5]
SIDEWAYS = [6, 8, 5, 7, 6, 8]
FLIPPED = [2, 3, 4, 2, 3, 4]


def upright_size(orientation: int, size: tuple[int, int] = STORED) -> tuple[int, int]:
    return Header(size, orientation).upright


@pytest.mark.parametrize("orientations", [ALL, SIDEWAYS])
def test_sizes_of_the_stored_pixels_turn_boxes_with_the_images(tmp_path: Path, orientations: list[int]) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, orientations)
    data = read(tmp_path, stored, [STORED] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert len(data.boxes) == IMAGES * BOXES
    assert "refer to the stored pixels" in message(data)


@pytest.mark.parametrize("orientations", [ALL, SIDEWAYS])
def test_sizes_of_the_turned_images_keep_boxes(tmp_path: Path, orientations: list[int]) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, orientations)
    data = read(tmp_path, turned(stored, orientations), [upright_size(o) for o in orientations])
    assert_boxes_lie_on_objects(data)
    assert "refer to the turned image" in message(data)


@pytest.mark.parametrize("orientations", [ALL, SIDEWAYS])
@pytest.mark.parametrize("frame", ["stored", "turned"])
def test_without_sizes_the_boxes_tell(tmp_path: Path, orientations: list[int], frame: str) -> None:
    """A table has no image sizes; its reader measures the turned images."""
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, orientations)
    boxes = stored if frame == "stored" else turned(stored, orientations)
    data = read(tmp_path, boxes, [upright_size(o) for o in orientations], measured=True)
    assert_boxes_lie_on_objects(data)
    assert "some boxes fit into no other" in message(data)


def test_boxes_of_the_turned_image_beside_sizes_of_the_stored_pixels(tmp_path: Path) -> None:
    """Label Studio writes both (HumanSignal/label-studio #6608)."""
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, SIDEWAYS)
    data = read(tmp_path, turned(stored, SIDEWAYS), [STORED] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert len(data.boxes) == IMAGES * BOXES
    assert "refer to the turned image, because some boxes fit into no other" in message(data)


@pytest.mark.parametrize("orientations", [FLIPPED, SIDEWAYS])
def test_where_nothing_tells_the_turned_image_is_the_default_and_the_flag_is_named(
    tmp_path: Path, orientations: list[int]
) -> None:
    square = (80, 80)
    stored = boxes_in(square)
    write_images(tmp_path, stored, orientations, square)
    data = read(tmp_path, turned(stored, orientations, square), [square] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert "although nothing shows it; if not, --data.exif ignore" in message(data)
    ignored = read(tmp_path, stored, [square] * IMAGES, options=ReadOptions(exif="ignore"))
    assert_boxes_lie_on_objects(ignored)


@pytest.mark.parametrize("meaning", [Meaning(), Meaning("cxcywh", FRACTIONS)])
@pytest.mark.parametrize("measured", [True, False])
def test_the_flag_decides_for_all_images(tmp_path: Path, meaning: Meaning, measured: bool) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, ALL)
    sizes = [upright_size(o) for o in ALL]

    def given(boxes: Floats, of: list[tuple[int, int]]) -> Floats:
        return boxes / np.array([[(*size, *size)] for size in of]) if meaning.frame == FRACTIONS else boxes

    upright = read(tmp_path, given(turned(stored, ALL), sizes), sizes, measured, ReadOptions(exif="apply"), meaning)
    assert_boxes_lie_on_objects(upright)
    listed = sizes if measured else [STORED] * IMAGES
    flat = read(tmp_path, given(stored, [STORED] * IMAGES), listed, measured, ReadOptions(exif="ignore"), meaning)
    assert_boxes_lie_on_objects(flat)


def test_square_images_follow_the_others(tmp_path: Path) -> None:
    stored = boxes_in((80, 80))
    write_images(tmp_path, stored, SIDEWAYS, (80, 80))
    for i in range(3):
        pixels = np.zeros((80, 120), np.uint8)
        pixels[:, :80] = np.asarray(Image.open(tmp_path / f"{i}.png"))
        exif = Image.Exif()
        exif[0x0112] = SIDEWAYS[i]
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=exif)
    data = read(tmp_path, stored, [(120, 80)] * 3 + [(80, 80)] * 3)
    assert_boxes_lie_on_objects(data)


def test_two_tools_in_one_dataset(tmp_path: Path) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, SIDEWAYS)
    boxes = np.concatenate([stored[:3], turned(stored, SIDEWAYS)[3:]])
    data = read(tmp_path, boxes, [STORED] * 3 + [upright_size(6)] * 3)
    assert_boxes_lie_on_objects(data)
    assert "3 to the turned image and 3 to the stored pixels" in message(data)


def test_upright_images_need_no_decision(tmp_path: Path) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, [1] * IMAGES)
    for options in (ReadOptions(), ReadOptions(exif="ignore")):
        assert codes(read(tmp_path, stored, [STORED] * IMAGES, options=options)) == []


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_boxes_are_scaled_to_image_files_of_another_size(tmp_path: Path, factor: float) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, [1] * IMAGES)
    size = (round(STORED[0] * factor), round(STORED[1] * factor))
    data = read(tmp_path, stored * factor, [size] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert codes(data) == ["other-image-size"]
    np.testing.assert_allclose(data.areas, (stored[..., 2:] - stored[..., :2]).prod(axis=-1).ravel(), rtol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_wrong_sizes_beside_boxes_of_the_files(tmp_path: Path, factor: float) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, [1] * IMAGES)
    size = (round(STORED[0] * factor), round(STORED[1] * factor))
    data = read(tmp_path, stored, [size] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert codes(data) == ["wrong-image-size"]


def test_swapped_sizes(tmp_path: Path) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, [1] * IMAGES)
    data = read(tmp_path, stored, [STORED[::-1]] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert codes(data) == ["wrong-image-size"]


def test_resized_and_turned(tmp_path: Path) -> None:
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, SIDEWAYS)
    data = read(tmp_path, stored * 2, [(240, 160)] * IMAGES)
    assert_boxes_lie_on_objects(data)
    assert sorted(codes(data)) == ["exif-orientation", "other-image-size"]


def test_a_few_other_sizes_are_no_sign(tmp_path: Path) -> None:
    """The check of the image files reports them."""
    stored = boxes_in(STORED)
    write_images(tmp_path, stored, [1] * IMAGES)
    data = read(tmp_path, stored, [(240, 160)] + [STORED] * (IMAGES - 1))
    assert codes(data) == []
    assert data.sizes[0].tolist() == [240, 160]
    assert "0.png: the image has 120×80 pixels, its annotations say 240×160" in verify_images(data)[1][0]


def test_the_time_grows_with_the_number_of_boxes() -> None:
    """Not with its product with the number of images, which would take minutes."""
    count, boxes = 60_000, 10
    stored = np.tile(np.array([STORED], dtype=np.int64), (count, 1))
    orientations = np.arange(count, dtype=np.int64) % 8 + 1
    images = Images(stored, np.zeros(count, dtype=np.bool_), stored, orientations, ["a.jpg"] * count)
    image = np.repeat(np.arange(count), boxes)
    corners = np.tile(np.array([[10.0, 20.0, 40.0, 50.0]]), (len(image), 1))
    builder = DatasetBuilder("toy", Path(), ("cat",))
    start = time.process_time()
    placed = place(corners, False, image, images, ReadOptions(exif="ignore"), builder)
    assert time.process_time() - start < 10
    for i in range(8):
        [expected] = turned_boxes(corners[:1], i + 1, STORED)
        np.testing.assert_array_equal(placed.corners[i * boxes], expected)


def test_missing_files_keep_the_sizes_of_the_annotations(tmp_path: Path) -> None:
    stored = boxes_in(STORED)
    data = read(tmp_path, stored, [STORED] * IMAGES)
    assert codes(data) == []
    assert data.sizes.tolist() == [list(STORED)] * IMAGES
