"""Settings as flags of the command line, and paths as words of a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from retinanet.read_options import ReadOptions

if TYPE_CHECKING:
    from retinanet.config import Config


def changed_flags(config: Config, base: Config, groups: Sequence[str]) -> Iterator[str]:
    """Yield the flags that turn ``base`` into ``config``, for the settings of these groups."""
    for group in groups:
        ours, theirs = getattr(config, group), getattr(base, group)
        for each in fields(ours):
            value, name = getattr(ours, each.name), each.name.replace("_", "-")
            if value == getattr(theirs, each.name):
                continue
            if isinstance(value, bool):
                yield f"--{group}.{'' if value else 'no-'}{name}"
            else:
                words = value if isinstance(value, tuple) else (value,)
                yield " ".join([f"--{group}.{name}", *(quoted(str(word)) for word in words)])


def reading_flags(options: ReadOptions) -> Iterator[str]:
    """Yield the flags, which every command has, of the options of reading that differ from the defaults."""
    for each in fields(ReadOptions):
        value, name = getattr(options, each.name), each.name.replace("_", "-")
        if value != each.default:
            yield f"--data.{name}" if value is True else f"--data.{name} {quoted(str(value))}"


def quoted(path: str | Path) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))
