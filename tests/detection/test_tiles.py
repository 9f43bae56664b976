from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage.measure import label, regionprops

import retinanet
from retinanet.data.array_windows import ArrayReader
from retinanet.data.images import read_image
from retinanet.data.windows import Window, open_windows
from retinanet.decode_config import DecodeConfig
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.detection.tile_plan import TileOptions, TileSide
from retinanet.detections import Detections
from retinanet.errors import ConfigError, DataError
from retinanet.model_info import ModelInfo
from retinanet.object_sizes import ObjectSizes

Array = npt.NDArray[np.uint8]

SIZES = ObjectSizes(
    (8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0), (8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0), 1.0
)


@pytest.fixture(scope="module")
def detector(weights: Path) -> PyTorchDetector:
    loaded = load_pytorch(weights, precision="fp32", device="cpu")
    loaded.info = replace(loaded.info, objects=SIZES)
    return loaded


@pytest.fixture(scope="module")
def images(parts: Path) -> list[Array]:
    """Six images of 96 × 96 pixels."""
    return [read_image(path) for path in sorted((parts / "images").glob("*.jpg"))[:6]]


@pytest.fixture(scope="module")
def mosaic(images: list[Array]) -> Array:
    """An image of 192 × 288 pixels, composed of six."""
    return np.concatenate([np.concatenate(images[:3], axis=1), np.concatenate(images[3:], axis=1)])


