"""``docs/paper-to-code.md`` is true: links lead to the symbols they name, values are those of the recipe ``paper``.

``python tests/test_paper_map.py`` mends links to symbols that moved to another file and proposes places for the others.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro
import yaml

from paper_mutants import MUTANTS
from retinanet.cli.train import Arguments as TrainArguments
from retinanet.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper-to-code.md"
COLUMNS = ["the paper says", "in the recipe `paper`", "code", "test"]

# A link to a symbol: [`focal_loss`](../src/retinanet/losses/focal.py)
LINK = re.compile(r"\[`(?P<symbol>[^`]+)`\]\(\.\./(?P<path>[^)\s#]+\.py)\)")
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
    """All rows, including the heads of the tables, but not the lines below the heads."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            yield Row(number, [cell.strip() for cell in line.strip().strip("|").split("|")])


@cache
def symbols(path: str) -> frozenset[str]:
    """The public symbols of a file: functions, classes, methods, attributes, constants, such as ``LossConfig.alpha``.

    Attributes that ``__init__`` assigns to ``self`` belong to the class. Local variables are not symbols.
    """
    found: set[str] = set()

    def visit(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                visit(node, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                found.add(prefix + node.name)
                if node.name == "__init__":
                    stores = (each for each in ast.walk(node) if isinstance(each, ast.Attribute))
                    stores = (each for each in stores if isinstance(each.ctx, ast.Store))
                    found.update(ast.unparse(each).replace("self.", prefix) for each in stores)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(prefix + node.id)
            elif not isinstance(node, ast.expr):
                visit(node, prefix)

    if (ROOT / path).is_file():
        visit(ast.parse((ROOT / path).read_text(encoding="utf-8")), "")
    return frozenset(name for name in found if not any(part.startswith("_") for part in name.split(".")))


def link(path: str, symbol: str) -> str:
    return f"[`{symbol}`](../{path})"


def places(symbol: str, column: str) -> list[str]:
    """The files that define a symbol."""
    folder = ROOT / ("tests" if column == "test" else "src")
    paths = (path.relative_to(ROOT).as_posix() for path in sorted(folder.rglob("*.py")))
    return [path for path in paths if symbol in symbols(path)]


def proposal(symbol: str, column: str) -> str:
    """A hint where a symbol that is not in its file may be."""
    if found := places(symbol, column):
        return f"write {' or '.join(link(path, symbol) for path in found)}"
    folder = ROOT / ("tests" if column == "test" else "src")
    known = {
        name: path.relative_to(ROOT).as_posix()
        for path in sorted(folder.rglob("*.py"))
        for name in symbols(path.relative_to(ROOT).as_posix())
    }
    near = difflib.get_close_matches(symbol, known, n=2, cutoff=0.7)
    return f"similar: {', '.join(link(known[name], name) for name in near)}" if near else "no similar symbol is known"


def problems(row: Row) -> list[str]:
    """The mistakes of a row."""
    if len(row.cells) != len(COLUMNS) or not all(row.cells):
        return [f"{row}: has {sum(map(bool, row.cells))} filled cells, not {len(COLUMNS)}"]
    found = []
    for column, cell in zip(COLUMNS[2:], row.cells[2:], strict=True):
        if not LINK.search(cell) and not cell.startswith(EXCUSES[column]):
            found.append(f"{row}: the column {column!r} links no symbol and does not start with {EXCUSES[column]!r}")
        if "](" in LINK.sub("", cell):
            found.append(f"{row}: write a link as {link('PATH.py', 'SYMBOL')}")
        for match in LINK.finditer(cell):
            path, symbol = match["path"], match["symbol"]
            folder = "tests/" if column == "test" else "src/"
            if not path.startswith(folder) or (column == "test" and not symbol.startswith("test_")):
                found.append(f"{row}: {path} {symbol} does not belong into the column {column!r}")
            elif symbol not in symbols(path):
                found.append(f"{row}: {path} does not define {symbol!r}; {proposal(symbol, column)}")
    return found


def relinked(text: str) -> str:
    """The page with links to the new files of symbols that moved.

    If several files define a symbol, it goes where most other symbols of its old file went.
    """
    moved: dict[str, list[list[str]]] = defaultdict(list)  # for each old file: the possible places of each symbol
    for path, symbol in {(match["path"], match["symbol"]) for match in LINK.finditer(text)}:
        if symbol not in symbols(path):
            moved[path].append(places(symbol, "test" if path.startswith("tests/") else "code"))
    votes = {path: Counter(place for found in lists for place in found) for path, lists in moved.items()}

    def renew(match: re.Match[str]) -> str:
        path, symbol = match["path"], match["symbol"]
        if symbol in symbols(path):
            return match[0]
        found = places(symbol, "test" if path.startswith("tests/") else "code")
        best = [place for place in found if votes[path][place] == max(votes[path][each] for each in found)]
        return link(best[0], symbol) if len(best) == 1 else match[0]

    return LINK.sub(renew, text)


def test_every_row_is_complete_and_its_links_lead_to_their_symbols() -> None:
    table = list(rows(PAGE.read_text(encoding="utf-8")))
    assert len(table) > 50
    wrong = [problem for row in table if row.cells != COLUMNS for problem in problems(row)]
    assert not wrong, "\n".join([*wrong, "'python tests/test_paper_map.py' mends links to symbols that moved"])


def first_tests() -> dict[str, str]:
    """For each mutant's row, the first test that the row links, as pytest's node id."""
    table = [row for row in rows(PAGE.read_text(encoding="utf-8")) if row.cells != COLUMNS]
    found = {}
    for mutant in MUTANTS:
        (row,) = (row for row in table if row.cells[0].startswith(mutant.row))
        match = LINK.search(row.cells[3])
        assert match is not None, mutant.row
        found[mutant.row] = f"{ROOT / match['path']}::{match['symbol']}"
    return found


def test_every_row_with_a_test_has_a_mutant_that_fits_the_source() -> None:
    """``make mutants`` runs them."""
    first_tests()
    table = [row for row in rows(PAGE.read_text(encoding="utf-8")) if row.cells != COLUMNS]
    tested = [row for row in table if LINK.search(row.cells[3])]
    without = [str(row) for row in tested if not any(row.cells[0].startswith(mutant.row) for mutant in MUTANTS)]
    assert not without
    for mutant in MUTANTS:
        text = (ROOT / "src" / "retinanet" / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant


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


def test_symbols_are_those_that_can_be_imported() -> None:
    source = "src/retinanet/model/fpn.py"
    assert {"FeaturePyramid", "FeaturePyramid.forward", "FeaturePyramid.p6"} <= symbols(source)
    assert "self.p6 =" in (ROOT / source).read_text(encoding="utf-8")
    assert {"LossConfig", "LossConfig.gamma"} <= symbols("src/retinanet/config.py")
    assert "rows" in symbols("tests/test_paper_map.py")
    assert not any("number" in name for name in symbols("tests/test_paper_map.py")), "a local variable"
    assert symbols("src/retinanet/absent.py") == frozenset()


def test_wrong_rows_are_named() -> None:
    path, name = "tests/test_paper_map.py", "test_wrong_rows_are_named"
    right = link(path, name)
    code = link("src/retinanet/model/fpn.py", "FeaturePyramid.p6")

    def said(*cells: str) -> str:
        (row,) = rows(f"| {' | '.join(cells)} |")
        return "\n".join(problems(row))

    assert said("fact", "value", code, right) == ""
    assert said("fact", "value", "No code: a reason", "No test: a reason") == ""
    moved = link("tests/test_files.py", name)
    assert f"(fact): tests/test_files.py does not define {name!r}; write {right}" in said("fact", "value", code, moved)
    renamed = said("fact", "value", code.replace("p6", "p66"), right)
    assert "does not define 'FeaturePyramid.p66'; similar: " in renamed
    assert code in renamed
    assert "no similar symbol" in said("fact", "value", code.replace("FeaturePyramid.p6", "absent"), right)
    assert "does not define" in said("fact", "value", code, right.replace("paper_map", "paper_mop"))
    assert "write a link as" in said("fact", "value", code, right.replace(".py", ".py#L7"))
    assert "links no symbol" in said("fact", "value", code, "yes")
    assert "3 filled cells" in said("fact", "", code, right)
    assert "3 filled cells" in said("fact", "value", code)
    assert "does not belong" in said("fact", "value", right, right)
    assert "write a link as" in said("fact", "value", f"[x](../src/x.py) {code}", right)


def test_links_to_symbols_that_moved_are_mended() -> None:
    right = link("tests/test_paper_map.py", "test_links_to_symbols_that_moved_are_mended")
    moved = right.replace("paper_map", "paper_mop")
    assert relinked(f"| a | {moved} | {right} |") == f"| a | {right} | {right} |"
    both = f"{moved} {link('tests/test_paper_mop.py', 'test_flags_are_understood')}"
    assert relinked(both) == both.replace("mop", "map")
    unknown = link("tests/test_paper_mop.py", "test_of_nothing")
    assert relinked(unknown) == unknown


if __name__ == "__main__":
    mended = relinked(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(mended, encoding="utf-8")
    left = [problem for row in rows(mended) if row.cells != COLUMNS for problem in problems(row)]
    sys.exit(os.linesep.join(left) or None)
