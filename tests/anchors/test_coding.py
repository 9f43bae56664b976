from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from retinanet.anchors import decode_boxes, encode


def boxes_of(draws: list[tuple[float, float, float, float]]) -> Tensor:
    x, y, w, h = torch.tensor(draws, dtype=torch.float64).T
    return torch.stack([x, y, x + w, y + h], dim=1)


_corner = st.floats(-100, 1400)
_side = st.floats(1, 1000)
_boxes = st.lists(st.tuples(_corner, _corner, _side, _side), min_size=1, max_size=5).map(boxes_of)


@given(boxes=_boxes, anchors=_boxes)
def test_decode_inverts_encode(boxes: Tensor, anchors: Tensor) -> None:
    count = min(len(boxes), len(anchors))
    boxes, anchors = boxes[:count], anchors[:count]
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    boxes, anchors = (b[ratio.amax(dim=1) < 60] for b in (boxes, anchors))
    torch.testing.assert_close(decode_boxes(encode(boxes, anchors), anchors), boxes, rtol=1e-9, atol=1e-9)


@given(boxes=_boxes, data=st.data())
def test_encode_inverts_decode(boxes: Tensor, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.floats(-3, 3), min_size=4 * len(boxes), max_size=4 * len(boxes)))
    deltas = torch.tensor(numbers, dtype=torch.float64).view(-1, 4)
    torch.testing.assert_close(encode(decode_boxes(deltas, boxes), boxes), deltas, rtol=1e-7, atol=1e-7)


def test_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])  # centre (5, 10)
    box = torch.tensor([[5.0, 5.0, 25.0, 15.0]])  # centre (15, 10), 20 × 10
    expected = [1.0, 0.0, math.log(2), -math.log(2)]
    assert encode(box, anchor)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert decode_boxes(torch.tensor([expected]), anchor)[0].tolist() == pytest.approx(box[0].tolist(), abs=1e-5)
    assert decode_boxes(torch.zeros(1, 4), anchor).tolist() == anchor.tolist()


def test_agrees_with_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 500
    anchors = torch.cat([corner, corner + 1 + torch.rand(50, 2, generator=generator) * 200], dim=1)
    boxes = anchors + torch.rand(50, 4, generator=generator)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(boxes, anchors), coder.encode_single(boxes, anchors), rtol=1e-4, atol=1e-5)
    deltas = torch.randn(50, 4, generator=generator) * 3  # some beyond the limit on the log scale
    theirs = coder.decode_single(deltas, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors), theirs, rtol=1e-4, atol=1e-2)


def test_sizes_are_limited() -> None:
    anchor = torch.tensor([[-8.0, -8.0, 8.0, 8.0]])
    huge = decode_boxes(torch.tensor([[0.0, 0.0, 1e4, 50.0]]), anchor)
    assert huge[0].tolist() == pytest.approx([-500.0, -500.0, 500.0, 500.0], rel=1e-5)  # 16 px × 1000/16
    tiny = decode_boxes(torch.tensor([[0.0, 0.0, -1e4, -1e4]]), anchor)
    assert tiny[0].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_leading_dimensions_broadcast() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 20.0, 12.0]])
    deltas = torch.linspace(-1, 1, 3 * 2 * 4).view(3, 2, 4)
    together = decode_boxes(deltas, anchors)
    assert together.shape == (3, 2, 4)
    assert torch.equal(together[2, 1], decode_boxes(deltas[2, 1], anchors[1]))


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 20.0, 12.0]], dtype=torch.float64)
    deltas = torch.randn(2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    boxes = (anchors + torch.rand(2, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: decode_boxes(d, anchors), (deltas,))
    assert torch.autograd.gradcheck(lambda b: encode(b, anchors), (boxes,))
