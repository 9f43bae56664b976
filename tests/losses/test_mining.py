from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baseline_scene import Array, Labels, all_levels, cross_entropy, gradients, scene
from detection_scene import CLASSES
from retinanet.anchors import BACKGROUND, IGNORE, Matches
from retinanet.config import LossConfig
from retinanet.losses import detection_losses, ohem_loss


def overlap(box: Array, others: Array) -> Array:
    """IoU of one box with many."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    iou: Array = shared / ((box[2] - box[0]) * (box[3] - box[1]) + areas - shared)
    return iou


def left_by_suppression(hardness: Array, anchors: Array, considered: list[int], nms_iou: float) -> list[int]:
    """Hardest first (the first of equals), each anchor stays unless it overlaps one that has stayed."""
    kept: list[int] = []
    for i in sorted(considered, key=lambda i: -hardness[i]):
        if not kept or overlap(anchors[i], anchors[kept]).max() <= nms_iou:
            kept.append(i)
    return kept


def mined(
    x: Array, labels: Labels, anchors: Array, batch: int, nms_iou: float, ratio: int | None
) -> tuple[float, Array, list[int]]:
    """OHEM's loss of one image, its gradient p − y on the anchors that count, and which these are."""
    target = (labels[:, None] == np.arange(x.shape[1])).astype(np.float64)
    hardness = (np.logaddexp(0, x) - x * target).sum(axis=1)  # −y log p − (1 − y) log(1 − p)
    considered = [i for i in range(len(labels)) if labels[i] != IGNORE]
    left = left_by_suppression(hardness, anchors, considered, nms_iou)
    if ratio is None:
        chosen = left[:batch]
    else:
        foreground = [i for i in left if labels[i] >= 0][: batch // 4]
        chosen = foreground + [i for i in left if labels[i] == BACKGROUND][: 3 * max(1, len(foreground))]
    gradient = np.zeros_like(x)
    gradient[chosen] = 1 / (1 + np.exp(-x[chosen])) - target[chosen]
    return float(hardness[chosen].sum()), gradient, chosen


def crowd(
    seed: int, count: int, extent: int, foreground: float = 0.1, ignored: float = 0.1
) -> tuple[Array, Labels, Array]:
    """Logits, labels and anchors at random.

    Corners are whole numbers, so that an IoU of ¼, ½ or 0.7 exactly is compared alike in float32 and float64.
    """
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, extent, (count, 2))
    anchors = np.concatenate([corner, corner + rng.integers(8, 40, (count, 2))], axis=1).astype(np.float64)
    kind = rng.uniform(size=count)
    labels = np.where(kind < foreground, rng.integers(0, CLASSES, count), BACKGROUND)
    labels = np.where(kind > 1 - ignored, IGNORE, labels)
    return rng.normal(0, 3, (count, CLASSES)), labels, anchors


