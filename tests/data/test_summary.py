"""Lines about a dataset for the terminal."""

from __future__ import annotations

from pathlib import Path

from pytest import MonkeyPatch

from retinanet.data import problems
from retinanet.data.dataset import DatasetBuilder
from retinanet.data.problems import ProblemKind
from retinanet.data.summary import summary


def test_counted_problems_with_one_message_are_one_line_with_the_first_place(monkeypatch: MonkeyPatch) -> None:
    kind = ProblemKind("turned", "note", "turned image", "turned back", counted=True)
    monkeypatch.setitem(problems.PROBLEM_KINDS, "turned", kind)
    builder = DatasetBuilder("data [train]", Path("data"), ["box"])
    for number in range(3):
        builder.add_image(f"{number}.jpg", 10, 10)
        builder.report("turned", f"{number}.jpg", "by 90 degrees" if number < 2 else "by 180 degrees")
    dataset = builder.build()
    assert [problem.count for problem in dataset.problems] == [2, 1]
    assert summary(dataset)[1:] == [
        "  2 × turned image, turned back: by 90 degrees; first 0.jpg",
        "  1 × turned image, turned back: by 180 degrees; first 2.jpg",
    ]


def test_problem_found_after_the_reading_is_listed_too() -> None:
    builder = DatasetBuilder("data", Path("data"), ["box"])
    builder.add_image("a.jpg", 10, 10)
    dataset = builder.build().with_problem("clipped-box", "a.jpg", "box too wide")
    assert summary(dataset)[1:] == [
        "  1 × box that reaches over the edge of its image, clipped:",
        "    a.jpg: box too wide, clipped",
    ]
