"""The fused losses against their definitions on whole tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinanet.anchors import BACKGROUND, IGNORE
from retinanet.losses import focal_loss
from retinanet.losses.classification import Focal, FocalStar, QualityFocal, Varifocal
from retinanet.losses.formula import Formula
from retinanet.losses.kernels import cpu
from retinanet.losses.sum import reference_loss, summed_loss

TERMS: list[Formula] = [
    Focal(0.25, 2.0),
    Focal(None, 0.0),
    Focal(0.75, 0.0),
    Focal(1.0, 2.0),
    Focal(0.0, 2.0),
    Focal(0.3, 0.4),
    Focal(0.5, 5.0),
    FocalStar(0.25, 2.0, 1.0),
    FocalStar(None, 4.0, 0.0),
    QualityFocal(2.0),
    QualityFocal(0.7),
    Varifocal(0.75, 2.0),
    Varifocal(None, 1.5),
]


def scene(count: int, classes: int, spread: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of every kind, qualities (some 0)."""
    logits = torch.randn(count, classes, dtype=torch.float64) * spread
    kind = torch.rand(count)
    labels = torch.where(kind < 0.2, torch.randint(classes, (count,)), BACKGROUND)
    labels = torch.where(kind > 0.85, IGNORE, labels)
    quality = torch.rand(count) * (torch.rand(count) > 0.2)
    return logits.to(dtype), labels, quality


def value_and_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss * 0.37, logits)[0]


@settings(deadline=None, max_examples=150)
@given(
    terms=st.sampled_from(TERMS),
    count=st.integers(0, 60),
    classes=st.sampled_from([1, 2, 7, 40]),
    spread=st.sampled_from([0.5, 4.0, 60.0]),
    piece=st.sampled_from([1, 33, 64, 1 << 18]),
    seed=st.integers(0, 10_000),
)
def test_value_and_gradient_are_the_definitions(
    terms: Formula, count: int, classes: int, spread: float, piece: int, seed: int
) -> None:
    torch.manual_seed(seed)
    logits, labels, quality = scene(count, classes, spread)
    logits.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "PIECE_LOGITS", piece)
        value, gradient = value_and_gradient(summed_loss(logits, labels, terms, quality), logits)
    expected, slope = value_and_gradient(reference_loss(logits, labels, terms, quality), logits)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-12)
    assert (gradient[labels == IGNORE] == 0).all()


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_precisions(terms: Formula, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels, quality = scene(5000, 6, 4.0, dtype)
    logits.requires_grad_()
    value, gradient = value_and_gradient(summed_loss(logits, labels, terms, quality), logits)
    exact = logits.detach().double().requires_grad_()
    expected, slope = value_and_gradient(reference_loss(exact, labels, terms, quality), exact)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(gradient.double(), slope, rtol=tolerance, atol=1e-6)


def test_small_losses_do_not_drown_in_a_large_sum() -> None:
    """A hundred thousand easy anchors, whose sum in float32, one by one, would be off by 10⁻⁴."""
    torch.manual_seed(0)
    logits = torch.randn(120_087, 3) - 4.6
    labels = torch.full((120_087,), BACKGROUND)
    exact = reference_loss(logits.double(), labels, Focal(0.25, 2.0))
    assert focal_loss(logits, labels).item() == pytest.approx(exact.item(), rel=1e-6)


def test_sure_and_right_costs_nothing_beside_sure_and_wrong() -> None:
    """Foreground logits are never counted as background first: nothing is left of +60 that would have cost 60."""
    logits = torch.full((4000, 2), -60.0)
    labels = torch.full((4000,), BACKGROUND)
    labels[::2], logits[::2, 1] = 1, 60.0
    assert focal_loss(logits, labels).item() == 0


def test_a_second_backward_pass_gives_the_same() -> None:
    logits, labels, _ = scene(40, 3, 3.0)
    logits.requires_grad_()
    loss = focal_loss(logits, labels)
    (first,) = torch.autograd.grad(2 * loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second / 3, first / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, first / 2)


def test_logits_that_are_views() -> None:
    """As the subnets give them, and laid out otherwise."""
    base = torch.randn(2, 12, 5, 4, dtype=torch.float64)
    labels = torch.randint(-2, 3, (2, 5 * 4 * 4))
    for layout in (torch.channels_last, torch.contiguous_format):
        found = []
        for function in (summed_loss, reference_loss):
            x = base.clone(memory_format=layout).requires_grad_()
            loss = function(x.permute(0, 2, 3, 1).reshape(2, -1, 3), labels, Focal(0.25, 2.0))
            found.append(value_and_gradient(loss, x))
        torch.testing.assert_close(found[0], found[1])


def test_without_gradient_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, _ = scene(40, 3, 3.0)
    expected = reference_loss(logits, labels, Focal(0.25, 2.0))
    made: list[bool] = []
    original = cpu.value_and_gradient

    def recorded(*arguments: Any) -> Any:
        made.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(cpu, "value_and_gradient", recorded)
    torch.testing.assert_close(focal_loss(logits, labels), expected)
    logits.requires_grad_()
    with torch.no_grad():
        assert not focal_loss(logits, labels).requires_grad
    assert made == [False, False]


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="label 3 and only 3 classes"):
        focal_loss(torch.zeros(4, 3), torch.tensor([0, 3, BACKGROUND, IGNORE]))


def test_inside_torch_compile() -> None:
    logits, labels, _ = scene(40, 3, 3.0)
    compiled = torch.compile(focal_loss, backend="eager", fullgraph=True)
    found = []
    for function in (compiled, focal_loss):
        x = logits.clone().requires_grad_()
        found.append(value_and_gradient(function(x, labels), x))
    torch.testing.assert_close(found[0], found[1])


MEMORY = """
import torch
from pathlib import Path
from retinanet.losses import focal_loss

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

torch.set_num_threads(1)
logits = torch.full((120_087, 80), -4.0).requires_grad_()
labels = torch.full((120_087,), -1)
focal_loss(logits[:100], labels[:100]).backward()
logits.grad = None
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
before = peak()
focal_loss(logits, labels).backward()
print((peak() - before) / (logits.numel() * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of memory this way")
def test_extra_memory_is_the_gradient_and_little_more() -> None:
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 0.5 < float(result.stdout) < 1.2, result.stdout


def test_no_classes_and_no_anchors_cost_nothing() -> None:
    for shape in ((5, 0), (0, 3), (2, 0, 4)):
        logits = torch.zeros(shape, requires_grad=True)
        loss = focal_loss(logits, torch.zeros(shape[:-1], dtype=torch.int64) - 1)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, logits)[0].shape == shape


def test_qualities_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="quality"):
        summed_loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), Varifocal(0.75, 2.0), torch.zeros(4, 1))
