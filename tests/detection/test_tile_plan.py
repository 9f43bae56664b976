from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.data.windows import Window
from retinanet.detection.tile_plan import TileOptions, Tiling
from retinanet.errors import ConfigError
from retinanet.object_sizes import ObjectSizes

# Objects of up to 40 pixels at the input, learnt at a quarter of the size of the images.
SIZES = ObjectSizes(
    (8.0, 10.0, 16.0, 20.0, 24.0, 30.0, 36.0, 90.0), (9.0, 12.0, 18.0, 22.0, 28.0, 36.0, 40.0, 99.0), 0.25
)


def tiling(side: int, overlap: int, scales: tuple[float, ...] = (1.0,)) -> Tiling:
    return Tiling.choose(TileOptions(side, overlap, scales), None, side)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(64, 300), st.data())
def test_tiles_cover_the_image_and_have_one_size(height: int, width: int, side: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, side - 1 if side < 80 else side // 2))
    seen = np.zeros((height, width), dtype=np.int64)
    windows = tiling(side, overlap).windows((height, width))
    for top, left, h, w in windows:
        assert (h, w) == (min(side, height), min(side, width))
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        seen[top : top + h, left : left + w] += 1
    assert seen.min() >= 1
    assert len(set(windows)) == len(windows)
    assert windows == sorted(windows)  # row by row


@given(st.integers(65, 900), st.integers(64, 300), st.data())
def test_an_object_up_to_the_overlap_lies_whole_in_a_tile(width: int, side: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, side // 2))
    length = min(overlap, width)
    start = data.draw(st.integers(0, width - length))
    windows = tiling(side, overlap).windows((10, width))
    assert any(w.left <= start and start + length <= w.left + w.width for w in windows)


def test_the_last_tile_is_shifted_inwards() -> None:
    assert tiling(100, 20).windows((100, 250)) == [
        Window(0, 0, 100, 100),
        Window(0, 80, 100, 100),
        Window(0, 150, 100, 100),
    ]
    assert tiling(100, 0).windows((100, 200)) == [Window(0, 0, 100, 100), Window(0, 100, 100, 100)]


def test_a_reduced_pass_has_larger_tiles() -> None:
    plan = tiling(100, 20, (0.5, 1.0, 0.5))
    assert plan.scales == (1.0, 0.5)
    assert plan.windows((300, 200), 0.5) == [Window(0, 0, 200, 200), Window(100, 0, 200, 200)]
    assert plan.input_shape(Window(0, 0, 200, 200), 0.5) == (100, 100)
    assert plan.input_shape(Window(0, 0, 50, 200), 0.5) == (25, 100)


def test_auto_shows_objects_as_large_as_in_the_training() -> None:
    plan = Tiling.choose(TileOptions(), SIZES, 320)
    assert plan.side == 1280  # 320 input pixels at a quarter
    assert plan.overlap == 224  # 40 input pixels, the 99 % quantile, and a margin of 16
    assert plan.note == (
        "tiles of 1280 pixels (at which objects of the size learnt appear as in the training), with an overlap of 224 "
        "(99 % of the learnt objects have up to 160 pixels, and a margin of 64)"
    )


def test_the_overlap_follows_the_scale_of_given_tiles_and_is_at_most_half() -> None:
    assert Tiling.choose(TileOptions(640), SIZES, 320).overlap == 112
    plan = Tiling.choose(TileOptions(64), SIZES, 64)
    assert plan.overlap == 32
    assert "half a tile; the largest learnt objects have 40 pixels" in plan.note


def test_a_model_without_sizes_takes_a_quarter_and_refuses_auto() -> None:
    assert Tiling.choose(TileOptions(640), None, 320).overlap == 160
    with pytest.raises(ConfigError, match=r"stores no object sizes .* --tile 640"):
        Tiling.choose(TileOptions(), None, 320)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": 63}, "--tile is 63; give at least 64"),
        ({"tile": "-5"}, "--tile is '-5'; give the side"),
        ({"tile": "big"}, "--tile is 'big'; give the side"),
        ({"tile": 100, "overlap": -1}, "--overlap is -1"),
        ({"tile": "none", "overlap": 10}, "leave them out, or --tile none"),
        ({"tile": "none", "scales": (1.0, 0.5)}, "leave them out, or --tile none"),
        ({"tile": 100, "scales": ()}, "--tile-scales is empty"),
        ({"tile": 100, "scales": (1.0, 0.0)}, "--tile-scales is 1 0; give numbers from 0.001 to 1"),
        ({"tile": 128.5}, r"--tile is 128\.5; give the side"),
        ({"tile": True}, "--tile is True; give the side"),
        ({"tile": 128, "overlap": 10.5}, r"--overlap is 10\.5; give a whole number"),
        ({"tile": None, "overlap": 10.5}, r"--overlap is 10\.5; give a whole number"),
        ({"tile": 128, "scales": 0.5}, r"--tile-scales is 0\.5; give several numbers"),
        ({"tile": None, "scales": 0.5}, r"--tile-scales is 0\.5; give several numbers"),
        ({"tile": 128, "scales": "1 0.5"}, r"--tile-scales is '1 0\.5'; give several numbers"),
        ({"tile": 128, "scales": ("1", 0.5)}, r"--tile-scales is \('1', 0\.5\); give numbers"),
        ({"tile": 100, "scales": (2.0,)}, "--tile-scales is 2; give numbers from 0.001 to 1"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TileOptions.of(**values)


@pytest.mark.parametrize("overlap", [100, 101])
def test_an_overlap_that_is_no_smaller_than_the_tile_is_refused(overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"--overlap is {overlap}, but tiles are 100 pixels wide"):
        Tiling.choose(TileOptions(100, overlap), None, 100)


def test_images_smaller_than_a_tile_are_noted() -> None:
    plan = tiling(200, 20)
    assert len(plan.notes((300, 100))) == 1
    assert "no image is larger than a tile (120×100 pixels at most)" in plan.notes((100, 120))[1]


def test_a_setting_of_tiles_without_a_side_means_auto() -> None:
    assert TileOptions.of(None) is None
    assert TileOptions.of(None, overlap=10) == TileOptions("auto", 10)
    assert TileOptions.of(None, scales=(1.0, 0.5)) == TileOptions("auto", None, (1.0, 0.5))


@pytest.mark.parametrize("scale", [1e-7, 0.0, -1.0, 1.1, float("nan")])
def test_scales_at_which_nothing_can_be_found_are_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"--tile-scales is .*; give numbers from 0\.001 to 1, such as 1 0\.5"):
        TileOptions(640, None, (1.0, scale))
    assert TileOptions(640, None, (1.0, 0.001)).scales == (1.0, 0.001)


def test_numbers_of_numpy_are_accepted() -> None:
    values: tuple[Any, ...] = (np.int64(128), np.int32(10), [np.float32(1), np.float64(0.5)])
    options = TileOptions.of(*values)
    assert options is not None
    assert options == TileOptions(128, 10, (1.0, 0.5))
    assert type(options.tile) is type(options.overlap) is int
    with pytest.raises(ConfigError, match=r"--tile is 128\.5"):
        TileOptions(128.5)  # type: ignore[arg-type]
