from __future__ import annotations

import numpy as np
import pytest

from exported_files import INFO, with_decode, write_files
from retinanet.data.array_windows import ArrayReader
from retinanet.detection.runtime import RuntimeDetector, load_exported
from retinanet.detection.tile_plan import TileOptions
from retinanet.errors import ConfigError
from retinanet.runtime.exported import ExportedModel


@pytest.fixture(scope="module", params=[None, (64, 96)])
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RuntimeDetector:
    """An ONNX file with an input of any size, and one of 64 × 96 pixels."""
    folder = tmp_path_factory.mktemp("exported")
    write_files(folder, ExportedModel(with_decode(INFO, score=0.3), size=request.param))
    return load_exported(folder / "model.onnx")


def test_an_exported_file_detects_in_tiles_as_in_images(detector: RuntimeDetector) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(4)]
    mosaic = np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)])
    tiling = detector.tiling(TileOptions(96, 0))
    found = detector.detect_tiled(ArrayReader(mosaic), tiling, batch=3)
    parts = detector.detect(images)
    boxes = [part.boxes + np.array([96 * (i % 2), 96 * (i // 2)] * 2, np.float32) for i, part in enumerate(parts)]
    expected = np.column_stack([np.concatenate(boxes), np.concatenate([part.scores for part in parts])])
    own = np.column_stack([found.boxes, found.scores])
    assert len(own) == len(expected) > 10
    np.testing.assert_allclose(own[np.lexsort(own.T)], expected[np.lexsort(expected.T)], atol=1e-3)
    assert tiling.input_side == (96 if detector.network.model.size is None else 64)


def test_auto_needs_the_sizes_of_the_objects(detector: RuntimeDetector) -> None:
    with pytest.raises(ConfigError, match="stores no object sizes"):
        detector(np.zeros((96, 96, 3), dtype=np.uint8), tile="auto")
