from __future__ import annotations

import itertools
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead

from retinanet.anchors import BACKGROUND, IGNORE, AnchorGrid, AnchorSpec, Matches, assign_batch, make_grid
from retinanet.config import LossConfig
from retinanet.losses import Losses, Normalizer, detection_losses
from retinanet.model import Outputs

SPEC = AnchorSpec(sizes=(32.0, 64.0), scales=(1.0, 1.3), ratios=(1.0,), strides=(16, 32))
SIZE = (64, 96)
CLASSES = 3


def predictions(grid: AnchorGrid, images: int, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(images, n, CLASSES, generator=generator) * 3 for n in grid.level_sizes]
    deltas = [torch.randn(images, n, 4, generator=generator) for n in grid.level_sizes]
    return Outputs([t.requires_grad_() for t in logits], [t.requires_grad_() for t in deltas])


def slow(
    outputs: Outputs, grid: AnchorGrid, matched: Tensor, boxes: Tensor, labels: Tensor, alpha: float, gamma: float
) -> tuple[float, float, int]:
    """Anchor by anchor in double precision."""
    beta = 0.11
    logits = torch.cat([t.detach() for t in outputs.logits], dim=1).tolist()
    deltas = torch.cat([t.detach() for t in outputs.deltas], dim=1).tolist()
    anchors, truth, classes = grid.boxes.tolist(), boxes.tolist(), labels.tolist()
    classification = box = 0.0
    foreground = 0
    for image, row in enumerate(matched.tolist()):
        for index, match in enumerate(row):
            if match == IGNORE:
                continue
            for k, logit in enumerate(logits[image][index]):
                positive = match >= 0 and classes[match] == k
                p = 1 / (1 + math.exp(-logit))
                p_t, a_t = (p, alpha) if positive else (1 - p, 1 - alpha)
                classification -= a_t * (1 - p_t) ** gamma * math.log(p_t)
            if match < 0:
                continue
            foreground += 1
            x1, y1, x2, y2 = anchors[index]
            u1, v1, u2, v2 = truth[match]
            target = [
                ((u1 + u2) / 2 - (x1 + x2) / 2) / (x2 - x1),
                ((v1 + v2) / 2 - (y1 + y2) / 2) / (y2 - y1),
                math.log((u2 - u1) / (x2 - x1)),
                math.log((v2 - v1) / (y2 - y1)),
            ]
            for predicted, wanted in zip(deltas[image][index], target, strict=True):
                d = abs(predicted - wanted)
                box += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return classification / max(1, foreground), box / max(1, foreground), foreground


def scene() -> tuple[AnchorGrid, Tensor, Tensor, Tensor]:
    """Three images: two objects and an ignore region, none, one object."""
    grid = make_grid(SPEC, SIZE)
    images = [
        torch.tensor([[1.0, 2.0, 34.0, 30.0], [30.0, 0.0, 92.0, 60.0]]),
        torch.zeros(0, 4),
        torch.tensor([[50.0, 20.0, 80.0, 48.0]]),
    ]
    ignore = [torch.tensor([[60.0, 30.0, 96.0, 64.0]]), torch.zeros(0, 4), torch.zeros(0, 4)]
    matched = assign_batch(grid, images, ignore)
    assert {IGNORE, BACKGROUND, 0, 1, 2} == set(matched.flatten().tolist())  # everything occurs
    return grid, matched, torch.cat(images), torch.tensor([2, 0, 1])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.0), (0.5, 0.5)])
def test_against_a_slow_oracle(alpha: float, gamma: float) -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(
        outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(alpha=alpha, gamma=gamma)
    )
    classification, box, foreground = slow(outputs, grid, matched, boxes, labels, alpha, gamma)
    assert losses.foreground.item() == foreground > 3
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)
    assert losses.total.item() == pytest.approx(classification + box, rel=1e-5)


def test_the_box_weight_scales_the_box_loss_only() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    once = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    twice = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(box_weight=2.0))
    assert twice.box.item() == pytest.approx(2 * once.box.item())
    assert twice.classification.item() == once.classification.item()