class BlobDetector(Detector):
    """Finds white rectangles on black exactly, without a network: an oracle for what tiles may lose or double."""

    def __init__(self, info: ModelInfo, size: int, max_detections: int = 100_000) -> None:
        config = replace(info.config, data=replace(info.config.data, size=size, max_size=size))
        config = replace(config, decode=DecodeConfig(max_detections=max_detections))
        super().__init__(replace(info, config=config, objects=SIZES))
        self.shapes: list[tuple[int, ...]] = []

    def resize(self, image: Array, shape: tuple[int, int]) -> Pixels:
        return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.NEAREST))

    def detect_scaled(
        self, images: Any, score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        self.shapes += [image.shape[:2] for image in images]
        return [self._blobs(image[..., 0] > 127, self.decode_config(score, max_detections)) for image in images]

    def _blobs(self, white: npt.NDArray[np.bool_], settings: DecodeConfig) -> Detections:
        found = [region.bbox for region in regionprops(label(white))]  # type: ignore[no-untyped-call]
        boxes = np.array([(left, top, right, bottom) for top, left, bottom, right in found], np.float32).reshape(-1, 4)
        limit = settings.max_detections or 0
        result = Detections.of_one_image(
            boxes[:limit], np.full(len(boxes), 0.8, np.float32)[:limit], np.zeros(len(boxes), np.int64)[:limit]
        )
        return replace(result, limited=np.zeros(int(len(boxes) > limit), dtype=np.int64))


def drawn(height: int, width: int, boxes: npt.NDArray[np.integer]) -> Array:
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = 255
    return image


def rows(found: Any) -> npt.NDArray[np.floating]:
    boxes = np.asarray(found.boxes if isinstance(found, Detections) else found.xyxy)
    return boxes[np.lexsort(boxes.T)]


def same(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert len(a) == len(b) > 0
    np.testing.assert_array_equal(a.class_id, b.class_id)
    np.testing.assert_allclose(a.confidence, b.confidence, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.xyxy, b.xyxy, rtol=0, atol=100 * tolerance)


def test_tiles_of_a_mosaic_give_the_detections_of_its_parts(
    detector: PyTorchDetector, images: list[Array], mosaic: Array
) -> None:
    parts = [Detections.concatenate(detector.detect([image])) for image in images]
    offsets = [np.array([96 * (i % 3), 96 * (i // 3)] * 2, np.float32) for i in range(6)]
    boxes = np.concatenate([part.boxes + offset for part, offset in zip(parts, offsets, strict=True)])
    scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "labels"))
    tiling = detector.tiling(TileOptions(96, 0))
    found = detector.detect_tiled(ArrayReader(mosaic), tiling)
    assert len(found) == len(scores) > 100
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.scores, scores[order], rtol=0, atol=1e-5)
    key = np.round(np.column_stack([boxes, scores * 100, labels]), 1)
    own = np.round(np.column_stack([found.boxes, found.scores * 100, found.labels]), 1)
    np.testing.assert_allclose(own[np.lexsort(own.T)], key[np.lexsort(key.T)], atol=0.11)


@pytest.mark.filterwarnings("ignore:.* reached a limit")
def test_the_result_depends_on_neither_batch_nor_reader(
    detector: PyTorchDetector, mosaic: Array, tmp_path: Path
) -> None:
    expected = detector(mosaic, tile=96, overlap=30)
    same(detector(mosaic, tile=96, overlap=30, batch=1), expected)
    same(detector(mosaic, tile=96, overlap=30, batch=5), expected)
    for name in ("mosaic.png", "mosaic.tif"):
        Image.fromarray(mosaic).save(tmp_path / name)
        same(detector(tmp_path / name, tile=96, overlap=30), expected)
    same(detector([Image.fromarray(mosaic)], tile=96, overlap=30)[0], expected)


@pytest.mark.filterwarnings("ignore:.* reached a limit")
def test_an_image_of_one_tile_gives_plain_detections(detector: PyTorchDetector, images: list[Array]) -> None:
    same(detector(images[0], tile=96), detector(images[0]))
    same(detector(images[0], tile="auto"), detector(images[0]))


@pytest.mark.parametrize("factor", [1, 2])
def test_objects_on_seams_are_found_once(detector: PyTorchDetector, factor: int) -> None:
    rng = np.random.default_rng(1)
    blobs = BlobDetector(detector.info, 100)
    # An object of 8 to 20 pixels in each cell of 26, in whatever place: many lie on a seam, or on four tiles.
    corners = np.stack(np.meshgrid(np.arange(0, 700, 26), np.arange(0, 500, 26)), axis=-1).reshape(-1, 2)
    corners = corners + rng.integers(0, 4, corners.shape)
    boxes = factor * np.concatenate([corners, corners + rng.integers(8, 20, corners.shape)], axis=1)
    image = drawn(factor * 530, factor * 730, boxes)
    found = blobs.detect_tiled(ArrayReader(image), blobs.tiling(TileOptions(100 * factor)))
    np.testing.assert_array_equal(rows(found), boxes[np.lexsort(boxes.T)])
    assert set(blobs.shapes) == {(100, 100)}


def test_five_thousand_objects_have_no_limit_but_that_of_a_tile(detector: PyTorchDetector) -> None:
    corners = 16 * np.stack(np.meshgrid(np.arange(72), np.arange(72)), axis=-1).reshape(-1, 2) + 3
    boxes = np.concatenate([corners, corners + 9], axis=1)
    image = drawn(1160, 1160, boxes)
    blobs = BlobDetector(detector.info, 200, max_detections=400)
    reader, tiling = ArrayReader(image), blobs.tiling(TileOptions(200, 12))
    found = blobs.detect_tiled(reader, tiling)
    np.testing.assert_array_equal(rows(found), boxes[np.lexsort(boxes.T)])
    assert not len(found.limited)
    best = blobs.detect_tiled(reader, tiling, max_detections=1000)
    assert (len(best), len(best.limited)) == (1000, 1)
    few = BlobDetector(detector.info, 200, max_detections=20)
    assert len(few.detect_tiled(reader, tiling).limited) == 1
    assert len(few.detect_tiled(reader, tiling, max_detections=6000)) == 5184  # a tile may have as many as the image


def test_objects_larger_than_a_tile_need_a_reduced_pass(detector: PyTorchDetector) -> None:
    boxes = np.array([[40, 60, 240, 200], [280, 20, 290, 32], [300, 300, 312, 311]])
    image = drawn(400, 400, boxes)
    blobs = BlobDetector(detector.info, 100)
    pieces = blobs.detect_tiled(ArrayReader(image), blobs.tiling(TileOptions(100)))
    assert len(pieces) > len(boxes)
    found = blobs.detect_tiled(ArrayReader(image), blobs.tiling(TileOptions(100, scales=(1, 0.5, 0.25))))
    np.testing.assert_array_equal(rows(found), boxes[np.lexsort(boxes.T)])


def test_an_image_smaller_than_a_tile_is_scaled_as_a_tile(detector: PyTorchDetector) -> None:
    blobs = BlobDetector(detector.info, 100)
    boxes = np.array([[10, 10, 30, 24]])
    for (height, width), shape in (((60, 300), (30, 100)), ((1, 700), (1, 100)), ((60, 80), (30, 40))):
        blobs.shapes.clear()
        found = blobs.detect_tiled(ArrayReader(drawn(height, width, boxes)), blobs.tiling(TileOptions(200)))
        assert set(blobs.shapes) == {shape}
        assert len(found) == (height > 1)


def test_windows_of_an_array_are_checked(mosaic: Array) -> None:
    with ArrayReader(mosaic) as reader:
        assert reader.size == (192, 288)
        np.testing.assert_array_equal(reader.read(Window(5, 7, 20, 30)), mosaic[5:25, 7:37])


@pytest.mark.parametrize(
    "settings",
    [
        {"tile": "none", "overlap": 10},
        {"tile": "none", "tile_scales": (1, 0.5)},
        {"tile": 10},
        {"tile": 96, "overlap": 96},
    ],
)
def test_wrong_settings_are_refused(detector: PyTorchDetector, mosaic: Array, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        detector(mosaic, **settings)


def test_a_setting_of_tiles_means_tiles_of_the_side_learnt(detector: PyTorchDetector, mosaic: Array) -> None:
    expected = detector(mosaic, score=0.2, tile="auto", overlap=10)
    found = detector(mosaic, score=0.2, overlap=10)
    assert len(found) > 0
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)


def test_a_missing_image_is_an_error(detector: PyTorchDetector) -> None:
    with pytest.raises(DataError, match=r"nowhere\.tif"):
        detector("nowhere.tif", tile=96)
    with pytest.raises(DataError, match=r"nowhere\.png"), open_windows("nowhere.png"):
        pass


@pytest.mark.filterwarnings("ignore:.* reached a limit")
def test_max_detections_keeps_the_best_and_says_so(detector: PyTorchDetector, mosaic: Array) -> None:
    whole = detector(mosaic, score=0.2, tile=96)
    with pytest.warns(UserWarning, match="reached a limit"):
        few = detector(mosaic, score=0.2, tile=96, max_detections=5)
    same(few, whole[:5])
    with pytest.raises(ConfigError, match="max-detections is 0"):
        detector(mosaic, tile=96, max_detections=0)


def test_a_video_is_divided_into_tiles_if_the_model_was_trained_on_tiles(
    detector: PyTorchDetector, images: list[Array], mosaic: Array, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate([mosaic, images[0], mosaic[::-1]]):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{number}.png")
    config = detector.info.config
    on_tiles = copy.copy(detector)
    on_tiles.info = replace(detector.info, config=replace(config, data=replace(config.data, tile=96)))
    wishes: tuple[tuple[TileSide | None, bool], ...] = ((None, True), (64, True), ("none", False))
    for wish, divided in wishes:
        found = [frame.found for frame in retinanet.frames(on_tiles, folder, tile=wish)]
        expected = on_tiles([mosaic, images[0], mosaic[::-1]], tile=wish)
        for mine, other in zip(found, expected, strict=True):
            same(mine, other)
        assert (len(found[0]) == len(detector(mosaic))) != divided


def test_the_notes_of_a_video_name_the_tiles_and_their_limits(detector: PyTorchDetector, tmp_path: Path) -> None:
    boxes = np.array([(20 * k, 10, 20 * k + 8, 18) for k in range(9)])
    for number in range(3):
        Image.fromarray(drawn(100, 200, boxes)).save(tmp_path / f"{number}.png")
    blobs = BlobDetector(detector.info, 100, max_detections=4)
    for limit, per in ((None, "4 detections per tile"), (7, "7 detections per image")):
        run = retinanet.detect(
            blobs, tmp_path, tmp_path / "out", video=True, tile=100, max_detections=limit, draw=False, score=0.5
        )
        assert run.notes[0].startswith("tiles of 100 pixels (as given)")
        assert f"3 of 3 images reached a limit ({per}" in run.notes[1]
        assert len(run.notes) == 2
    # Limits that cost only objects below the score serve the tracking, and do not count.
    for limit in (None, 7):
        tracked = retinanet.detect(
            blobs,
            tmp_path,
            tmp_path / "tracked",
            video=True,
            track=True,
            tile=100,
            max_detections=limit,
            draw=False,
            score=0.85,
        )
        assert len(tracked.notes) == 1
    enough = retinanet.detect(blobs, tmp_path, tmp_path / "all", video=True, tile=100, max_detections=9, draw=False)
    assert len(enough.notes) == 1
    assert enough.counts.total() == 3 * 9
