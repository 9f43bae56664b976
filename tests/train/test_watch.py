"""A training that learns nothing says why; one that learns says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from retinanet.train.watch import Matches, why_nothing_is_learnt


def log(losses: list[float], precisions: list[float], foreground: int = 10) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch, (loss, ap) in enumerate(zip(losses, precisions, strict=True)):
        lines += [{"epoch": epoch + part / 4, "loss": loss, "foreground": foreground} for part in range(1, 5)]
        lines.append({"epoch": epoch + 1, "AP": ap})
    return lines


def test_too_few_matches_are_said_once() -> None:
    matches = Matches()
    assert matches.warning(30, 1) is None  # too early to tell
    warning = matches.warning(30, 2)
    assert warning is not None
    assert "only 3 anchors were matched to the first 60 objects" in warning
    assert "data inspect" in warning
    assert matches.warning(100, 0) is None


def test_enough_matches() -> None:
    matches = Matches()
    assert all(matches.warning(20, 100) is None for _ in range(10))


def test_flat_loss() -> None:
    reason = why_nothing_is_learnt(log([1.0, 1.01, 0.99], [0.0, 0.0, 0.0]), 3)
    assert reason is not None
    assert "has not fallen since the first epoch (1.000 then, 0.990 now)" in reason
    assert "--train.find-lr" in reason


def test_no_precision_although_the_loss_falls() -> None:
    reason = why_nothing_is_learnt(log([1.0, 0.8, 0.6], [0.0, 0.0, 0.0005]), 3)
    assert reason is not None
    assert "AP is still 0 after 3 epochs although the loss falls (1.000 in the first epoch, 0.600 now)" in reason


def test_nothing_matched() -> None:
    reason = why_nothing_is_learnt(log([1.0, 0.8, 0.6], [0.0, 0.0, 0.0], foreground=0), 3)
    assert reason is not None
    assert "no anchor was ever matched" in reason


@pytest.mark.parametrize(
    ("losses", "precisions"),
    [
        ([1.0, 0.8, 0.6], [0.0, 0.1, 0.2]),
        ([1.0, 1.0], [0.0, 0.0]),  # too early
        ([1.0, 0.8, 0.6, 0.6, 0.6], [0.0, 0.1, 0.2, 0.2, 0.2]),  # flat at the end, but lower than at first
    ],
)
def test_all_is_well(losses: list[float], precisions: list[float]) -> None:
    assert why_nothing_is_learnt(log(losses, precisions), len(losses)) is None


def test_nothing_was_evaluated_yet() -> None:
    lines = [line for line in log([1.0, 1.0, 1.0, 1.0], [0.0] * 4) if "AP" not in line]
    assert why_nothing_is_learnt(lines, 4) is None
