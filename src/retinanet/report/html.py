"""Fill the templates of this folder: each page is one HTML file with embedded images and without scripts."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot


@dataclass(frozen=True)
class Figure:
    """An image of a page.

    Attributes:
        source: the image as a ``data:`` URL.
        caption: plain text under the image.
    """

    source: str
    caption: str


def render(template: str, **values: Any) -> str:
    """Fill a template of ``retinanet/report/templates``; every value is escaped."""
    return _environment().get_template(template).render(**values)


def image_figure(image: npt.NDArray[np.uint8], caption: str, longest: int = 720) -> Figure:
    """Make a figure of an image, uint8 RGB ``(H, W, 3)``, scaled down to a longer side of ``longest`` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return Figure(_data_url(buffer, "jpeg"), caption)


def plot_figure(plot: Plot, caption: str = "") -> Figure:
    """Make a figure of a matplotlib plot."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110)
    return Figure(_data_url(buffer, "png"), caption)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; a dash stands for ``None`` and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def metric(value: float) -> str:
    """Format a metric from 0 to 1; a dash stands for NaN and for −1, COCO's value for "nothing to measure"."""
    return f"{value:.3f}" if value >= 0 else "–"


def signed(value: float) -> str:
    """Format a difference with its sign; a dash stands for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"


def percent(value: float, digits: int = 1) -> str:
    """Format a fraction as a percentage; a dash stands for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def counted(count: int, singular: str, plural: str) -> str:
    """Format a count with its noun, such as "1 class" or "3 classes"."""
    return f"{count} {singular if count == 1 else plural}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("retinanet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, metric=metric, signed=signed, percent=percent, counted=counted)
    return environment


def _data_url(content: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()
