"""The recipe of ``CONTRIBUTING.md`` for a classification loss works: it is followed in a copy of the package."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from test_docs import ROOT, blocks

PAGE = ROOT / "CONTRIBUTING.md"

# Run with the changed copy: the loss is a flag, and its value and gradients are right in both implementations.
CHECK = """
import torch
from retinanet.cli.terminal import parse
from retinanet.cli.train import Arguments
from retinanet.config import Config
from retinanet.losses.detection import formula_of
from retinanet.losses.sum import reference_loss, summed_loss

flags = ["DATA", "--loss.classification", "asymmetric", "--loss.gamma-positive", "0.5"]
assert "gamma_positive=0.5" in repr(parse(Arguments, flags, "train"))

loss = {"classification": "asymmetric", "alpha": 0.25, "gamma": 3.0, "gamma_positive": 0.5}
formula = formula_of(Config.from_dict({"loss": loss}).loss)
torch.manual_seed(0)
labels = torch.randint(-2, 3, (50,))
found = []
for total in (summed_loss, reference_loss):
    logits = torch.linspace(-6, 6, 150, dtype=torch.float64).reshape(50, 3).requires_grad_()
    value = total(logits, labels, formula)
    value.backward()
    found.append((value.detach(), logits.grad))
torch.testing.assert_close(found[0], found[1])

expected = 0.0
for row, label in zip(logits.detach().sigmoid().tolist(), labels.tolist()):
    for k, p in enumerate(row if label != -2 else []):
        p = torch.tensor(p, dtype=torch.float64)
        expected += -0.25 * (1 - p) ** 0.5 * p.log() if k == label else -0.75 * p**3 * (1 - p).log()
torch.testing.assert_close(found[0][0], expected)
print("followed")
"""


def steps() -> dict[str, str]:
    """The code of the recipe by the comment in its first line, which names a file and a place in it."""
    found = [block.text for block in blocks(PAGE) if block.language == "py"]
    texts = [textwrap.dedent(text).split("\n", 1) for text in found]
    return {head.removeprefix("# "): body for head, body in texts}


def insert(path: Path, line: int, text: str, indent: int = 0) -> None:
    """Insert lines before a line, which is counted from 1."""
    lines = path.read_text(encoding="utf-8").split("\n")
    lines.insert(line - 1, textwrap.indent(text.rstrip(), " " * indent))
    path.write_text("\n".join(lines), encoding="utf-8")


def node_of(path: Path, name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function with this name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    )


def add_to_literal(path: Path, owner: str, field: str, value: str) -> None:
    """Add a value to the ``Literal`` of a field of a class."""
    text = path.read_text(encoding="utf-8")
    changed = re.sub(
        rf"(class {owner}\b.*?\n    {field}: Literal\[)", rf'\1"{value}", ', text, count=1, flags=re.DOTALL
    )
    assert changed != text, f"{path.name}: there is no Literal {owner}.{field}"
    path.write_text(changed, encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package without its weight files."""
    shutil.copytree(
        ROOT / "src" / "retinanet",
        tmp_path / "src" / "retinanet",
        ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
    )
    return tmp_path


def follow(copy: Path) -> None:
    """Do the steps of the recipe."""
    config, formula, classification, detection = (
        copy / "src" / "retinanet" / path
        for path in ("config.py", "losses/formula.py", "losses/classification.py", "losses/detection.py")
    )
    code = steps()
    add_to_literal(config, "LossConfig", "classification", "asymmetric")
    method = next(node for node in node_of(config, "LossConfig").body if isinstance(node, ast.FunctionDef))
    insert(config, method.lineno, code["src/retinanet/config.py, in LossConfig"] + "\n", indent=4)

    source = classification.read_text(encoding="utf-8")
    classification.write_text(source + "\n\n" + code["src/retinanet/losses/classification.py"] + "\n", encoding="utf-8")

    add_to_literal(formula, "Coefficients", "kind", "asymmetric")

    choice = next(node for node in ast.walk(node_of(detection, "formula_of")) if isinstance(node, ast.Match))
    first = choice.cases[0].pattern.lineno
    insert(detection, first, code["src/retinanet/losses/detection.py, in formula_of"], indent=8)
    text = detection.read_text(encoding="utf-8")
    start = "from retinanet.losses.classification import "
    assert start in text
    detection.write_text(text.replace(start, f"{start}Asymmetric, "), encoding="utf-8")


def check(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run ``CHECK`` with the copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    return subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, cwd=copy, env=environment)


def test_the_recipe_for_a_classification_loss_works(copy: Path) -> None:
    follow(copy)
    done = check(copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "followed\n"


def test_without_the_recipe_the_check_fails(copy: Path) -> None:
    assert "asymmetric" in check(copy).stderr


def test_the_changed_files_pass_the_linter(copy: Path) -> None:
    follow(copy)
    files = [str(path) for path in (copy / "src" / "retinanet" / "losses").glob("*.py")]
    config = str(ROOT / "pyproject.toml")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", config, *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
