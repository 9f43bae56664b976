from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from retinanet.anchors import AnchorGrid, AnchorSpec, make_grid
from retinanet.config import DecodeConfig
from retinanet.detections import Detections
from retinanet.model import Outputs
from retinanet.postprocess import (
    Candidates,
    highest,
    postprocess,
    suppress,
    suppress_in_turn,
    suppress_together,
)
from retinanet.runtime import postprocess as numpy_postprocess

SPEC = AnchorSpec(sizes=(24.0, 48.0), scales=(1.0, 1.4), ratios=(0.5, 1.0), strides=(8, 16))
SIZE = (64, 96)

Found = list[tuple[int, float, list[float]]]  # class, score, box


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def slow(outputs: Outputs, grid: AnchorGrid, image: int, size: tuple[int, int], config: DecodeConfig) -> Found:
    """Section 4, Inference, with lists of numbers."""
    config = config.resolved()
    height, width = size
    start, merged = 0, []
    for logits, deltas in zip(outputs.logits, outputs.deltas, strict=True):
        kept = []
        for anchor, row in enumerate(logits[image].double().tolist()):
            for label, logit in enumerate(row):
                score = 1 / (1 + math.exp(-logit))
                if score > config.score:
                    kept.append((score, anchor, label))
        for score, anchor, label in sorted(kept, reverse=True)[: config.top_k]:
            x1, y1, x2, y2 = grid.boxes[start + anchor].double().tolist()
            dx, dy, dw, dh = deltas[image, anchor].double().tolist()
            w, h = x2 - x1, y2 - y1
            x, y = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
            limits = {"above": (-math.inf, 62.5), "both": (1 / 62.5, 62.5), "none": (-math.inf, math.inf)}
            least, most = limits[config.size_limit]
            w, h = (side * min(max(math.exp(d), least), most) for side, d in ((w, dw), (h, dh)))
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            if config.clip == "image":
                box = clip(box, (0, 0, 0, 0), (width, height, width, height))
            elif config.clip == "padded":  # the first and the last pixel are inside the input
                rows, columns = grid.image_size
                box = clip(box, (0, 0, 1, 1), (columns - 1, rows - 1, columns, rows))
            if box[0] < box[2] and box[1] < box[3]:
                merged.append((label, score, box))
        start += logits.shape[1]
    result: Found = []
    for candidate in sorted(merged, key=lambda c: -c[1]):
        same = [better for better in result if better[0] == candidate[0]]
        if all(iou(better[2], candidate[2]) <= config.nms for better in same):
            result.append(candidate)
    result = result[: config.max_detections]
    if config.clip == "after_nms":
        result = [(k, score, clip(box, (0, 0, 0, 0), (width, height, width, height))) for k, score, box in result]
    return [each for each in result if each[2][0] < each[2][2] and each[2][1] < each[2][3]]


def clip(box: list[float], low: tuple[float, ...], high: tuple[float, ...]) -> list[float]:
    return [min(max(value, least), most) for value, least, most in zip(box, low, high, strict=True)]


def predictions(grid: AnchorGrid, classes: int, images: int = 1, seed: int = 0, bias: float = -3.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(images, n, classes, generator=generator) * 2 + bias for n in grid.level_sizes]
    deltas = [torch.randn(images, n, 4, generator=generator) * 0.3 for n in grid.level_sizes]
    return Outputs(logits, deltas)


def equal(a: Detections, b: Detections) -> bool:
    columns = ("images", "boxes", "scores", "labels")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


def agree(found: Detections, expected: Found) -> None:
    assert found.labels.tolist() == [label for label, _, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score, _ in expected], rel=1e-5)
    np.testing.assert_allclose(found.boxes, np.reshape([box for _, _, box in expected], (-1, 4)), atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "config"),
    [
        pytest.param(3, DecodeConfig(), id="paper"),
        pytest.param(1, DecodeConfig(), id="one-class"),
        pytest.param(80, DecodeConfig(score=0.8), id="80-classes"),
        pytest.param(3, DecodeConfig(score=0.5), id="score"),
        pytest.param(3, DecodeConfig(top_k=20), id="top-k-per-level"),
        pytest.param(3, DecodeConfig(max_detections=7), id="max-detections"),
        pytest.param(3, DecodeConfig(nms=0.2, max_detections=1000), id="strict-nms"),
        pytest.param(2, DecodeConfig(nms=1.0, max_detections=10000), id="no-nms"),
        pytest.param(1, DecodeConfig(score=0.0, top_k=60), id="no-threshold"),
    ],
)
def test_against_a_slow_oracle(classes: int, config: DecodeConfig) -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, classes, seed=classes)
    expected = slow(outputs, grid, 0, SIZE, config)
    assert len(expected) >= 7
    (found,) = postprocess(outputs, grid, [SIZE], config)
    agree(found, expected)
    assert [str(a.dtype) for a in (found.boxes, found.scores, found.labels)] == ["float32", "float32", "int64"]


