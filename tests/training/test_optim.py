from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retinanet.config import TrainConfig
from retinanet.model import RetinaNet
from retinanet.training.optim import learning_rate, make_average, make_optimizer, set_learning_rate

# The paper's training: 90k steps of 16.
STEPS = 90_000
TOTAL = STEPS * 16


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    return RetinaNet("resnet18", num_classes=2, channels=32, subnet_norm="group", subnet_depth=1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1_000, 1e-2), (59_999, 1e-2), (60_000, 1e-3), (79_999, 1e-3), (80_000, 1e-4), (89_999, 1e-4)],
)
def test_the_papers_steps(step: int, expected: float) -> None:
    assert learning_rate(TrainConfig(), step * 16, TOTAL) == pytest.approx(expected, rel=1e-9)


def test_warm_up_is_linear() -> None:
    config = TrainConfig(warmup=8000)
    assert learning_rate(config, 0, TOTAL) == pytest.approx(1e-5)
    assert learning_rate(config, 4000, TOTAL) == pytest.approx((1e-5 + 1e-2) / 2)
    assert learning_rate(config, 7999, TOTAL) == pytest.approx(1e-2, rel=1e-3)
    assert learning_rate(config, 8000, TOTAL) == pytest.approx(1e-2)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_takes_at_most_a_tenth(schedule: str) -> None:
    config = TrainConfig(warmup=8000, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, 99, 1000) < 0.01 * 0.995
    assert learning_rate(config, 100, 1000) == pytest.approx(0.01)


def test_no_warm_up() -> None:
    assert learning_rate(TrainConfig(warmup=0), 0, 1000) == pytest.approx(0.01)
    assert learning_rate(TrainConfig(warmup=8000), 0, 5) == pytest.approx(0.01)  # a tenth of 5 images is none


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("seen", [100, 50_000, TOTAL * 7 // 9])
def test_in_proportion_to_the_batch(batch: int, seen: int) -> None:
    whole = learning_rate(TrainConfig(batch=16), seen, TOTAL)
    assert learning_rate(TrainConfig(batch=batch), seen, TOTAL) == pytest.approx(whole * batch / 16)


def test_cosine() -> None:
    config = TrainConfig(schedule="cosine", warmup=1000, lr=0.4)
    total = 101_000
    assert learning_rate(config, 1000, total) == pytest.approx(0.4)
    assert learning_rate(config, 51_000, total) == pytest.approx(0.2)
    assert learning_rate(config, 1000 + 100_000 // 3, total) == pytest.approx(0.4 * 0.75, rel=1e-4)  # cos 60° = ½
    assert 0 <= learning_rate(config, total - 16, total) < 0.4 * 1e-6
    values = [learning_rate(config, seen, total) for seen in range(1000, total, 500)]
    assert values == sorted(values, reverse=True)


@given(
    total=st.integers(1, 10**7),
    share=st.floats(0, 1, exclude_max=True),
    warmup=st.integers(0, 10**5),
    schedule=st.sampled_from(["step", "cosine"]),
)
def test_always_positive_and_never_above_the_base(total: int, share: float, warmup: int, schedule: str) -> None:
    config = TrainConfig(warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    assert 0 < learning_rate(config, min(total - 1, int(share * total)), total) <= 0.01


def test_sgd_is_the_papers(model: RetinaNet) -> None:
    optimizer = make_optimizer(model, TrainConfig())
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 1e-4, False, 0)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(group["params"]) < len(list(model.parameters()))  # batch norm is frozen


def test_adamw_spares_norms_and_biases(model: RetinaNet) -> None:
    optimizer = make_optimizer(model, TrainConfig(optimizer="adamw", weight_decay=0.05, momentum=0.85))
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(group["betas"] == (0.85, 0.999) for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    kinds = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                assert id(parameter) not in decay
                continue
            decayed = isinstance(module, nn.Conv2d) and name == "weight"
            kinds.add((type(module).__name__, name))
            assert decay[id(parameter)] == (0.05 if decayed else 0.0), (type(module).__name__, name)
    assert {("GroupNorm", "weight"), ("Conv2d", "bias"), ("Conv2d", "weight")} <= kinds


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_backbone_has_its_own_factor(model: RetinaNet, kind: str) -> None:
    config = TrainConfig(optimizer=kind, backbone_lr=0.1)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("backbone.") else 0.5), name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_biases_have_their_own_rate_and_decay(model: RetinaNet, kind: str) -> None:
    config = TrainConfig(optimizer=kind, backbone_lr=0.1, bias_lr=2.0, bias_decay=False, weight_decay=0.01)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 0.5)
    of = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    biases = 0
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            rate, decay = of[id(parameter)]
            part = 0.05 if module_name.startswith("backbone.") else 0.5
            assert rate == pytest.approx(part * (2 if name == "bias" else 1))
            exempt = name == "bias" or (kind == "adamw" and isinstance(module, nn.GroupNorm))
            assert decay == (0 if exempt else 0.01)
            biases += name == "bias"
    assert biases > 10


def test_biases_are_decayed_like_weights_by_default(model: RetinaNet) -> None:
    config = TrainConfig()
    assert (config.bias_lr, config.bias_decay) == (1.0, True)
    (group,) = make_optimizer(model, config).param_groups
    assert {id(p) for name, p in model.named_parameters() if name.endswith("bias") and p.requires_grad} <= {
        id(p) for p in group["params"]
    }
    assert (group["factor"], group["weight_decay"]) == (1.0, 1e-4)


def test_sgd_step_by_hand() -> None:
    """v ← 0.9 v + (g + 1e-4 w); w ← w − lr·v, with the rate that was set."""
    network = RetinaNet("resnet18", num_classes=1, channels=32, subnet_depth=0)
    optimizer = make_optimizer(network, TrainConfig())
    weight = network.regression.predict.weight
    expected, velocity = weight.detach().double().clone(), torch.zeros(()).double()
    for step, lr in enumerate((0.1, 0.02, 0.3)):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        set_learning_rate(optimizer, lr)
        optimizer.step()
        velocity = 0.9 * velocity + gradient.double() + 1e-4 * expected
        expected = expected - lr * velocity
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "decay"), [(16, 0.9), (8, math.sqrt(0.9)), (32, 0.81)])
def test_average_against_a_plain_loop(batch: int, decay: float) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = make_average(network, TrainConfig(ema=0.9, batch=batch))
    assert average is not None
    generator = torch.Generator().manual_seed(0)
    expected: torch.Tensor | None = None
    statistics: torch.Tensor | None = None
    layer, norm = network[0], network[1]
    assert isinstance(layer, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    for update in range(200):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 3, generator=generator))
            norm.running_mean.copy_(torch.randn(2, generator=generator))
            norm.num_batches_tracked.fill_(update)
        average.update_parameters(network)
        value, mean = layer.weight.detach().double(), norm.running_mean.double()
        keep = min(decay, (1 + update) / (10 + update))  # rises, so that the random start is forgotten
        expected = value if expected is None else keep * expected + (1 - keep) * value
        statistics = mean if statistics is None else keep * statistics + (1 - keep) * mean
    assert expected is not None
    assert statistics is not None
    state = average.module.state_dict()
    torch.testing.assert_close(state["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["1.running_mean"].double(), statistics, rtol=1e-5, atol=1e-6)
    assert state["1.num_batches_tracked"].item() == 199


def test_no_average_unless_asked() -> None:
    assert make_average(nn.Linear(1, 1), TrainConfig()) is None
