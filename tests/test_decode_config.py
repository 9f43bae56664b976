"""Limits on detections and candidates: unset, chosen from the data, or changed afterwards."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from retinanet.config import Config, DecodeConfig
from retinanet.errors import ConfigError


def limits(config: DecodeConfig) -> tuple[int | None, int | None]:
    return config.max_detections, config.top_k


@pytest.mark.parametrize("number", [1.5, True, "5", 100.0])
@pytest.mark.parametrize("name", ["max_detections", "top_k"])
def test_limits_that_are_no_whole_numbers_are_refused(name: str, number: Any) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(ConfigError, match=re.escape(f"decode.{flag} is {number!r}; give a whole number")):
        DecodeConfig(**{name: number})
    whole: dict[str, Any] = {name: np.int64(7)}
    assert limits(DecodeConfig(**whole).resolved())[name == "top_k"] == 7


@pytest.mark.parametrize(
    ("objects", "max_detections", "top_k"),
    [
        (0, 100, 1000),
        (50, 100, 1000),
        (51, 200, 2000),
        (93, 200, 2000),
        (150, 300, 3000),
        (913, 2000, 20_000),
        (10_000, 20_000, 200_000),
    ],
)
def test_unset_limits_leave_room_for_the_objects_of_the_densest_image(
    objects: int, max_detections: int, top_k: int
) -> None:
    assert limits(DecodeConfig().resolved(objects)) == (max_detections, top_k)


def test_limits_that_are_set_stay() -> None:
    assert limits(DecodeConfig(top_k=7, max_detections=5).resolved(913)) == (5, 7)
    assert limits(DecodeConfig(max_detections=500).resolved(913)) == (500, 5000)
    assert limits(DecodeConfig(top_k=50).resolved(913)) == (2000, 50)
    other = DecodeConfig(score=0.2, nms=0.6).resolved()
    assert (other.score, other.nms) == (0.2, 0.6)
    assert other.resolved(913) == other


def test_a_higher_limit_raises_the_candidates_and_a_lower_one_keeps_them() -> None:
    stored = DecodeConfig(top_k=1000, max_detections=100)
    assert limits(stored.at_most(None)) == (100, 1000)
    assert limits(stored.at_most(300)) == (300, 3000)
    assert limits(stored.at_most(7)) == (7, 1000)
    assert limits(DecodeConfig(top_k=9000, max_detections=100).at_most(300)) == (300, 9000)
    assert limits(DecodeConfig().at_most(None)) == (100, 1000)


@pytest.mark.parametrize("number", [0, -1, 2.5, "7", True])
def test_other_values_are_refused_in_one_line(number: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"max-detections is {number}; it must be a whole number of at least 1"
    ) as error:
        DecodeConfig().at_most(number)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [10**9, 10**30])
def test_a_limit_beyond_all_counts_is_accepted(number: int) -> None:
    raised = DecodeConfig().at_most(number)
    assert raised.max_detections <= raised.top_k < 2**31


def test_settings_of_earlier_versions_keep_their_numbers() -> None:
    stored = {"decode": {"score": 0.05, "top_k": 1000, "nms": 0.5, "max_detections": 100}}
    assert limits(Config.from_dict(stored).decode) == (100, 1000)
