from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retinanet.anchors import AnchorSpec, make_grid
from retinanet.runtime.anchors import anchor_boxes


@pytest.mark.parametrize(
    ("layout", "offset"), [("paper", 0.0), ("torchvision", 0.0), ("inclusive", 0.5), ("paper", 0.25)]
)
@example(
    rows=1, columns=1, scale=1.0, ratio=2.750240730001058
)  # torch.sqrt is wrong in the last bit on some processors
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), scale=st.floats(0.5, 3), ratio=st.floats(0.1, 8))
def test_anchors_equal_those_of_the_training_to_the_last_bit(
    layout: str, offset: float, rows: int, columns: int, scale: float, ratio: float
) -> None:
    scales = (1.0, 2 ** (1 / 3), scale)
    spec = AnchorSpec(scales=scales, ratios=(0.5, ratio), layout=layout, offset=offset)  # type: ignore[arg-type]
    size = (32 * rows, 32 * columns)
    grid = make_grid(spec, size)
    levels = anchor_boxes(spec, size)
    for found, expected in zip(levels, grid.split(grid.boxes), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.numpy())


def test_cached_anchors_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        anchor_boxes(AnchorSpec(), (64, 64))[0][0] = 0