def test_gradients_flow_only_where_they_should() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    losses.total.backward()  # type: ignore[no-untyped-call]
    for level, part in enumerate(grid.split(matched, 1)):
        logits, deltas = outputs.logits[level].grad, outputs.deltas[level].grad
        assert logits is not None
        assert deltas is not None
        assert torch.equal((logits != 0).all(dim=-1), part != IGNORE)
        assert torch.equal((logits != 0).any(dim=-1), part != IGNORE)
        assert torch.equal((deltas != 0).any(dim=-1), part >= 0)


def test_normalised_by_the_foreground_of_the_whole_batch() -> None:
    """Not image by image: an image with one foreground anchor weighs as much per anchor as one with many."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    together = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    sums = torch.zeros(2)
    count = 0
    for row in range(3):
        alone = Outputs([t[row : row + 1] for t in outputs.logits], [t[row : row + 1] for t in outputs.deltas])
        losses = detection_losses(alone, grid, Matches.from_dense(matched[row : row + 1]), boxes, labels, LossConfig())
        foreground = int(losses.foreground)
        count += foreground
        sums += torch.stack([losses.classification, losses.box]).detach() * max(1, foreground)
    assert together.foreground.item() == count
    torch.testing.assert_close(torch.stack([together.classification, together.box]).detach(), sums / count)


def test_a_batch_without_objects() -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 2)
    matched = assign_batch(grid, [torch.zeros(0, 4)] * 2, [torch.zeros(0, 4)] * 2)
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), nothing, no_labels, LossConfig())
    classification, _, _ = slow(outputs, grid, matched, nothing, no_labels, 0.25, 2.0)
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)  # divided by 1, not by 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in outputs.logits)
    assert all(t.grad is None or t.grad.abs().sum() == 0 for t in outputs.deltas)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou", "ciou"])
def test_objects_that_no_anchor_reaches(kind: str) -> None:
    grid = make_grid(SPEC, SIZE)
    outputs = predictions(grid, 1)
    boxes, labels = torch.tensor([[3.0, 3.0, 5.0, 5.0]]), torch.tensor([1])
    matched = assign_batch(grid, [boxes], [torch.zeros(0, 4)])
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(box=kind))  # type: ignore[arg-type]
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in outputs.logits)


def test_float32_from_bfloat16_outputs() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    rounded = Outputs([t.detach().bfloat16() for t in outputs.logits], [t.detach().bfloat16() for t in outputs.deltas])
    exact = Outputs([t.float() for t in rounded.logits], [t.float() for t in rounded.deltas])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detection_losses(rounded, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    assert losses.total.dtype == torch.float32
    expected = detection_losses(exact, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    assert losses.total.item() == pytest.approx(expected.total.item(), rel=1e-6)


def part(outputs: Outputs, first: int, last: int) -> Outputs:
    """The predictions for images ``first`` … ``last`` − 1."""
    return Outputs([t[first:last] for t in outputs.logits], [t[first:last] for t in outputs.deltas])


def gradients(loss: Tensor, outputs: Outputs) -> Tensor:
    """Of logits and deltas of all levels, in one vector."""
    leaves = (*outputs.logits, *outputs.deltas)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return torch.cat([torch.zeros(t.numel()) if g is None else g.flatten() for g, t in zip(found, leaves, strict=True)])


@pytest.mark.parametrize("normalizer", ["batch", "rank"])
def test_the_papers_normalisation_in_one_formula(normalizer: str) -> None:
    """Sums over all images ÷ foreground anchors of all images; on one process each process's own is the same."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    config = LossConfig(normalizer=normalizer)  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config, Normalizer(config))
    of_images = [slow(part(outputs, i, i + 1), grid, matched[i : i + 1], boxes, labels, 0.25, 2.0) for i in range(3)]
    counts = [foreground for _, _, foreground in of_images]
    assert len(set(counts)) == 3
    classification, box = (sum(row[k] * max(1, row[2]) for row in of_images) / sum(counts) for k in (0, 1))
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)


