from __future__ import annotations

import pytest

from retinanet.config import DataConfig
from retinanet.data.image_sizes import batches_of_one_padded_size, padded_size, scaled_size


@pytest.mark.parametrize(
    ("resize", "expected"),
    [("pillow", (256, 385)), ("opencv", (256, 385)), ("antialiased", (256, 385)), ("pillow_floor", (256, 384))],
)
def test_sides_are_rounded_as_each_program_does(resize: str, expected: tuple[int, int]) -> None:
    config = DataConfig(size=256, max_size=426, resize=resize)  # type: ignore[arg-type]
    assert scaled_size(300, 451, config) == expected
    assert scaled_size(161, 451, config) == (152, 426)


def test_halves_are_rounded_up_by_pillow_and_opencv_and_to_even_otherwise() -> None:
    for resize, side in (("pillow", 51), ("opencv", 51), ("antialiased", 50), ("pillow_floor", 50)):
        config = DataConfig(size=50, max_size=1000, resize=resize)  # type: ignore[arg-type]
        assert scaled_size(100, 101, config) == (50, side), resize


def test_inputs_are_padded_to_the_multiple_that_is_set() -> None:
    assert padded_size([(152, 426)]) == (160, 448)
    assert padded_size([(152, 426), (300, 10)], 128) == (384, 512)
    assert batches_of_one_padded_size([(10, 10), (100, 20), (33, 40)], 8) == [[0], [1], [2]]
    assert batches_of_one_padded_size([(10, 10), (100, 20), (33, 40)], 8, 128) == [[0, 1, 2]]