@pytest.mark.parametrize("clip_to", ["image", "after_nms", "padded"])
@pytest.mark.parametrize("size_limit", ["above", "both", "none"])
def test_ways_of_clipping_and_limits_of_size_against_a_slow_oracle(clip_to: str, size_limit: str) -> None:
    config = DecodeConfig(clip=clip_to, size_limit=size_limit)  # type: ignore[arg-type]
    grid, size = make_grid(SPEC, SIZE), (SIZE[0] - 20, SIZE[1] - 9)
    outputs = predictions(grid, 3, seed=1, bias=-4.0)
    outputs = Outputs(outputs.logits, [level * 8 for level in outputs.deltas])  # some beyond the image and the limits
    expected = slow(outputs, grid, 0, size, config)
    assert len(expected) >= 7
    (found,) = postprocess(outputs, grid, [size], config)
    assert found.labels.tolist() == [label for label, _, _ in expected]
    np.testing.assert_allclose(found.boxes, [box for _, _, box in expected], rtol=1e-5, atol=2e-3)


def test_a_batch_of_two_images_of_different_size() -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 3, images=2, seed=5)
    sizes = [(64, 80), (50, 96)]  # inside the padding
    config = DecodeConfig(score=0.2)
    results = postprocess(outputs, grid, sizes, config)
    assert len(results) == 2
    for image, (found, (height, width)) in enumerate(zip(results, sizes, strict=True)):
        agree(found, slow(outputs, grid, image, sizes[image], config))
        assert found.boxes.min() >= 0
        assert found.boxes[:, 2].max() == width  # some box was clipped at each border
        assert found.boxes[:, 3].max() == height


def test_nothing_found() -> None:
    grid = make_grid(SPEC, SIZE)
    (found,) = postprocess(predictions(grid, 2, bias=-100.0), grid, [SIZE])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_one_level_empty() -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 2)
    outputs.logits[0].fill_(-20.0)
    (found,) = postprocess(outputs, grid, [SIZE])
    agree(found, slow(outputs, grid, 0, SIZE, DecodeConfig()))


def one_anchor(logits: list[list[float]], spec: AnchorSpec) -> tuple[Outputs, AnchorGrid]:
    grid = make_grid(spec, (32, 32))
    return Outputs([torch.tensor([logits])], [torch.zeros(1, len(logits), 4)]), grid


def test_an_anchor_may_be_several_classes() -> None:
    outputs, grid = one_anchor([[2.0, 3.0]], AnchorSpec((32.0,), (1.0,), (1.0,), (32,)))
    (found,) = postprocess(outputs, grid, [(32, 32)])
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[0, 0, 16, 16]] * 2


def test_the_lower_of_two_boxes_of_a_class_is_dropped() -> None:
    # squares of side 32 and 32·1.2 around one point: IoU 1/1.44 = 0.69
    outputs, grid = one_anchor([[1.0, -9.0], [2.0, 1.5]], AnchorSpec((32.0,), (1.0, 1.2), (1.0,), (32,)))
    (found,) = postprocess(outputs, grid, [(32, 32)])
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1.5))])
    (found,) = postprocess(outputs, grid, [(32, 32)], DecodeConfig(nms=0.7))
    assert found.labels.tolist() == [0, 1, 0]


def test_scores_must_exceed_the_threshold() -> None:
    outputs, grid = one_anchor([[0.0], [1e-3]], AnchorSpec((32.0,), (1.0, 4.0), (1.0,), (32,)))
    (found,) = postprocess(outputs, grid, [(32, 32)], DecodeConfig(score=0.5))
    assert len(found.scores) == 1  # exactly 0.5 is not above 0.5
    assert found.scores.item() > 0.5


def test_bfloat16_outputs_are_decoded_in_float32() -> None:
    grid = make_grid(SPEC, SIZE)
    for seed in range(8, 16):
        outputs = predictions(grid, 2, seed=seed)
        rounded = Outputs([t.bfloat16() for t in outputs.logits], [t.bfloat16() for t in outputs.deltas])
        exact = Outputs([t.float() for t in rounded.logits], [t.float() for t in rounded.deltas])
        for config in (DecodeConfig(), DecodeConfig(nms=1.0, max_detections=10_000)):
            # stable order: rounded logits have many equals
            (found,), (expected,) = postprocess(rounded, grid, [SIZE], config), postprocess(exact, grid, [SIZE], config)
            assert np.array_equal(found.scores, expected.scores)