def test_accumulated_gradients_are_those_of_one_batch() -> None:
    """Parts whose losses are multiplied by their foreground anchors and divided by all."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    whole = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig())
    expected = gradients(whole.total, outputs)
    accumulated = torch.zeros_like(expected)
    for first, last in ((0, 1), (1, 3)):
        losses = detection_losses(
            part(outputs, first, last), grid, Matches.from_dense(matched[first:last]), boxes, labels, LossConfig()
        )
        assert losses.foreground > 0
        accumulated += gradients(losses.total * losses.foreground / whole.foreground, outputs)
    torch.testing.assert_close(accumulated, expected)


@pytest.mark.parametrize("box", ["l1", "giou"])
def test_normalised_image_by_image_as_torchvision(box: str) -> None:
    """Its heads' own losses, for the same predictions, anchors and matches; α = 0.25 and γ = 2 are its defaults."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    config = LossConfig(box=box, normalizer="image")  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config, Normalizer(config))
    starts = (0, 2, 2, 3)  # objects of the images before
    targets = [{"boxes": boxes[a:b], "labels": labels[a:b]} for a, b in itertools.pairwise(starts)]
    own = [torch.where(row >= 0, row - start, row) for row, start in zip(matched, starts[:3], strict=True)]
    theirs = {"cls_logits": torch.cat(outputs.logits, dim=1), "bbox_regression": torch.cat(outputs.deltas, dim=1)}
    regression = RetinaNetRegressionHead(4, 2)
    regression._loss_type = box
    classification_loss = RetinaNetClassificationHead(4, 2, CLASSES).compute_loss(targets, theirs, own)
    box_loss = regression.compute_loss(targets, theirs, [grid.boxes] * 3, own)
    assert losses.foreground.item() == (matched >= 0).sum()
    torch.testing.assert_close(losses.classification, classification_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.box, box_loss, rtol=1e-5, atol=0)
    ours, expected = (gradients(total, outputs) for total in (losses.total, classification_loss + box_loss))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    paper = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, LossConfig(box=box))  # type: ignore[arg-type]
    assert losses.box.item() != pytest.approx(paper.box.item(), rel=0.01)


def test_image_by_image_is_the_mean_of_one_image_batches() -> None:
    """Whatever the losses."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    for classification in ("focal", "focal_star", "ce", "quality_focal", "varifocal", "ohem_1_3"):
        config = LossConfig(
            classification=classification,
            box="diou",
            box_weight=2.0,
            normalizer="image",
        )
        together = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config)
        alone = [
            detection_losses(
                part(outputs, i, i + 1), grid, Matches.from_dense(matched[i : i + 1]), boxes, labels, config
            )
            for i in range(3)
        ]
        for name in ("classification", "box", "total"):
            mean = sum(getattr(losses, name).item() for losses in alone) / 3
            assert getattr(together, name).item() == pytest.approx(mean, rel=1e-5)
        assert together.foreground.item() == sum(losses.foreground.item() for losses in alone)


def test_normalised_by_a_moving_average() -> None:
    """detectron2's: from 100, nine tenths of the last and one of this batch's foreground anchors, at least 1."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    config = LossConfig(normalizer="moving")
    normalizer = Normalizer(config)
    expected = 100.0
    for first, last in ((0, 3), (1, 2), (2, 3), (0, 1), (1, 2)):
        images = part(outputs, first, last)
        losses = detection_losses(
            images, grid, Matches.from_dense(matched[first:last]), boxes, labels, config, normalizer
        )
        classification, box, foreground = slow(images, grid, matched[first:last], boxes, labels, 0.25, 2.0)
        expected = 0.9 * expected + 0.1 * max(1, foreground)
        assert losses.foreground.item() == foreground
        assert normalizer.average.item() == pytest.approx(expected, rel=1e-6)
        assert losses.classification.item() == pytest.approx(classification * max(1, foreground) / expected, rel=1e-5)
        assert losses.box.item() == pytest.approx(box * max(1, foreground) / expected, rel=1e-5)
    assert not normalizer.average.requires_grad
    fresh = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config)
    again = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config)
    assert fresh.total.item() == again.total.item()  # without a normaliser each call starts afresh


def test_the_moving_average_by_hand() -> None:
    normalizer = Normalizer(LossConfig(normalizer="moving"))
    counts, averages = (50, 0, 1, 1000), (95.0, 85.6, 77.14, 169.426)
    for count, average in zip(counts, averages, strict=True):
        assert normalizer(count) == pytest.approx(average)