def check(
    x: Array, labels: Labels, anchors: Array, batch: int, nms_iou: float = 0.5, ratio: int | None = None
) -> list[int]:
    """Loss, count and gradient are the oracle's; returns which anchors count."""
    logits = torch.from_numpy(x).requires_grad_()
    boxes = torch.from_numpy(anchors).float()
    loss, count = ohem_loss(logits, torch.from_numpy(labels), boxes, batch, nms_iou, ratio)
    value, gradient, chosen = mined(x, labels, anchors, batch, nms_iou, ratio)
    assert loss.shape == count.shape == ()
    assert count.dtype == torch.int64
    assert count.item() == len(chosen)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(value, rel=1e-12)
    (found,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert set(np.flatnonzero(found.numpy().any(axis=1)).tolist()) == set(chosen)
    return chosen


def test_the_papers_best_setting_is_the_default() -> None:
    x, labels, anchors = crowd(0, 2600, 500)
    loss, count = ohem_loss(torch.from_numpy(x), torch.from_numpy(labels), torch.from_numpy(anchors).float())
    assert count == 128
    assert loss.item() == pytest.approx(mined(x, labels, anchors, 128, 0.5, None)[0], rel=1e-12)
    assert (LossConfig().ohem_batch, LossConfig().ohem_nms) == (128, 0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("nms_iou", [0.5, 0.7])
@pytest.mark.parametrize("batch", [128, 256, 512])
def test_the_papers_settings(batch: int, nms_iou: float, seed: int) -> None:
    """Section 5.1: minibatches of 128, 256 and 512, non-maximum suppression at 0.5 and 0.7."""
    x, labels, anchors = crowd(seed, 2600, 500)
    assert len(check(x, labels, anchors, batch, nms_iou)) == batch


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("nms_iou", [0.5, 0.7])
@pytest.mark.parametrize("batch", [128, 512])
def test_the_papers_settings_with_three_background_to_one_foreground(batch: int, nms_iou: float, seed: int) -> None:
    x, labels, anchors = crowd(seed, 2600, 500)
    chosen = check(x, labels, anchors, batch, nms_iou, ratio=3)
    foreground = int((labels[chosen] >= 0).sum())
    assert 0 < foreground <= batch // 4
    assert len(chosen) == 4 * foreground


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 300),
    extent=st.sampled_from([1, 5, 20, 60, 150]),
    batch=st.sampled_from([4, 7, 10, 13, 40]),
    nms_iou=st.sampled_from([0.25, 0.5, 0.7, 1.0]),
    shares=st.sampled_from([(0.1, 0.1), (0.0, 0.0), (0.0, 0.3), (0.5, 0.0), (1.0, 0.0), (0.0, 1.0)]),
    ratio=st.sampled_from([None, 3]),
)
def test_any_image(
    seed: int,
    count: int,
    extent: int,
    batch: int,
    nms_iou: float,
    shares: tuple[float, float],
    ratio: int | None,
) -> None:
    x, labels, anchors = crowd(seed, count, extent, *shares)
    chosen = check(x, labels, anchors, batch, nms_iou, ratio)
    assert len(chosen) <= batch
    assert (labels[chosen] != IGNORE).all()


@given(
    losses=st.lists(st.integers(40, 43), max_size=40),
    batch=st.integers(4, 12),
    seed=st.integers(0, 2**32),
    ratio=st.sampled_from([None, 3]),
)
def test_of_equally_hard_anchors_the_first_count(losses: list[int], batch: int, seed: int, ratio: int | None) -> None:
    """Wrong by 40 or more, an anchor's loss is |logit| exactly."""
    _, labels, anchors = crowd(seed, len(losses), 60, 0.3)
    labels = np.minimum(labels, 0)
    x = (np.where(labels == 0, -1.0, 1.0) * losses)[:, None]
    check(x, labels, anchors, batch, 0.5, ratio)


@pytest.mark.parametrize("seed", range(4))
def test_crowded_images(seed: int) -> None:
    """So many anchors overlap that the hardest 16 for each that counts do not suffice."""
    x, labels, anchors = crowd(seed, 1200, 25)
    hardness = np.where(labels != IGNORE, cross_entropy(x, labels, None)[0].sum(axis=1), -1.0)
    few = left_by_suppression(hardness, anchors, np.argsort(-hardness)[: 16 * 24].tolist(), 0.25)
    assert len(few) < len(check(x, labels, anchors, 24, 0.25))


def clusters(count: int, size: int) -> tuple[Array, Labels, Array]:
    """Groups of anchors that suppress one another; the first group's are the hardest, then the second's, …"""
    rng = np.random.default_rng(0)
    corner = 100 * np.stack(np.divmod(np.arange(count), 20), axis=1).repeat(size, axis=0)
    anchors = np.concatenate([corner, corner + 40], axis=1) + rng.integers(-1, 2, (count * size, 4))
    level = 8 - 10 * np.arange(count).repeat(size) / count
    x = level[:, None] + rng.uniform(0, 0.02, (count * size, CLASSES))
    order = rng.permutation(count * size)
    labels = np.full(count * size, BACKGROUND)
    return x[order], labels, anchors[order].astype(np.float64)


