"""Values that would give a wrong loss are refused, by all losses alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from retinanet.errors import ConfigError, RetinaNetError
from retinanet.losses import (
    focal_loss,
    focal_star_loss,
    ohem_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)

LOGITS, LABELS, QUALITY = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-1.0, 0.0]]), torch.tensor([0, -1, -2]), torch.ones(3)


def with_quality(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda logits, labels, **settings: function(logits, labels, torch.ones(labels.shape), **settings)


def with_anchors(logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    corner = 100.0 * torch.arange(len(logits))[:, None]
    return ohem_loss(logits, labels, torch.cat([corner, corner, corner + 10, corner + 10], dim=1), **settings)[0]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "focal": focal_loss,
    "focal star": focal_star_loss,
    "quality focal": with_quality(quality_focal_loss),
    "varifocal": with_quality(varifocal_loss),
    "ohem": with_anchors,
}
WITH_ALPHA = ("focal", "focal star", "varifocal")
WITH_GAMMA = (*WITH_ALPHA, "quality focal")


def refused(function: Callable[..., Tensor], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **settings)
    assert isinstance(caught.value, RetinaNetError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def torchvisions(logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    one_hot = (labels[:, None] == torch.arange(logits.shape[1])).to(logits.dtype)
    return sigmoid_focal_loss(logits, one_hot, reduction="sum", **settings)


@pytest.mark.parametrize("alpha", [-0.5, -1.0001, 1.5, 75, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", [*(LOSSES[name] for name in WITH_ALPHA), torchvisions])
def test_alpha_outside_0_to_1_is_refused(loss: Callable[..., Tensor], alpha: float) -> None:
    assert f"alpha is {alpha}; it must lie between 0 and 1" in refused(loss, LOGITS, LABELS, alpha=alpha)


@pytest.mark.parametrize("loss", [*(LOSSES[name] for name in WITH_ALPHA), torchvisions])
def test_alpha_of_minus_one_is_none_as_in_torchvision(loss: Callable[..., Tensor]) -> None:
    assert loss(LOGITS, LABELS, alpha=-1).item() == loss(LOGITS, LABELS, alpha=None).item() > 0


@pytest.mark.parametrize("gamma", [-1.0, -1e-9, math.nan, math.inf])
@pytest.mark.parametrize("loss", [*(LOSSES[name] for name in WITH_GAMMA), torchvisions])
def test_gamma_that_is_negative_or_not_finite_is_refused(loss: Callable[..., Tensor], gamma: float) -> None:
    assert f"gamma is {gamma}; it must be a finite number" in refused(loss, LOGITS, LABELS, gamma=gamma)


def test_focal_star_cannot_divide_by_a_gamma_of_zero_or_shift_by_infinity() -> None:
    assert "gamma is 0; it must be a finite number above 0" in refused(focal_star_loss, LOGITS, LABELS, gamma=0)
    assert "beta is nan" in refused(focal_star_loss, LOGITS, LABELS, beta=math.nan)


@pytest.mark.parametrize("label", [-3, -100, 2, 255])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_out_of_range_are_refused(name: str, label: int) -> None:
    message = refused(LOSSES[name], LOGITS, torch.tensor([0, label, -1]))
    assert f"there is a label {label} and only 2 classes; labels are 0 to 1, -1 (background) or -2 (ignored)" in message


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_another_type_or_shape_are_refused(name: str) -> None:
    assert "labels are torch.float32; give integers" in refused(LOSSES[name], LOGITS, LABELS.float())
    assert "labels (2,) do not fit logits (3, 2)" in refused(LOSSES[name], LOGITS, LABELS[:2])


@pytest.mark.parametrize("name", LOSSES)
def test_smaller_integers_are_labels_too(name: str) -> None:
    assert LOSSES[name](LOGITS, LABELS.to(torch.int32)).item() == LOSSES[name](LOGITS, LABELS).item()


@pytest.mark.parametrize("name", WITH_GAMMA)
@pytest.mark.parametrize("label", [-3, 2])
def test_where_labels_cannot_be_checked_the_loss_is_not_a_number(name: str, label: int) -> None:
    """As on a GPU, where a check would have to wait."""
    function = LOSSES[name]
    labels = torch.tensor([0, label, -1])
    value = torch.func.vmap(lambda x: function(x, labels))(LOGITS[None])
    assert value.isnan().all()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(LOGITS, labels).isnan()


def test_targets_that_are_no_probabilities_are_refused() -> None:
    for target in (-0.1, 2.0):
        assert "targets hold values outside 0 to 1" in refused(sigmoid_focal_loss, LOGITS, torch.full((3, 2), target))
    assert "different shapes" in refused(sigmoid_focal_loss, LOGITS, torch.zeros(3, 1))
    value = torch.func.vmap(lambda x: sigmoid_focal_loss(x, torch.full((3, 2), 2.0)))(LOGITS[None])
    assert value.isnan().all()


def test_settings_of_mining_out_of_range_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"batch": 0}, {"nms_iou": 0.0}, {"nms_iou": 1.1}, {"ratio": 0}]
    for settings in wrong:
        assert str(*settings.values()) in refused(with_anchors, LOGITS, LABELS, **settings)


@pytest.mark.parametrize("alpha", ["0.25", True, [0.25]])
@pytest.mark.parametrize("loss", [*(LOSSES[name] for name in WITH_ALPHA), torchvisions])
def test_alpha_that_is_no_number_is_refused(loss: Callable[..., Tensor], alpha: Any) -> None:
    assert f"alpha is {alpha!r}; it must lie between 0 and 1" in refused(loss, LOGITS, LABELS, alpha=alpha)


@pytest.mark.parametrize("gamma", [None, "2", True, 1j])
@pytest.mark.parametrize("loss", [*(LOSSES[name] for name in WITH_GAMMA), torchvisions])
def test_gamma_that_is_no_number_is_refused(loss: Callable[..., Tensor], gamma: Any) -> None:
    assert f"gamma is {gamma!r}; it must be a finite number" in refused(loss, LOGITS, LABELS, gamma=gamma)


def test_beta_that_is_no_number_is_refused() -> None:
    for beta in (None, "1"):
        assert f"beta is {beta!r}" in refused(focal_star_loss, LOGITS, LABELS, beta=beta)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int64])
@pytest.mark.parametrize("loss", [*LOSSES.values(), torchvisions])
def test_logits_that_are_not_real_floating_numbers_are_refused(loss: Callable[..., Tensor], kind: torch.dtype) -> None:
    assert f"are {kind}; give real floating numbers" in refused(loss, LOGITS.to(kind), LABELS)


def test_logits_without_dimension_are_refused() -> None:
    label, quality = torch.tensor(0), torch.tensor(1.0)
    for loss in (focal_loss, focal_star_loss):
        assert "logits have no dimension" in refused(loss, torch.tensor(0.3), label)
    for rated in (quality_focal_loss, varifocal_loss):
        assert "logits have no dimension" in refused(rated, torch.tensor(0.3), label, quality)
    assert sigmoid_focal_loss(torch.tensor(0.3), torch.tensor(1.0)).isfinite()


@pytest.mark.parametrize("quality", [math.nan, 1.5, -0.5, math.inf])
@pytest.mark.parametrize("loss", [quality_focal_loss, varifocal_loss])
def test_quality_outside_0_to_1_is_refused_or_gives_nan(loss: Callable[..., Tensor], quality: float) -> None:
    given = torch.tensor([quality, 0.5, 0.5])
    assert f"quality is {quality:g} at a positive anchor" in refused(loss, LOGITS, LABELS, given)
    assert torch.func.vmap(lambda x: loss(x, LABELS, given))(LOGITS[None]).isnan().all()  # values cannot be read here
    junk = torch.tensor([0.5, quality, quality])  # of the background and of an ignored anchor
    assert loss(LOGITS, LABELS, junk).isfinite()
