"""The sparse result of an assignment is the dense one, whole and by ranges of images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retinanet.anchors import BACKGROUND, IGNORE, AnchorSpec, Matches, assign_batch, make_grid, match_batch
from retinanet.config import AssignConfig


@given(images=st.integers(0, 4), anchors=st.integers(1, 30), seed=st.integers(0, 1000))
def test_there_and_back(images: int, anchors: int, seed: int) -> None:
    matched = torch.randint(IGNORE, 5, (images, anchors), generator=torch.Generator().manual_seed(seed))
    matches = Matches.from_dense(matched)
    assert torch.equal(matches.dense(), matched)
    assert len(matches.positive) == len(matches.box) == int((matched >= 0).sum())
    for first in range(images + 1):
        for last in range(images + 1):
            part = matches[first:last]
            assert part.images == max(0, last - first)
            assert torch.equal(part.dense(), matched[first:last])


def test_a_range_with_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="first:last"):
        Matches.all_ignored(3, 2)[::2]


def test_nothing_is_learned_where_all_are_ignored() -> None:
    assert (Matches.all_ignored(2, 5).dense() == IGNORE).all()


@pytest.mark.parametrize("method", ["iou", "atss"])
def test_positive_and_ignored_anchors_are_apart_and_in_order(method: str) -> None:
    grid = make_grid(AnchorSpec(), (128, 160))
    boxes = [torch.tensor([[10.0, 10, 60, 70], [12, 12, 62, 70]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 30, 30]])]
    ignore = [torch.tensor([[40.0, 40, 160, 128]]), torch.tensor([[0.0, 0, 160, 128]]), torch.zeros(0, 4)]
    config = AssignConfig(method=method)  # type: ignore[arg-type]
    matches = match_batch(grid, boxes, ignore, config)
    assert len(matches.positive) > 2
    assert len(matches.ignored) > len(grid.boxes)
    for anchors in (matches.positive, matches.ignored):
        assert (anchors.diff() > 0).all()
    assert not torch.isin(matches.positive, matches.ignored).any()
    assert torch.equal(matches.dense(), assign_batch(grid, boxes, ignore, config))
    assert (matches.dense() == BACKGROUND).any()
