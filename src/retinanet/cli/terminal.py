"""The parts that all commands share: the terminal, the arguments, and messages about datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from retinanet.errors import ConfigError
from retinanet.files import make_folder as make_folder
from retinanet.flags import changed_flags as changed_flags
from retinanet.flags import quoted as quoted
from retinanet.flags import reading_flags
from retinanet.flags import unused as unused
from retinanet.progress import plain_console
from retinanet.read_options import ReadOptions
from retinanet.scale.options import LOCAL, is_address

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset

Arguments = TypeVar("Arguments")

console = plain_console()
errors = plain_console(stderr=True)


def parse(kind: type[Arguments], argv: Sequence[str], prog: str, default: Arguments | None = None) -> Arguments:
    """Return the arguments of a command. Flags override ``default``. tyro ends the program if a flag is invalid."""
    words = _with_ray_address(_with_words_for_verify(argv))
    if default is None:
        return tyro.cli(kind, args=words, prog=prog)
    return tyro.cli(kind, args=words, prog=prog, default=default)


def refuse_ignored(given: Any, names: Sequence[str], reason: str) -> None:
    """Raise ConfigError if flags are given that would be ignored.

    Args:
        given: the arguments, a dataclass.
        names: the fields of these flags.
        reason: what they are for.
    """
    flags: list[str] = []
    for each in fields(given):
        value = getattr(given, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name not in names or value == default:
            continue
        if isinstance(value, ReadOptions):
            flags += [flag.split()[0] for flag in reading_flags(value)]
        else:
            flags.append(f"--{each.name.replace('_', '-')}")
    if flags:
        raise ConfigError(f"{', '.join(flags)}: only for {reason}; leave {'it' if len(flags) == 1 else 'them'} out")


def _with_words_for_verify(argv: Sequence[str]) -> list[str]:
    """Complete ``--data.verify`` without a value to ``always``. ``--data.no-verify`` stands for ``never``."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == "--data.no-verify":
            words += ["--data.verify", "never"]
        elif word == "--data.verify" and following not in ("auto", "always", "never"):
            words += ["--data.verify", "always"]
        else:
            words.append(word)
    return words


def _with_ray_address(argv: Sequence[str]) -> list[str]:
    """Complete ``--ray`` without an address: the cluster in the variable ``RAY_ADDRESS``, or one of this machine."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        words.append(word)
        if word == "--ray" and not is_address(following):
            words.append(os.environ.get("RAY_ADDRESS") or LOCAL)
    return words


def option(argv: Sequence[str], name: str) -> str | None:
    """Return the value of ``--name value`` or ``--name=value``. Some defaults of the parser depend on this value."""
    joined = [word.split("=", 1)[1] for word in argv if word.startswith(f"{name}=")]
    following = [value for word, value in pairwise(argv) if word == name]
    return next(iter([*following, *joined]), None)


def describe(dataset: Dataset) -> None:
    """Print the contents of a dataset and the problems that its reader found."""
    from retinanet.data.summary import summary

    for line in summary(dataset):
        console.print(line)


def print_notes(notes: Sequence[str]) -> None:
    """Print notes for the user, the first ten of them."""
    from retinanet.data.summary import note_lines

    for line in note_lines(notes):
        console.print(line)


def limit_flag(max_detections: int | None) -> str:
    """Return the flag of a suggested command that repeats ``--max-detections``, with a space before it."""
    return "" if max_detections is None else f" --max-detections {max_detections}"


def print_next(command: str) -> None:
    """Print a suggested next command, as the last line of the output. It works as printed."""
    console.print(f"next: {command}")


def new_run(name: str = "retinanet") -> list[str]:
    """Return the flags for a folder of a training that does not exist yet; none if the default does not."""
    folder = unused(Path("runs") / name)
    return [] if str(folder) == str(Path("runs/retinanet")) else [f"--out {quoted(folder)}"]
