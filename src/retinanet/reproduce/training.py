"""Train the missing runs and show their progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from retinanet.files import write_json
from retinanet.progress import Bar, progress_bar
from retinanet.reproduce.plan import Run
from retinanet.reproduce.queue import Ended, Task, run_tasks
from retinanet.reproduce.results import Outcome, images_done, outcome
from retinanet.reproduce.worker import SPEC

# Seconds between two readings of the logs.
_LOOK = 1.0


def train_missing(runs: Sequence[Run], jobs: int, console: Console) -> list[str]:
    """Train the runs that have not ended, ``jobs`` at a time. Interrupted runs are resumed.

    Returns:
        A line for each failed run. A run that diverged (loss NaN or infinite) is a result, not a failure.
    """
    waiting = [run for run in runs if outcome(run) is None]
    if runs:
        console.print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished")
    if not waiting:
        return []
    for run in waiting:
        write_json(run.folder / SPEC, run.to_dict())
    by_task = {
        Task(run.name, (sys.executable, "-m", "retinanet.reproduce.worker", str(run.folder))): run for run in waiting
    }
    with progress_bar(console, "training", sum(run.images - images_done(run) for run in waiting)) as bar:
        progress = _Progress(console, bar, by_task)
        try:
            run_tasks(list(by_task), jobs, progress.ended, progress.look, one_thread=jobs > 1)
        except KeyboardInterrupt:
            console.print("run the same command to resume")
            raise
    return progress.failures


@dataclass
class _Progress:
    """Counts the images shown by all runs, from their logs, and prints how each run ended."""

    console: Console
    bar: Bar
    tasks: dict[Task, Run]
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = list(self.tasks.values())
        self._began = self._looked = time.monotonic()
        self._at_first = {run.folder: images_done(run) for run in self.runs}
        self._seen = dict(self._at_first)
        self._over = 0

    def look(self) -> None:
        """Read the logs, at most once every ``_LOOK`` seconds."""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        before = sum(self._seen.values())
        self._seen |= {run.folder: images_done(run) for run in self.runs if self._seen[run.folder] < run.images}
        self.bar.update(sum(self._seen.values()) - before, f"{self._over} of {len(self.runs)} runs")

    def ended(self, ended: Ended) -> None:
        """Print how a run ended."""
        run = self.tasks[ended.task]
        self._over += 1
        self.bar.advance(run.images - self._seen[run.folder])
        self._seen[run.folder] = run.images  # a diverged run stops before its last image
        found = outcome(run) if ended.code == 0 else None
        if found is None:
            said = (ended.errors.strip().splitlines() or [f"its process ended with {ended.code}"])[-1]
            self.failures.append(f"{run.name}: {said}")
        end = f"failed ({self.failures[-1]})" if found is None else _ending(found)
        left = self._time_left()
        self.console.print(f"{self._over:>3} of {len(self.runs)}  {run.name}: {end}, {ended.seconds:.0f} s{left}")

    def _time_left(self) -> str:
        done = sum(self._seen.values()) - sum(self._at_first.values())
        rest = sum(run.images for run in self.runs) - sum(self._seen.values())
        return f"; about {(time.monotonic() - self._began) / done * rest / 60:.0f} min left" if done and rest else ""


def _ending(found: Outcome) -> str:
    if found.ap is None:
        return f"diverged at step {found.diverged}"
    return f"AP {100 * found.ap:.1f}"
