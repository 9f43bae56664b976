"""``docs/paper-to-code.md`` is true: its links lead to what they name, its values are those of the recipe ``paper``.

``python tests/test_paper_map.py`` rewrites the page's line numbers from the names beside them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro
import yaml

from retinanet.cli.train import Arguments as TrainArguments
from retinanet.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper-to-code.md"
COLUMNS = ["the paper says", "in the recipe `paper`", "code", "test"]

# A place in the code: [`src/retinanet/losses/focal.py:20`](../src/retinanet/losses/focal.py#L20) `focal_loss`
PLACE = re.compile(r"\[`(?P<path>[^`:]+):(?P<line>\d+)`\]\([^)\s]*\) `(?P<name>[^`]+)`")
# A setting of the recipe, as YAML: `loss.gamma = 2`
SETTING = re.compile(r"`(\w+)\.(\w+) = ([^`]+)`")
FLAGS = re.compile(r"`(--[^`]+)`")
EXCUSES = {"code": "No code:", "test": "No test:"}


class Row(NamedTuple):
    """A row of a table: its line on the page and its cells."""

    line: int
    cells: list[str]

    def __str__(self) -> str:
        return f"{PAGE.name}:{self.line} ({self.cells[0][:60]})"


def rows(text: str) -> Iterator[Row]:
    """All rows, also the tables' heads, but not the lines under them."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            yield Row(number, [cell.strip() for cell in line.strip().strip("|").split("|")])


@cache
def definitions(path: str) -> dict[str, int]:
    """Line of each function, class, field, attribute and variable of a file, by its name: ``LossConfig.alpha``."""
    found: dict[str, int] = {}

    def visit(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            inside = prefix
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.setdefault(prefix + node.name, node.lineno)
                inside = f"{prefix}{node.name}."
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                # self.p6 of FeaturePyramid.__init__ is FeaturePyramid.p6
                found.setdefault(f"{prefix}{ast.unparse(node)}".replace("__init__.self.", ""), node.lineno)
            visit(node, inside)

    if (ROOT / path).is_file():
        visit(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return found


def place(path: str, line: int, name: str) -> str:
    return f"[`{path}:{line}`](../{path}#L{line}) `{name}`"


def problems(row: Row) -> list[str]:
    """What is wrong with a row."""
    if len(row.cells) != len(COLUMNS) or not all(row.cells):
        return [f"{row}: has {sum(map(bool, row.cells))} filled cells, not {len(COLUMNS)}"]
    found = []
    for column, cell in zip(COLUMNS[2:], row.cells[2:], strict=True):
        if not PLACE.search(cell) and not cell.startswith(EXCUSES[column]):
            found.append(f"{row}: the column {column!r} names no place and does not say {EXCUSES[column]!r}")
        if "](" in PLACE.sub("", cell):
            found.append(f"{row}: write a link as {place('PATH', 1, 'NAME')}")
        for match in PLACE.finditer(cell):
            path, name = match["path"], match["name"]
            folder = "tests/" if column == "test" else "src/"
            line = definitions(path).get(name)
            if not path.startswith(folder) or (column == "test" and not name.startswith("test_")):
                found.append(f"{row}: {path} {name} does not belong into the column {column!r}")
            elif line is None:
                found.append(f"{row}: {path} defines no {name!r}")
            elif match[0] != place(path, line, name):
                found.append(f"{row}: {name!r} is at {path}:{line}; write {place(path, line, name)}")
    return found


def renumbered(text: str) -> str:
    """The page with the line numbers that the names have now; names that do not exist keep theirs."""

    def renew(match: re.Match[str]) -> str:
        line = definitions(match["path"]).get(match["name"])
        return match[0] if line is None else place(match["path"], line, match["name"])

    return PLACE.sub(renew, text)


def test_every_row_is_complete_and_leads_where_it_says() -> None:
    table = list(rows(PAGE.read_text(encoding="utf-8")))
    assert len(table) > 50
    wrong = [problem for row in table if row.cells != COLUMNS for problem in problems(row)]
    assert not wrong, "\n".join([*wrong, "'python tests/test_paper_map.py' mends line numbers"])


def test_values_are_those_of_the_recipe() -> None:
    recipe = load_recipe("paper").to_dict()
    count = 0
    for row in rows(PAGE.read_text(encoding="utf-8")):
        for group, name, text in SETTING.findall(" ".join(row.cells[1:2])):
            value, wanted = recipe[group][name], yaml.safe_load(text)
            value = list(value) if isinstance(value, tuple) else value
            assert value == pytest.approx(wanted), f"{row}: {group}.{name} is {value}"
            count += 1
    assert count > 30


def test_flags_are_understood() -> None:
    found = set(FLAGS.findall(PAGE.read_text(encoding="utf-8")))
    assert len(found) > 15
    for flags in sorted(found):
        try:
            tyro.cli(TrainArguments, args=["DATA", *flags.split()])
        except SystemExit:
            pytest.fail(f"{PAGE.name}: 'retinanet train DATA {flags}' is refused")


def test_wrong_rows_are_named() -> None:
    path, name = "tests/test_paper_map.py", "test_wrong_rows_are_named"
    right = place(path, definitions(path)[name], name)
    source = "src/retinanet/model/fpn.py"
    code = place(source, definitions(source)["FeaturePyramid.p6"], "FeaturePyramid.p6")
    assert "self.p6 =" in (ROOT / source).read_text().splitlines()[definitions(source)["FeaturePyramid.p6"] - 1]

    def said(*cells: str) -> str:
        (row,) = rows(f"| {' | '.join(cells)} |")
        return "\n".join(problems(row))

    assert said("fact", "value", code, right) == ""
    assert said("fact", "value", "No code: a reason", "No test: a reason") == ""
    stale = right.replace(f":{definitions(path)[name]}`", ":7`")
    assert f"(fact): {name!r} is at {path}:{definitions(path)[name]}" in said("fact", "value", code, stale)
    assert "is at" in said("fact", "value", code, right.replace("#L", "#L9"))
    assert "is at" in said("fact", "value", code, right.replace("](../tests", "](../src"))
    assert "defines no 'absent'" in said("fact", "value", code.replace("FeaturePyramid.p6", "absent"), right)
    assert "defines no" in said("fact", "value", code, right.replace("paper_map", "paper_mop"))
    assert "names no place" in said("fact", "value", code, "yes")
    assert "3 filled cells" in said("fact", "", code, right)
    assert "3 filled cells" in said("fact", "value", code)
    assert "does not belong" in said("fact", "value", right, right)
    assert "write a link as" in said("fact", "value", f"[x](../src/x.py) {code}", right)
    assert renumbered(f"| a | b | {code.replace('#L', '#L1')} | {stale} |") == f"| a | b | {code} | {right} |"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(renumbered(before), encoding="utf-8")
    left = [problem for row in rows(renumbered(before)) if row.cells != COLUMNS for problem in problems(row)]
    sys.exit("\n".join(left) or None)
