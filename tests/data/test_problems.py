"""Problems of the readers: every code that a reader reports is known, and every known code is reported."""

from __future__ import annotations

import ast
from pathlib import Path

import retinanet.data
from retinanet.data.problems import PROBLEM_KINDS, Problem


def reported_codes() -> set[str]:
    """First arguments of all calls of ``report`` and ``refuse`` in the package's data folder."""
    codes = set()
    for file in Path(retinanet.data.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                if node.func.attr in ("report", "refuse", "with_problem") and isinstance(first, ast.Constant):
                    codes.add(str(first.value))
    return codes


def test_codes_of_the_readers_are_the_known_ones() -> None:
    assert reported_codes() == set(PROBLEM_KINDS)


def test_problem_has_severity_and_action_of_its_kind() -> None:
    problem = Problem("zero-area-box", "a.xml:3", "zero-area box (1, 1, 1, 5)")
    assert (problem.severity, problem.action) == ("warning", "dropped")
    assert str(problem) == "a.xml:3: zero-area box (1, 1, 1, 5), dropped"


def test_problems_that_abort_training_are_errors() -> None:
    for kind in PROBLEM_KINDS.values():
        assert (kind.severity == "error") == ("training would stop" in kind.action)