def test_suppression_of_small_boxes_of_high_classes() -> None:
    """Whether two boxes overlap does not depend on how many classes there are or how large the image is."""
    spec = AnchorSpec(sizes=(4.0,), scales=(1.0,), ratios=(1.0,), strides=(4,))
    size = (4, 1332)
    grid = make_grid(spec, size)
    # the last two locations predict 4 px boxes that overlap by 2.672 of 4 px: IoU 2.672 / 5.328 = 0.5015
    deltas = torch.zeros(1, len(grid.boxes), 4)
    deltas[0, -2, 0] = (4 - 1.328) / 4
    deltas[0, -2:, 1] = 0.5
    deltas[0, -2:, 0] -= 0.5
    for classes in (1, 80, 365):
        logits = torch.full((1, len(grid.boxes), classes), -20.0)
        logits[0, -2:, -1] = torch.tensor([1.0, 2.0])
        (found,) = postprocess(Outputs([logits], [deltas]), grid, [size])
        assert len(found.scores) == 1
        deltas_apart = deltas.clone()
        deltas_apart[0, -2, 0] -= 0.006  # 0.024 px further: IoU 0.496
        (found,) = postprocess(Outputs([logits], [deltas_apart]), grid, [size])
        assert len(found.scores) == 2


@settings(deadline=None, max_examples=150)
@given(
    length=st.integers(1, 3000) | st.sampled_from([8192, 8193, 20_011, 65_536]),
    count=st.integers(1, 40) | st.just(1000),
    levels=st.sampled_from([3, 50, 10**6]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10_000),
)
def test_the_highest_of_blocks_are_the_highest_of_all(
    length: int, count: int, levels: int, dtype: torch.dtype, seed: int
) -> None:
    """With few ``levels`` most values are equal: then which of them is taken is open, but not their value."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randint(levels, (2, length), generator=generator) - levels // 2).to(dtype)
    if seed % 3 == 0:
        values[1] = -math.inf
    top, where = highest(values, count)
    expected = values.topk(min(count, length), dim=1).values
    assert torch.equal(top, expected)
    assert torch.equal(values.gather(1, where), expected)
    assert all(len(set(row)) == len(row) for row in where.tolist())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("crowding", [0.0, 29.0, 33.0])
def test_suppression_looks_as_far_as_it_must(classes: int, crowding: float) -> None:
    """The best few candidates are looked at first; in a crowd they leave too little, and more are needed."""
    torch.manual_seed(0)
    centre = torch.rand(2, 3000, 2) * (500 - 15 * crowding) + 5
    boxes = torch.cat([centre - 8, centre + 8], dim=2)
    scores = torch.rand(2, 3000).sort(dim=1, descending=True).values
    scores[1, 1000:] = 0  # this image has fewer
    labels = torch.randint(classes, (2, 3000))
    config = DecodeConfig(max_detections=100)
    found = suppress(Candidates(boxes, scores, labels), config)
    for image, count in enumerate((3000, 1000)):
        keep = batched_nms(boxes[image, :count], scores[image, :count], labels[image, :count], config.nms)[:100]
        assert np.array_equal(found[image].boxes, boxes[image, keep])
        assert np.array_equal(found[image].scores, scores[image, keep])
        assert np.array_equal(found[image].labels, labels[image, keep])
    assert (len(found[0].scores) == 100) == (crowding < 33)


def test_a_box_that_is_not_a_number_is_dropped_and_harms_no_other() -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 3, images=2, seed=1)
    expected = postprocess(outputs, grid, [SIZE] * 2)
    # an anchor of image 0 that is found, and one that lies below the threshold
    outputs.deltas[0][0, int(outputs.logits[0][0].amax(dim=1).argmax())] = math.nan
    outputs.deltas[0][0, int(outputs.logits[0][0].amax(dim=1).argmin())] = math.inf
    found = postprocess(outputs, grid, [SIZE] * 2)
    assert [each.nonfinite.tolist() for each in found] == [[0], []]
    assert np.isfinite(found[0].boxes).all()
    assert abs(len(found[0].scores) - len(expected[0].scores)) < 10
    assert equal(found[1], expected[1])


def dense_outputs(images: int = 2) -> tuple[AnchorGrid, Outputs]:
    """The first image has thousands of scores above the threshold on a level, the others have only some hundreds."""
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 3, images=images, seed=5)
    for logits in outputs.logits:
        logits[0] += 4
        logits[1:] -= 1
    return grid, outputs


def test_images_that_reach_a_limit_are_marked() -> None:
    grid, outputs = dense_outputs()
    every = postprocess(outputs, grid, [SIZE] * 2, DecodeConfig(max_detections=10**9, top_k=10**9))
    most = len(every[1])
    assert len(every[0]) > most > 20
    assert [each.limited.tolist() for each in every] == [[], []]
    some = postprocess(outputs, grid, [SIZE] * 2, DecodeConfig(max_detections=most + 1))
    assert [each.limited.tolist() for each in some] == [[0], []]
    few = postprocess(outputs, grid, [SIZE] * 2, DecodeConfig(max_detections=20))
    assert [each.limited.tolist() for each in few] == [[0], [0]]
    # the candidates of the first image are cut off, although suppression leaves fewer boxes than may be returned
    cut = postprocess(outputs, grid, [SIZE] * 2, DecodeConfig(max_detections=10**9, top_k=1000))
    assert [each.limited.tolist() for each in cut] == [[0], []]


def test_a_limit_of_a_billion_needs_no_memory_for_it() -> None:
    grid, outputs = dense_outputs()
    config = DecodeConfig().at_most(10**9)
    for image, found in enumerate(postprocess(outputs, grid, [SIZE] * 2, config)):
        agree(found, slow(outputs, grid, image, SIZE, config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_high_limit_an_image_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    """In bf16 many scores are equal, also to the threshold."""
    grid, outputs = dense_outputs(images=3)
    outputs = Outputs([each.to(dtype) for each in outputs.logits], outputs.deltas)
    config = DecodeConfig().at_most(5000)
    together = postprocess(outputs, grid, [SIZE] * 3, config)
    for image, found in enumerate(together):
        one = slice(image, image + 1)
        alone = Outputs([each[one] for each in outputs.logits], [each[one] for each in outputs.deltas])
        assert equal(found, postprocess(alone, grid, [SIZE], config)[0])


def test_boxes_outside_the_image_are_left_out() -> None:
    """Clipped, they have no area, and their IoU with each other is 0/0."""
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 2, images=2, seed=3, bias=0.0)
    outputs.deltas[0][..., 0] += 1.5 * torch.randn(outputs.deltas[0].shape[:2])
    sizes = [(64, 96), (40, 50)]
    config = DecodeConfig(max_detections=10_000, nms=0.9)
    found = postprocess(outputs, grid, sizes, config)
    for image, each in enumerate(found):
        sides = each.boxes[:, 2:] - each.boxes[:, :2]
        assert (sides > 0).all()
        agree(each, slow(outputs, grid, image, sizes[image], config))


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_scores_that_are_not_numbers_take_no_place_and_are_counted(share: float) -> None:
    grid = make_grid(AnchorSpec(sizes=(16.0, 48.0), scales=(1.0,), strides=(4, 16)), (256, 256))
    outputs = predictions(grid, 3, images=3, seed=2)
    config = DecodeConfig(top_k=60)
    damaged = Outputs([level.clone() for level in outputs.logits], outputs.deltas)
    missing = torch.rand(damaged.logits[0][1].shape, generator=torch.Generator().manual_seed(0)) < share
    assert missing.any()
    damaged.logits[0][1][missing] = math.nan
    cleaned = Outputs([level.nan_to_num(-math.inf) for level in damaged.logits], outputs.deltas)
    found = postprocess(damaged, grid, [(256, 256)] * 3, config)
    assert [each.nonfinite.tolist() for each in found] == [[], [0], []]
    expected = postprocess(cleaned, grid, [(256, 256)] * 3, config)
    assert all(len(each.nonfinite) == 0 for each in expected)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(found[1]) > 10
    agree(found[1], slow(cleaned, grid, 1, (256, 256), config))


def displaced(kind: str, value: float) -> tuple[AnchorGrid, Outputs, Outputs]:
    """Outputs in which image 1 has more damaged predictions of high scores than ``top_k``, and without these."""
    grid = make_grid(AnchorSpec(sizes=(16.0, 48.0), scales=(1.0,), strides=(4, 16)), (256, 256))
    clean = predictions(grid, 3, images=3, seed=2)
    damaged = Outputs([level.clone() for level in clean.logits], [level.clone() for level in clean.deltas])
    hit = torch.arange(len(clean.logits[0][1])) % 3 == 0
    clean.logits[0][1, hit] = -math.inf
    if kind == "logits":
        damaged.logits[0][1, hit] = value
    else:
        damaged.logits[0][1, hit] = 9.0
        damaged.deltas[0][1, hit, 0] = value
    return grid, damaged, clean


DAMAGE = [("logits", math.nan), ("logits", math.inf), ("deltas", math.nan), ("deltas", math.inf)]


@pytest.mark.parametrize("top_k", [60, 3000])
@pytest.mark.parametrize(("kind", "value"), DAMAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_predictions_that_are_not_finite_displace_no_others(
    kind: str, value: float, top_k: int, dtype: torch.dtype
) -> None:
    grid, *both = displaced(kind, value)
    damaged, clean = (Outputs([x.to(dtype) for x in each.logits], [x.to(dtype) for x in each.deltas]) for each in both)
    config = DecodeConfig(top_k=top_k)
    found = postprocess(damaged, grid, [(256, 256)] * 3, config)
    assert [each.nonfinite.tolist() for each in found] == [[], [0], []]
    expected = postprocess(clean, grid, [(256, 256)] * 3, config)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [each.limited.tolist() for each in found] == [each.limited.tolist() for each in expected]
    assert len(found[1]) > 10
    assert found[1].scores.max() < 1


def test_a_logit_of_minus_infinity_is_a_score_of_0() -> None:
    grid, _, clean = displaced("logits", math.inf)
    assert all(len(each.nonfinite) == 0 for each in postprocess(clean, grid, [(256, 256)] * 3))


@pytest.mark.parametrize("top_k", [60, 3000])
@pytest.mark.parametrize(("kind", "value"), DAMAGE)
def test_numpy_leaves_out_the_same_predictions_that_are_not_finite(kind: str, value: float, top_k: int) -> None:
    grid, damaged, _ = displaced(kind, value)
    config = DecodeConfig(top_k=top_k)
    arrays = numpy_postprocess.Outputs(*([level.numpy() for level in levels] for levels in damaged))
    anchors = [boxes.numpy() for boxes in grid.split(grid.boxes)]
    found = numpy_postprocess.postprocess(arrays, anchors, [(256, 256)] * 3, config)
    for ours, theirs in zip(found, postprocess(damaged, grid, [(256, 256)] * 3, config), strict=True):
        for name in ("labels", "limited", "nonfinite"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)


def test_no_images() -> None:
    assert postprocess(predictions(make_grid(SPEC, SIZE), 2, images=0), make_grid(SPEC, SIZE), []) == []


@settings(deadline=None, max_examples=100)
@given(
    images=st.integers(1, 4),
    count=st.integers(1, 150),
    crowding=st.sampled_from([5.0, 20.0, 60.0]),
    threshold=st.sampled_from([0.3, 0.5, 1.0]),
    limit=st.sampled_from([1, 7, 1000]),
    seed=st.integers(0, 10_000),
)
def test_suppression_of_all_images_together_is_that_in_turn(
    images: int, count: int, crowding: float, threshold: float, limit: int, seed: int
) -> None:
    """The GPU's way, here on the CPU: long chains of overlaps, equal boxes, boxes without area, images with fewer."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(images, count, 2, generator=generator) * crowding).round()
    boxes = torch.cat([corner, corner + torch.randint(0, 12, (images, count, 2), generator=generator)], dim=2)
    scores = torch.rand(images, count, generator=generator).sort(dim=1, descending=True).values
    scores[0, count // 2 :] = 0
    labels = torch.randint(2, (images, count), generator=generator)
    candidates = Candidates(boxes, scores, labels)
    config = DecodeConfig(nms=threshold, max_detections=limit).resolved()
    apart = boxes.double() + (labels * 1000)[..., None]
    for found, expected in zip(
        suppress_together(candidates, apart, config), suppress_in_turn(candidates, apart, config), strict=True
    ):
        assert equal(found, expected)


def test_a_chain_of_overlaps_takes_as_many_rounds_as_it_is_long() -> None:
    """Each box overlaps only its neighbours, so every second one stays."""
    left = torch.arange(40) * 3.0
    boxes = torch.stack([left, torch.zeros(40), left + 10, torch.full((40,), 10.0)], dim=1)[None]
    candidates = Candidates(boxes, torch.linspace(0.9, 0.1, 40)[None], torch.zeros(1, 40, dtype=torch.int64))
    (found,) = suppress_together(candidates, boxes.double(), DecodeConfig(nms=0.5).resolved())
    assert found.boxes[:, 0].tolist() == [6.0 * i for i in range(20)]
