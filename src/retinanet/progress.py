"""The console that the package prints to, and its progress bar for terminals and notebooks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints text as it is: paths with brackets are not taken for markup."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def shows_progress(console: Console) -> bool:
    """Return whether ``console`` can redraw a progress bar: a terminal, or a notebook with ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class Bar:
    """Counts finished items."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total)

    def advance(self, items: int) -> None:
        """Count ``items`` as finished."""
        self._progress.advance(self._task, items)

    def update(self, items: int, status: str) -> None:
        """Count ``items`` as finished and show ``status`` in front of the bar."""
        self._progress.update(self._task, advance=items, description=status)


@contextmanager
def progress_bar(console: Console, what: str, total: int | None) -> Iterator[Bar]:
    """Show a progress bar while the block runs; it disappears afterwards. ``total`` is None if it is not known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as progress:
        yield Bar(progress, what, total)
