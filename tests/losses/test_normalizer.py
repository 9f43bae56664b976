"""The losses are divided by the foreground anchors: of the batch, an image, a rank or a moving average."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead

from detection_scene import CLASSES, gradients, part, predictions, scene, slow
from retinanet.anchors import BACKGROUND, Matches
from retinanet.config import LossConfig
from retinanet.losses import Losses, Normalizer, detection_losses
from retinanet.model import Outputs


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
