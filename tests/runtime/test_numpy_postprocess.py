"""Post-processing in NumPy has the results of post-processing in PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet import model, postprocess
from retinanet.anchors import AnchorSpec, make_grid
from retinanet.decode_config import DecodeConfig
from retinanet.detections import Detections
from retinanet.runtime.anchors import anchor_boxes
from retinanet.runtime.postprocess import Outputs
from retinanet.runtime.postprocess import postprocess as postprocess_arrays

SPEC = AnchorSpec(sizes=(24.0, 48.0), scales=(1.0, 1.4), ratios=(0.5, 1.0), strides=(8, 16))
SIZE = (64, 96)
SIZES = [(64, 80), (50, 96)]


def predictions(classes: int, seed: int, step: float = 0.0, bias: float = -3.0) -> Outputs:
    """Random outputs for two images; with ``step``, logits and deltas are multiples of it, so that many are equal."""
    random = np.random.default_rng(seed)
    counts = [len(boxes) for boxes in anchor_boxes(SPEC, SIZE)]
    logits = [random.normal(bias, 2, (2, n, classes)).astype(np.float32) for n in counts]
    deltas = [random.normal(0, 0.3, (2, n, 4)).astype(np.float32) for n in counts]
    if step:
        logits, deltas = ([np.rint(level / step) * np.float32(step) for level in each] for each in (logits, deltas))
        for level in deltas:
            level[..., 2:] = 0  # exp() rounds its last bit in another way, which would decide between equal overlaps
    return Outputs(logits, deltas)


def both(outputs: Outputs, config: DecodeConfig) -> list[tuple[Detections, Detections]]:
    tensors = model.Outputs(*([torch.from_numpy(level) for level in levels] for levels in outputs))
    expected = postprocess.postprocess(tensors, make_grid(SPEC, SIZE), SIZES, config)
    return list(zip(postprocess_arrays(outputs, anchor_boxes(SPEC, SIZE), SIZES, config), expected, strict=True))


def assert_equal(found: Detections, expected: Detections) -> None:
    for name in ("images", "labels", "limited", "nonfinite"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
    assert [each.dtype for each in (found.boxes, found.scores)] == [np.float32, np.float32]


@given(
    classes=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    step=st.sampled_from([0.0, 0.25, 0.5]),
    score=st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9]),
    nms=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    most=st.sampled_from([1, 7, 100, 3000]),
)
@settings(max_examples=150)
def test_random_and_equal_outputs(classes: int, seed: int, step: float, score: float, nms: float, most: int) -> None:
    outputs = predictions(classes, seed, step)
    config = DecodeConfig(score=score, nms=nms, max_detections=most)
    for found, expected in both(outputs, config):
        assert_equal(found, expected)


@pytest.mark.parametrize("clip", ["image", "after_nms", "padded"])
@pytest.mark.parametrize("size_limit", ["above", "both", "none"])
def test_ways_of_clipping_and_limits_of_size(clip: str, size_limit: str) -> None:
    outputs = predictions(3, seed=2, bias=-4.0)
    outputs = Outputs(outputs.logits, [level * 8 for level in outputs.deltas])
    config = DecodeConfig(clip=clip, size_limit=size_limit)  # type: ignore[arg-type]
    for found, expected in both(outputs, config):
        assert len(found) > 5
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("top_k", [1, 20, 150])
def test_only_the_best_of_a_level_are_candidates(top_k: int) -> None:
    for found, expected in both(predictions(3, top_k), DecodeConfig(top_k=top_k)):
        assert_equal(found, expected)
        assert found.limited.tolist() == [0]


def test_of_equal_scores_at_the_limit_the_first_are_candidates() -> None:
    outputs = predictions(1, 0)
    for level in outputs.logits:
        level[:] = 1.0
    [found, _] = postprocess_arrays(outputs, anchor_boxes(SPEC, SIZE), SIZES, DecodeConfig(top_k=3, nms=1.0))
    assert len(found) == 5  # one of the six lies outside of the image
    assert found.limited.tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["logits", "deltas"])
def test_predictions_that_are_not_finite_are_left_out_and_marked(value: float, kind: str) -> None:
    outputs = predictions(2, 3, bias=0.0)
    getattr(outputs, kind)[0][0, 5:9] = value
    pairs = both(outputs, DecodeConfig())
    for found, expected in pairs:
        assert_equal(found, expected)
    assert [found.nonfinite.tolist() for found, _ in pairs] == [[0], []]


def test_a_score_must_exceed_the_threshold_in_float32() -> None:
    outputs = predictions(1, 0, bias=-30.0)
    lowest = np.float32(math.log(0.3 / 0.7))
    outputs.logits[0][:, :3, 0] = [np.nextafter(lowest, np.float32(-9)), lowest, np.nextafter(lowest, np.float32(9))]
    for found, expected in both(outputs, DecodeConfig(score=0.3)):
        assert_equal(found, expected)
        assert len(found) == 1


def test_many_objects() -> None:
    """More kept boxes than suppression compares with all others."""
    for found, expected in both(predictions(4, 1, bias=2.0), DecodeConfig(nms=0.8, max_detections=2000)):
        assert len(found) > 400
        assert_equal(found, expected)


def test_no_images() -> None:
    nothing: list[Any] = [np.zeros((0, n, 1), np.float32) for n in (384, 96)]
    assert postprocess_arrays(Outputs(nothing, nothing), anchor_boxes(SPEC, SIZE), []) == []
