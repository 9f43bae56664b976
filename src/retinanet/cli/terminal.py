"""What the verbs share: the terminal they print to, and how they read arguments and speak of data and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro
from rich.console import Console

from retinanet.errors import RetinaNetError

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset

Arguments = TypeVar("Arguments")

# Messages contain paths and brackets; rich must not take them for markup.
console = Console(markup=False, highlight=False, soft_wrap=True)
errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def parse(kind: type[Arguments], argv: Sequence[str], prog: str, default: Arguments | None = None) -> Arguments:
    """Arguments of a verb, from flags over ``default``; a wrong flag ends the program with tyro's message."""
    if default is None:
        return tyro.cli(kind, args=list(argv), prog=prog)
    return tyro.cli(kind, args=list(argv), prog=prog, default=default)


def positionals_first(argv: Sequence[str]) -> list[str]:
    """The same words with the flags after the rest, for verbs that take several of one positional argument.

    The parser fills those from the first run of words without a flag. Every flag but ``--help`` must take one value.
    """
    flags, rest, words = [], [], iter(argv)
    for word in words:
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        flags.append(word)
        if "=" not in word and word not in ("-h", "--help"):
            flags += [value for value in [next(words, None)] if value is not None]
    return rest + flags


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``, needed before the other flags' defaults are known."""
    joined = [word.split("=", 1)[1] for word in argv if word.startswith(f"{name}=")]
    following = [value for word, value in pairwise(argv) if word == name]
    return next(iter([*following, *joined]), None)


def make_folder(out: Path, flag: str = "--out ") -> None:
    """Refuse a folder that results cannot go to before the work is done, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetinaNetError(f"{flag}{out}: no such folder can be made ({error.strerror}); choose another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise RetinaNetError(f"{flag}{out}: writing there is not permitted; choose another folder")


def describe(dataset: Dataset) -> None:
    """Say what a dataset holds and what its reader found wrong."""
    boxes, ignored = int((~dataset.ignore).sum()), int(dataset.ignore.sum())
    counts = sorted(dataset.class_counts().items(), key=lambda item: -item[1])
    names = ", ".join(f"{name} {count}" for name, count in counts[:6]) + (" …" if len(counts) > 6 else "")
    regions = f", {ignored} ignore region{'s' * (ignored != 1)}" if ignored else ""
    console.print(f"{dataset.name}: {len(dataset)} images, {boxes} boxes ({names}){regions}")
    kinds: dict[tuple[str, str], list[str]] = {}
    for problem in dataset.problems:
        # the kind's first words say what it is; coordinates differ from box to box
        kinds.setdefault((problem.kind.split(" (")[0], problem.action), []).append(str(problem))
    for (kind, action), found in kinds.items():
        console.print(f"  {len(found)} × {kind}, {action}:")
        for line in found[:3]:
            console.print(f"    {line}")
        if len(found) > 3:
            console.print(f"    … and {len(found) - 3} more")


def print_notes(notes: Sequence[str]) -> None:
    """Print remarks for the user, the first ten."""
    for note in notes[:10]:
        console.print(f"note: {note}")
    if len(notes) > 10:
        console.print(f"note: … and {len(notes) - 10} more")


def print_next(command: str) -> None:
    """End a verb with the command to go on with."""
    console.print(f"next: {command}")
