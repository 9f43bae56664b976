"""Imports of the package form no circle, each module can be imported first, and tests use public names.

The layers themselves are contracts of import-linter in ``pyproject.toml``; ``make check`` checks them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


class Import(NamedTuple):
    """An import statement: the module that contains it, the imported module, and the place of the statement."""

    importer: str
    imported: str
    place: str


def module_name(path: Path, source: Path) -> str:
    """``retinanet.data.images`` for ``src/retinanet/data/images.py``; a package ends with ``__init__``."""
    return ".".join(path.relative_to(source).with_suffix("").parts)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside ``if TYPE_CHECKING:`` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield node
        yield from runtime_nodes(node)


def imports(source: Path) -> list[Import]:
    """All imports between the modules under ``source``, also those inside of functions."""
    paths = {module_name(path, source): path for path in sorted(source.rglob("*.py"))}

    def resolved(name: str) -> str | None:
        return next((each for each in (name, f"{name}.__init__") if each in paths), None)

    found = []
    for importer, path in paths.items():
        for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = node.module or ""
                if node.level:
                    parent = importer.split(".")[: -node.level]
                    start = ".".join([*parent, *([node.module] if node.module else [])])
                # ``from package import name``: the name is a module of the package, or it is defined in its __init__
                names = [
                    f"{start}.{alias.name}" if resolved(f"{start}.{alias.name}") else start for alias in node.names
                ]
            targets = {target for name in names if (target := resolved(name)) is not None}
            place = f"{path.relative_to(source.parent)}:{getattr(node, 'lineno', 0)}"
            found += [Import(importer, target, place) for target in sorted(targets)]
    return found


def sibling_imports(found: list[Import]) -> dict[str, dict[str, dict[str, Import]]]:
    """For each folder, the imports between its files and folders: ``{folder: {importer: {imported: an import}}}``."""
    graphs: dict[str, dict[str, dict[str, Import]]] = defaultdict(lambda: defaultdict(dict))
    for each in found:
        ours, theirs = each.importer.split("."), each.imported.split(".")
        depth = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if depth is not None:  # else a module imports itself
            graphs[".".join(ours[:depth])][ours[depth]].setdefault(theirs[depth], each)
    return graphs


def circle(graph: dict[str, dict[str, Import]]) -> list[Import]:
    """The imports of a circle in the graph, or an empty list."""
    finished: set[str] = set()

    def search(node: str, trail: list[str]) -> list[Import]:
        if node in trail:
            nodes = [*trail[trail.index(node) :], node]
            return [graph[a][b] for a, b in pairwise(nodes)]
        if node in finished:
            return []
        for following in graph.get(node, {}):
            if found := search(following, [*trail, node]):
                return found
        finished.add(node)
        return []

    return next((found for node in list(graph) if (found := search(node, []))), [])


def circles(source: Path) -> list[str]:
    """A description of one circle for each folder whose files and folders import each other in a circle."""
    graphs = sibling_imports(imports(source))
    described = []
    for folder, graph in sorted(graphs.items()):
        if found := circle(graph):
            lines = [f"  {each.importer} imports {each.imported} ({each.place})" for each in found]
            described.append("\n".join([f"circle in {folder}:", *lines]))
    return described


def test_no_files_or_folders_import_each_other_in_a_circle() -> None:
    assert len(imports(SOURCE)) > 400
    found = circles(SOURCE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"p/a.py": "from p import b", "p/b.py": "import p.a"}, ["p.a", "p.b"]),
        ({"p/a.py": "def f():\n    from p.b import x", "p/b.py": "from .a import f"}, ["p.a", "p.b"]),
        ({"p/x/a.py": "import p.y.b", "p/y/b.py": "", "p/y/c.py": "import p.x.a"}, ["p.x.a", "p.y.c"]),
        ({"p/x/__init__.py": "from p.x.a import f", "p/x/a.py": "from p.x import f"}, ["p.x.__init__", "p.x.a"]),
        ({"p/a.py": "import p.b", "p/b.py": "import p.c", "p/c.py": "import p.a"}, ["p.a", "p.b", "p.c"]),
        ({"p/a.py": "import p.b\nimport p.c", "p/b.py": "import p.c", "p/c.py": ""}, []),
        ({"p/a.py": "if TYPE_CHECKING:\n    import p.b", "p/b.py": "import p.a"}, []),
        ({"p/x/__init__.py": "from p.x.a import f", "p/x/a.py": "from p.y import g", "p/y.py": ""}, []),
    ],
)
def test_circles_are_found_with_their_imports(files: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    for name, text in {"p/__init__.py": "", **files}.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = "\n".join(circles(tmp_path / "src"))
    assert bool(found) == bool(expected)
    assert all(f"{module} imports" in found for module in expected)


def test_every_module_can_be_imported_first() -> None:
    """Some circles only show if another module than usual is imported first."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for known in [each for each in sys.modules if each.split(".")[0] == "retinanet"]:
        del sys.modules[known]
    importlib.import_module(name)
"""
    modules = [module_name(path, SOURCE).removesuffix(".__init__") for path in sorted(SOURCE.rglob("*.py"))]
    # __main__ starts the program, and Triton exists only beside CUDA
    modules = [name for name in modules if not name.endswith(("__main__", "kernels.triton"))]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def private_names(path: Path) -> list[str]:
    """The private names of the package that a test file uses: imported, as attributes, or as targets of a patch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: set[str] = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "retinanet":
            names = [alias.asname or alias.name for alias in node.names]
            modules.update(names)
            found += [name for name in names if name.startswith("_") and not name.startswith("__")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found += [node.attr] if node.attr.startswith("_") and not node.attr.startswith("__") else []
    return [f"{path.relative_to(ROOT)}: {name}" for name in found]


def test_tests_use_public_names() -> None:
    found = [name for path in sorted((ROOT / "tests").rglob("*.py")) for name in private_names(path)]
    assert not found, "\n".join(found)
