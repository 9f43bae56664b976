from __future__ import annotations

import math

import numpy as np
import pytest
from jinja2 import UndefinedError

from html_pages import Page
from retinanet.report.html import counted, image_figure, number, percent, render


def test_numbers_that_cannot_be_measured_are_dashes() -> None:
    assert [number(value) for value in (0.12345, -0.001, None, math.nan)] == ["0.123", "-0.001", "–", "–"]
    assert number(0.7, 2) == "0.70"
    assert [percent(value) for value in (0.5, 1.0, math.nan)] == ["50.0%", "100.0%", "–"]
    assert [counted(n, "class", "classes") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]


def test_values_are_escaped() -> None:
    text = render("base.html", title='<script>"&')
    assert "<title>&lt;script&gt;&#34;&amp;</title>" in text
    assert Page(text).open == []


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("base.html")


def test_figures_hold_their_image() -> None:
    figure = image_figure(np.zeros((40, 80, 3), dtype=np.uint8), "a caption", longest=20)
    assert figure.source.startswith("data:image/jpeg;base64,")
    assert figure.caption == "a caption"