@pytest.mark.parametrize("normalizer", ["batch", "image", "rank"])
def test_the_divisor_is_the_foreground_and_at_least_one(normalizer: str) -> None:
    divisor = Normalizer(LossConfig(normalizer=normalizer))  # type: ignore[arg-type]
    assert [divisor(n) for n in (7, 1, 0, 300, 2)] == [7, 1, 1, 300, 2]


SHARES = ((0, 2), (2, 3))  # images of the two processes


def shared_weights(first: int, last: int, normalizer: str, empty: bool) -> tuple[Losses, Tensor]:
    """Losses of some images under a network of two weights, and the gradient by these weights."""
    grid, matched, boxes, labels = scene()
    if empty:
        matched = torch.full_like(matched, BACKGROUND)
    fixed = predictions(grid, 3)
    weights = torch.tensor([0.7, 0.4], requires_grad=True)
    outputs = Outputs(
        [t.detach()[first:last] * weights[0] for t in fixed.logits],
        [t.detach()[first:last] * weights[1] for t in fixed.deltas],
    )
    config = LossConfig(normalizer=normalizer)  # type: ignore[arg-type]
    losses = detection_losses(
        outputs, grid, Matches.from_dense(matched[first:last]), boxes, labels, config, Normalizer(config)
    )
    (gradient,) = torch.autograd.grad(losses.total, weights)
    return losses, gradient


CASES = tuple((normalizer, empty) for empty in (False, True) for normalizer in ("batch", "rank", "moving"))


def of_one_process(rank: int, folder: str) -> None:
    """What a process of a data-parallel training does with its images: average the gradients over the processes."""
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(minutes=2), world_size=len(SHARES), rank=rank
    )
    results = []
    for normalizer, empty in CASES:
        losses, gradient = shared_weights(*SHARES[rank], normalizer, empty)
        distributed.all_reduce(gradient)
        results.append((int(losses.foreground), (gradient / len(SHARES)).tolist()))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this PyTorch has no gloo"
)
def test_two_processes_together_compute_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """Although one of them has more foreground anchors than the other; divided by each one's own, or by the moving
    average of that (which detectron2 does not share between processes), they do not.
    """
    spawn(of_one_process, (str(tmp_path),), nprocs=len(SHARES))  # type: ignore[no-untyped-call]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SHARES))]
    for (normalizer, empty), *found in zip(CASES, *results, strict=True):
        whole, expected = shared_weights(0, 3, "batch", empty)
        counts = [count for count, _ in found]
        assert sum(counts) == whole.foreground.item()  # each reports its own
        assert empty == (counts == [0, 0])
        assert empty or counts[0] != counts[1]
        (gradient, same) = (torch.tensor(values) for _, values in found)
        assert torch.equal(gradient, same)
        if normalizer == "batch":
            torch.testing.assert_close(gradient, expected)
        else:
            alone = [shared_weights(first, last, normalizer, empty)[1] for first, last in SHARES]
            torch.testing.assert_close(gradient, torch.stack(alone).mean(dim=0))
            assert not torch.allclose(gradient, expected, rtol=0.01)


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0)])
def test_focal_star_by_name(gamma: float, beta: float) -> None:
    """Sum of −α_t log(sigmoid(γ x_t + β)) / γ over foreground anchors (table 3's settings)."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    config = LossConfig(classification="focal_star", alpha=0.4, gamma=gamma, star_beta=beta)
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, labels, config)
    logits, total = torch.cat([t.detach() for t in outputs.logits], dim=1).tolist(), 0.0
    for row, matches in zip(logits, matched.tolist(), strict=True):
        for scores, match in zip(row, matches, strict=True):
            for k, x in enumerate(scores if match != IGNORE else []):
                sign, weight = (1, 0.4) if match >= 0 and labels[match] == k else (-1, 0.6)
                total += weight * math.log1p(math.exp(-(gamma * sign * x + beta))) / gamma
    assert losses.classification.item() == pytest.approx(total / losses.foreground.item(), rel=1e-5)
