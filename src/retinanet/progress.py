"""The one progress display: a bar with rate and time left on a terminal, nothing in a log file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Counts finished items."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total)

    def advance(self, items: int) -> None:
        """Count ``items`` as finished."""
        self._progress.advance(self._task, items)

    def update(self, items: int, status: str) -> None:
        """Count ``items`` as finished and show ``status`` before the bar."""
        self._progress.update(self._task, advance=items, description=status)


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Bar]:
    """Show a bar while the block runs; it disappears afterwards."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, what, total)
