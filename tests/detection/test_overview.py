from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from retinanet.data.array_windows import ArrayReader
from retinanet.detection import overview as module
from retinanet.detection.overview import overview


@pytest.mark.parametrize("size", [(90, 130), (91, 133), (3, 500), (500, 3)])
@pytest.mark.parametrize("most", [100, 1500, 10**6])
def test_strips_join_to_the_reduced_image(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], most: int) -> None:
    monkeypatch.setattr(module, "_STRIP_PIXELS", 700)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    factor = 1
    while (size[0] * size[1]) / factor**2 > most:
        factor += 1
    expected = np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels
    np.testing.assert_array_equal(overview(ArrayReader(pixels), most), expected)
