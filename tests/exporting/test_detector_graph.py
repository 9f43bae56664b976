"""Post-processing in the exported graph, before it is converted, with every way of decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retinanet.anchors import AnchorSpec, make_grid
from retinanet.config import DecodeConfig
from retinanet.exporting.graph import DetectorGraph, NetworkGraph
from retinanet.model import Outputs, RetinaNet
from retinanet.postprocess import postprocess

SIZE, IMAGES = (128, 192), [(100, 192), (128, 150)]


@pytest.fixture(scope="module")
def network() -> NetworkGraph:
    return NetworkGraph(RetinaNet("resnet18", 3, channels=32, subnet_depth=0)).eval()


@pytest.mark.parametrize("clip", ["image", "after_nms", "padded"])
@pytest.mark.parametrize("size_limit", ["above", "both", "none"])
def test_the_graph_decodes_as_the_detector(
    clip: str, size_limit: str, network: NetworkGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = AnchorSpec(layout="inclusive", offset=0.5)
    config = DecodeConfig(clip=clip, size_limit=size_limit).resolved()  # type: ignore[arg-type]
    grid, generator = make_grid(spec, SIZE), torch.Generator().manual_seed(0)
    logits = [torch.randn(2, n, 3, generator=generator) * 2 - 6 for n in grid.level_sizes]
    deltas = [torch.randn(2, n, 4, generator=generator) * 2 for n in grid.level_sizes]
    outputs = Outputs(logits, deltas)
    monkeypatch.setattr(network, "outputs", lambda images, sizes: outputs)
    boxes, scores, labels, counts, *_ = DetectorGraph(network, spec, config)(
        torch.zeros(2, 3, *SIZE, dtype=torch.uint8), torch.tensor(IMAGES)
    )
    for image, expected in enumerate(postprocess(outputs, grid, IMAGES, config)):
        count = int(counts[image])
        assert count == len(expected) > 10
        np.testing.assert_array_equal(labels[image, :count], expected.labels)
        np.testing.assert_allclose(scores[image, :count], expected.scores, rtol=1e-5)
        np.testing.assert_allclose(boxes[image, :count], expected.boxes, rtol=1e-5, atol=1e-3)
