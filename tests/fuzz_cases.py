"""The cases of ``test_fuzz.py``: which corruption is done to which file of which small dataset."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

import fuzz_corruptions
from fuzz_datasets import WRITERS

SEED = 20260423


@dataclass
class Case:
    """One corruption: ``kind`` done to ``file`` of a dataset in ``layout``."""

    number: int
    layout: str
    kind: str
    file: Path = Path()
    verify: str = "on"
    outcome: str = ""
    said: list[str] = field(default_factory=list)
    failure: str = ""

    def __str__(self) -> str:
        return (
            f"kind {self.kind}, format {self.layout}, seed [{SEED}, {self.number}], file {self.file}, "
            f"verify {self.verify}: {self.failure or self.outcome}\n"
            f"  reproduce: python tests/test_fuzz.py {self.number}"
        )


@cache
def clean(layout: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "pets"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    WRITERS[layout](root)
    return root


def spoil(number: int, root: Path) -> Case:
    """Make the dataset of a case at ``root``."""
    layouts = list(WRITERS)
    layout = layouts[number % len(layouts)]
    sound = clean(layout)
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    images = [file for file in files if file.suffix in (".jpg", ".png")]
    texts = [file for file in files if file not in images]
    kinds = fuzz_corruptions.kinds_of({file.suffix for file in texts})
    rng = np.random.default_rng([SEED, number])
    # A third of the cases for images, for any text, and for what is special to JSON, XML and YAML.
    thirds = [[kind for kind in kinds if kind[0] == group] for group in ("image", "text")]
    thirds.append([kind for kind in kinds if kind[0].startswith(".")] or thirds[1])
    third = thirds[int(rng.integers(3))]
    target, corrupt = third[int(rng.integers(len(third)))]
    choice = {"image": images, "text": texts}.get(target) or [file for file in texts if file.suffix == target]
    file = choice[int(rng.integers(len(choice)))]
    shutil.copytree(sound, root, symlinks=True)
    corrupt(rng, root / file)
    verify = ("on", "skip", "off")[int(rng.integers(3))]
    return Case(number, layout, f"{target} {corrupt.__name__}", file, verify)
