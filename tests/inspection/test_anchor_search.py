"""The search for anchors: what it reaches on boxes whose anchors are known, and that chance has no part in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet.anchors import AnchorSpec
from retinanet.inspection.anchor_coverage import ScaledBoxes
from retinanet.inspection.anchor_search import AnchorCoverage, class_weights, refit, search_anchors


def boxes_of(width: tuple[float, float], ratio: tuple[float, float], count: int = 400, seed: int = 0) -> ScaledBoxes:
    """Boxes in 512×640 images, width and height ÷ width evenly from the given ranges, in octaves."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(width[0]), np.log(width[1]), count))
    shape = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), count))
    size = np.minimum(np.stack([side, side * shape], axis=1), (620, 500))
    corner = rng.uniform(0, 1, (count, 2)) * ((640, 512) - size)
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return ScaledBoxes(boxes, np.tile(np.array([[512, 640]]), (count, 1)))


def share(boxes: ScaledBoxes, spec: AnchorSpec, threshold: float = 0.5) -> float:
    return AnchorCoverage.of(boxes.best_overlaps(spec), threshold).share


def close(boxes: ScaledBoxes, spec: AnchorSpec) -> float:
    """Mean of the shares of boxes with an anchor of IoU 0.5, 0.6 and 0.7, counted box by box."""
    shares = [sum(value >= least for value in boxes.best_overlaps(spec).tolist()) for least in (0.5, 0.6, 0.7)]
    return float(sum(shares)) / 3 / len(boxes)


def test_more_boxes_are_covered_but_not_at_the_price_of_close_anchors() -> None:
    """Standing people: a search for the share at 0.5 alone gets 4 % more there, and halves the share at 0.7."""
    boxes = boxes_of((8, 150), (1, 3), 1000)
    before, after = (boxes.best_overlaps(spec) for spec in (AnchorSpec(), search_anchors(boxes, AnchorSpec()).spec))
    assert (after >= 0.5).mean() > (before >= 0.5).mean() + 0.1
    assert (after >= 0.7).mean() > (before >= 0.7).mean()


def test_a_rare_class_is_not_given_up_for_a_common_one() -> None:
    """Sixty lying bars of 6:1 among 2,000 blocks; one shape may have them all, or two may share."""
    blocks, bars = boxes_of((40, 120), (0.8, 1.25), 2000), boxes_of((120, 300), (1 / 6.5, 1 / 5.5), 60)
    boxes = ScaledBoxes(np.concatenate([blocks.boxes, bars.boxes]), np.concatenate([blocks.canvas, bars.canvas]))
    weights = class_weights(np.repeat([7, 3], [2000, 60]))
    assert weights[:2000].sum() == pytest.approx(weights[2000:].sum())
    assert weights.mean() == pytest.approx(1)
    alike, pooled = (search_anchors(boxes, AnchorSpec(), 2, 2, weights=each).spec for each in (weights, None))
    assert close(bars, alike) > close(bars, pooled) + 0.1
    assert close(blocks, alike) > 0.8


def test_long_thin_objects() -> None:
    """Lying bars of 9:1, of which the paper's anchors cover hardly any."""
    boxes = boxes_of((120, 400), (1 / 10, 1 / 8))
    assert share(boxes, AnchorSpec()) < 0.2
    fit = search_anchors(boxes, AnchorSpec())
    others = boxes_of((120, 400), (1 / 10, 1 / 8), seed=1)
    assert share(boxes, fit.spec) > 0.9
    assert share(others, fit.spec) > 0.9
    assert fit.coverage.share == pytest.approx(share(boxes, fit.spec))


def test_the_same_boxes_give_the_same_anchors() -> None:
    boxes = boxes_of((10, 60), (0.5, 3))
    seen: list[int] = []
    first = search_anchors(boxes, AnchorSpec(), 2, 2, progress=seen.append)
    assert first == search_anchors(boxes, AnchorSpec(), 2, 2)
    assert sum(seen) == 2 * 2 + 2


@settings(max_examples=4)
@given(
    seed=st.integers(0, 1000),
    width=st.floats(8, 80),
    ratio=st.floats(0.15, 6),
    layout=st.sampled_from(["paper", "torchvision"]),
)
def test_never_worse_than_the_start_and_within_what_was_asked(
    seed: int, width: float, ratio: float, layout: str
) -> None:
    boxes = boxes_of((width, 3 * width), (ratio, 1.5 * ratio), 60, seed)
    start = AnchorSpec(layout="torchvision" if layout == "torchvision" else "paper")
    start = replace(start, scales=(1.0, 1.4), ratios=(0.7, 1.4))
    fit = search_anchors(boxes, start, 2, 2)
    assert len(fit.spec.scales) <= 2
    assert len(fit.spec.ratios) <= 2
    assert (fit.spec.layout, fit.spec.strides) == (start.layout, start.strides)
    assert fit.spec.scales[0] == 1
    assert list(fit.spec.scales) == sorted(fit.spec.scales)
    assert close(boxes, fit.spec) >= close(boxes, start) - 0.002
    assert set(fit.table) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert max(fit.table.values()).close >= close(boxes, start)


def test_one_shape_needs_one_anchor() -> None:
    """Squares of 90 pixels: more anchors than one would be no closer to them."""
    boxes = boxes_of((90, 90.01), (1, 1.001))
    fit = search_anchors(boxes, AnchorSpec(), 2, 2)
    assert fit.coverage.close == 1
    assert fit.spec.per_location == 1
    nearest = min(fit.spec.sizes, key=lambda size: abs(size - 90))
    assert nearest == pytest.approx(90, rel=0.1)


def test_the_threshold_counts() -> None:
    boxes = boxes_of((20, 100), (0.4, 2.5))
    strict, lax = (search_anchors(boxes, AnchorSpec(), 2, 2, threshold).spec for threshold in (0.7, 0.4))
    assert share(boxes, strict, 0.7) > share(boxes, lax, 0.7)
    assert share(boxes, lax, 0.4) >= share(boxes, strict, 0.4)


def test_refit_starts_where_it_is_told() -> None:
    boxes = boxes_of((10, 40), (0.5, 2))
    assert refit(boxes, AnchorSpec()).share > share(boxes, AnchorSpec()) + 0.2


def test_coverage_leaves_out_what_is_unknown() -> None:
    overlaps = np.array([0.5, np.nan, 0.3, 0.9], dtype=np.float32)
    found = AnchorCoverage.of(overlaps, 0.5)
    assert found.share == pytest.approx(2 / 3)
    assert found.mean == pytest.approx(1.7 / 3)
    assert found.close == pytest.approx((2 + 1 + 1) / 9)
    assert AnchorCoverage.of(overlaps, 0.3).close == pytest.approx((3 + 2 + 1) / 9)  # from 0.3, 0.44 and 0.58
    weighted = AnchorCoverage.of(overlaps, 0.5, np.array([3, 9, 2, 1], dtype=np.float32))
    assert weighted.close == pytest.approx((4 + 1 + 1) / 18)
    assert (weighted.share, weighted.mean) == (found.share, found.mean)
    assert AnchorCoverage.of(overlaps[1:2], 0.5) == AnchorCoverage(0.0, 0.0, 0.0)
    assert AnchorCoverage(0.6, 0.8, 0.5) > AnchorCoverage(0.5, 0.9, 0.9)
    assert AnchorCoverage(0.6, 0.9, 0.3) > AnchorCoverage(0.6, 0.9, 0.2)
