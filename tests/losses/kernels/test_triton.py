"""The GPU kernel, run by Triton's interpreter on the CPU, against the definitions in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CHECK = """
import torch
from retinanet.losses.classification import Focal, FocalStar, QualityFocal, Varifocal
from retinanet.losses.kernels import triton
from retinanet.losses.sum import SumByKernel, reference_loss

def summed(logits, labels, formula, quality, divisor=1.0):
    requires_grad = torch.is_grad_enabled() and logits.requires_grad
    return SumByKernel.apply(logits, labels, formula, quality, divisor, triton, requires_grad)


TERMS = [Focal(0.25, 2.0), Focal(None, 0.0), Focal(0.75, 0.0), Focal(0.3, 0.4), Focal(0.5, 5.0),
         FocalStar(0.25, 2.0, 1.0), FocalStar(None, 4.0, 0.0), QualityFocal(2.0), QualityFocal(0.7),
         Varifocal(0.75, 2.0), Varifocal(None, 1.5)]
torch.manual_seed(0)
checked = 0
for terms in TERMS:
    for shape in ((700, 1), (2, 130, 7), (3, 1500)):
        for spread, dtype in ((3.0, torch.float32), (40.0, torch.float32), (3.0, torch.bfloat16), (3.0, torch.float16)):
            logits = (torch.randn(shape) * spread).to(dtype)
            kind = torch.rand(shape[:-1])
            labels = torch.where(kind < 0.3, torch.randint(shape[-1], shape[:-1]), -1)
            labels = torch.where(kind > 0.8, -2, labels)
            quality = torch.rand(shape[:-1]) * (torch.rand(shape[:-1]) > 0.2)
            x = logits.clone().requires_grad_()
            loss = summed(x, labels, terms, quality)
            (gradient,) = torch.autograd.grad(0.37 * loss, x, retain_graph=True)
            again = torch.autograd.grad(0.37 * loss, x)[0]
            exact = logits.double().requires_grad_()
            expected = reference_loss(exact, labels, terms, quality)
            (slope,) = torch.autograd.grad(0.37 * expected, exact)
            assert loss.dtype == torch.float32 and gradient.dtype == dtype
            torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=1e-6)
            tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
            torch.testing.assert_close(gradient.double(), slope, rtol=tolerance, atol=1e-6)
            assert torch.equal(gradient, again)
            with torch.no_grad():
                assert summed(x, labels, terms, quality) == loss
            divided = summed(x, labels, terms, quality, 7.0)
            torch.testing.assert_close(divided.double(), expected / 7, rtol=2e-6, atol=1e-6)
            (gradient,) = torch.autograd.grad(divided, x)
            torch.testing.assert_close(0.37 * gradient.double(), slope / 7, rtol=tolerance, atol=1e-6)
            checked += 1
for value in (1e4, -1e4, 1.8e38, -1.8e38, 3.4e38, -3.4e38, 0.0):
    for label in (0, -1, -2):
        for terms in TERMS:
            x = torch.tensor([[value]], requires_grad=True)
            loss = summed(x, torch.tensor([label]), terms, torch.tensor([0.4]))
            (gradient,) = torch.autograd.grad(loss, x)
            assert loss >= 0 and torch.isfinite(loss) and torch.isfinite(gradient).all(), (value, label, terms)
            exact = x.detach().double().requires_grad_()
            expected = reference_loss(exact, torch.tensor([label]), terms, torch.tensor([0.4]))
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-5, atol=1e-6)
            checked += 1
for label in (-100, -3, 2):  # the GPU cannot refuse them without waiting
    x = torch.zeros(600, 2, requires_grad=True)
    labels = torch.full((600,), -1)
    labels[300] = label
    loss = summed(x, labels, TERMS[0], None)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and gradient[300].isnan().all() and gradient[:300].isfinite().all()
half = torch.zeros(1, 1, requires_grad=True)  # p = q: no loss, and a gradient of 0 although γ < 1
loss = summed(half, torch.zeros(1, dtype=torch.int64), QualityFocal(0.5), torch.tensor([0.5]))
assert torch.autograd.grad(loss, half)[0] == 0
assert summed(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), TERMS[0], None) == 0
print(checked)
"""


def test_value_and_gradient_are_the_definitions() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # must be set before the kernel is read
    result = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) == 11 * 12 + 7 * 3 * 11