@pytest.mark.parametrize(("batch", "counting"), [(40, 40), (128, 128), (400, 200)])
def test_where_the_hardest_anchors_all_overlap(batch: int, counting: int) -> None:
    """However many of the hardest are duplicates, the anchors that count are those of suppressing all of them."""
    x, labels, anchors = clusters(200, 45)
    hardest = np.argsort(-np.logaddexp(0, x).sum(axis=1))[: 16 * batch].tolist()
    few = left_by_suppression(np.logaddexp(0, x).sum(axis=1), anchors, hardest, 0.5)
    assert len(few) < counting if batch > 40 else len(few) == 15  # 16 anchors for each that counts are too few
    assert len(check(x, labels, anchors, batch)) == counting


def apart(count: int) -> Array:
    """Anchors none of which overlaps another."""
    corner = 50.0 * np.stack(np.divmod(np.arange(count), 25), axis=1)
    return np.concatenate([corner, corner + 40], axis=1)


@pytest.mark.parametrize(
    ("foreground", "background", "batch", "counting"),
    [
        (10, 100, 16, (4, 12)),
        (10, 100, 19, (4, 12)),
        (10, 100, 20, (5, 15)),
        (2, 100, 16, (2, 6)),
        (0, 100, 16, (0, 3)),
        (10, 5, 16, (4, 5)),
        (10, 0, 16, (4, 0)),
        (0, 2, 16, (0, 2)),
        (1, 9, 4, (1, 3)),
    ],
)
def test_three_background_anchors_for_each_foreground_one(
    foreground: int, background: int, batch: int, counting: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    total = foreground + background
    labels = rng.permutation(np.concatenate([rng.integers(0, CLASSES, foreground), np.full(background, BACKGROUND)]))
    x = rng.normal(0, 3, (total, CLASSES))
    chosen = check(x, labels, apart(total), batch, ratio=3)
    assert ((labels[chosen] >= 0).sum(), (labels[chosen] < 0).sum()) == counting
    losses = cross_entropy(x, labels, None)[0].sum(axis=1)
    for kind, count in zip((labels >= 0, labels < 0), counting, strict=True):  # the hardest of each kind
        expected = np.flatnonzero(kind)[np.argsort(-losses[kind])[:count]]
        assert {i for i in chosen if kind[i]} == set(expected.tolist())


def test_suppression_is_by_loss_not_by_score() -> None:
    """A foreground anchor that is missed outlives the background anchor upon it that scores higher."""
    x = np.array([[-4.0], [1.0]])  # losses 4.02 and 1.31
    anchors = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    assert check(x, np.array([0, BACKGROUND]), anchors, 8) == [0]
    assert check(x, np.array([BACKGROUND, BACKGROUND]), anchors, 8) == [1]
    assert check(x, np.array([0, BACKGROUND]), anchors, 8, nms_iou=0.95) == [0, 1]
    assert check(x, np.array([0, BACKGROUND]), anchors, 8, ratio=3) == [0]  # also between foreground and background


@pytest.mark.parametrize("ratio", [None, 3])
def test_ignored_anchors_take_no_part(ratio: int | None) -> None:
    """They neither count nor suppress, however hard they would be."""
    x, labels, anchors = crowd(3, 400, 120, ignored=0.4)
    x[labels == IGNORE] = 50.0
    chosen = check(x, labels, anchors, 64, ratio=ratio)
    assert (labels[chosen] != IGNORE).all()
    rest = labels != IGNORE
    among_rest = check(x[rest], labels[rest], anchors[rest], 64, ratio=ratio)
    assert chosen == np.flatnonzero(rest)[among_rest].tolist()


@pytest.mark.parametrize("ratio", [None, 3])
@pytest.mark.parametrize("count", [0, 7])
def test_nothing_to_learn_from(count: int, ratio: int | None) -> None:
    logits = torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(count, 4)
    loss, counting = ohem_loss(logits, torch.full((count,), IGNORE), anchors, 16, 0.5, ratio)
    assert loss.item() == 0
    assert counting.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape
    assert (logits.grad == 0).all()


def test_with_fewer_anchors_than_the_batch_it_is_cross_entropy() -> None:
    x, labels, _ = crowd(4, 60, 100)
    chosen = check(x, labels, apart(60), 128)
    assert sorted(chosen) == np.flatnonzero(labels != IGNORE).tolist()
    loss, _ = ohem_loss(torch.from_numpy(x), torch.from_numpy(labels), torch.from_numpy(apart(60)).float())
    assert loss.item() == pytest.approx(cross_entropy(x, labels, None)[0].sum(), rel=1e-12)


@pytest.mark.parametrize("ratio", [None, 3])
def test_gradcheck(ratio: int | None) -> None:
    x, labels, anchors = crowd(5, 40, 60, 0.3)
    boxes, classes = torch.from_numpy(anchors).float(), torch.from_numpy(labels)
    logits = torch.from_numpy(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ohem_loss(v, classes, boxes, 12, 0.5, ratio)[0], (logits,))


@pytest.mark.parametrize("ratio", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_also_under_autocast(dtype: torch.dtype, ratio: int | None) -> None:
    x, labels, anchors = crowd(6, 300, 150)
    logits = torch.from_numpy(x).to(dtype).requires_grad_()
    boxes, classes = torch.from_numpy(anchors).float(), torch.from_numpy(labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, count = ohem_loss(logits, classes, boxes, 32, 0.5, ratio)
    exact = logits.detach().double().numpy()
    value, gradient, chosen = mined(exact, labels, anchors, 32, 0.5, ratio)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert count.item() == len(chosen)
    (found,) = torch.autograd.grad(loss, logits)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.double().numpy(), gradient, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 1e-2
    )


@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("label", [0, BACKGROUND, IGNORE])
def test_finite_for_large_logits(value: float, label: int) -> None:
    logits = torch.full((3, 2), value, requires_grad=True)
    anchors = torch.from_numpy(apart(3)).float()
    loss, _ = ohem_loss(logits, torch.full((3,), label), anchors, 8)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("name", "ratio"), [("ohem", None), ("ohem_1_3", 3)])
@pytest.mark.parametrize("nms_iou", [0.5, 0.7])
@pytest.mark.parametrize("normalizer", ["batch", "rank", "moving"])
def test_mining_through_the_objective(name: str, ratio: int | None, nms_iou: float, normalizer: str) -> None:
    """Each image is mined by itself; the sum is divided by the number of anchors that count in the batch."""
    outputs, grid, matched, boxes, classes, labels = scene()
    config = LossConfig(
        classification=name,  # type: ignore[arg-type]
        ohem_batch=12,
        ohem_nms=nms_iou,
        normalizer=normalizer,  # type: ignore[arg-type]
    )
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, config)
    x, anchors = all_levels(outputs.logits), grid.boxes.double().numpy()
    parts = [mined(x[i], labels[i], anchors, 12, nms_iou, ratio) for i in range(3)]
    count = sum(len(chosen) for _, _, chosen in parts)
    assert count < (labels != IGNORE).sum()
    assert len({len(chosen) for _, _, chosen in parts}) > (1 if ratio else 0)
    assert losses.classification.item() == pytest.approx(sum(value for value, _, _ in parts) / count, rel=1e-12)
    expected = np.stack([gradient for _, gradient, _ in parts]) / count
    np.testing.assert_allclose(gradients(losses.classification, outputs.logits), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "ratio"), [("ohem", None), ("ohem_1_3", 3)])
def test_mining_divided_image_by_image(name: str, ratio: int | None) -> None:
    outputs, grid, matched, boxes, classes, labels = scene()
    config = LossConfig(classification=name, ohem_batch=12, normalizer="image")  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, config)
    x, anchors = all_levels(outputs.logits), grid.boxes.double().numpy()
    parts = [mined(x[i], labels[i], anchors, 12, 0.5, ratio) for i in range(3)]
    expected = sum(value / len(chosen) for value, _, chosen in parts) / 3
    assert losses.classification.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["ohem", "ohem_1_3"])
def test_mining_where_every_anchor_is_ignored(name: str) -> None:
    outputs, grid, matched, boxes, classes, _ = scene(torch.float32)
    ignored = torch.full_like(matched, IGNORE)
    config = LossConfig(classification=name)  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(ignored), boxes, classes, config)
    assert losses.total.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and (t.grad == 0).all() for t in outputs.logits)
