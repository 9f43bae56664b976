"""Settings as flags of the command line, and paths as words of a shell."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinanet.read_options import ReadOptions

if TYPE_CHECKING:
    from retinanet.config import Config


def changed_flags(config: Config, base: Config, groups: Sequence[str], reading: bool = True) -> Iterator[str]:
    """Yield the flags that turn ``base`` into ``config``, for the settings of these groups.

    Without ``reading``, the flags are for another copy of the data: those that say how the data is read are left out.
    """
    left_out = () if reading else ("train", "val", *(each.name for each in fields(ReadOptions)))
    for group in groups:
        ours, theirs = getattr(config, group), getattr(base, group)
        yield from _flags(group, ours, theirs, left_out if group == "data" else ())


def reading_flags(options: ReadOptions) -> list[str]:
    """Return the flags that read a dataset with these options, for every command that has them."""
    default = ReadOptions()
    own = [each.name for each in fields(options)]
    return list(_flags("data", options, default, set(own) - {each.name for each in fields(default)}))


def _flags(group: str, ours: Any, theirs: Any, left_out: Collection[str]) -> Iterator[str]:
    """Yield the flags of the fields in which ``ours`` differs from ``theirs``."""
    for each in fields(ours):
        value, name = getattr(ours, each.name), each.name.replace("_", "-")
        if each.name in left_out or value == getattr(theirs, each.name):
            continue
        if isinstance(value, bool):
            yield f"--{group}.{'' if value else 'no-'}{name}"
        else:
            words = value if isinstance(value, tuple) else (value,)
            yield " ".join([f"--{group}.{name}", *(quoted(str(word)) for word in words)])


def unused(folder: Path) -> Path:
    """Return ``folder``, or the first of ``folder-2``, ``folder-3`` … that does not exist, if it is not empty."""
    candidate, number = folder, 1
    while candidate.exists() and not (candidate.is_dir() and not any(candidate.iterdir())):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def quoted(path: str | Path) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))
