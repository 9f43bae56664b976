"""What a training will do, in one paragraph before it starts, and how long it takes, once that is known."""

from __future__ import annotations

import time

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.inspection.checks import finding_of
from retinanet.inspection.class_checks import class_findings
from retinanet.inspection.findings import Finding
from retinanet.inspection.paragraph import contents, problems
from retinanet.inspection.tile_advice import tile_findings

# The time is estimated after this many steps and seconds, and printed if at least the last number of seconds is left.
_STEPS, _SECONDS, _WORTH = 10, 20.0, 120.0


def outlook(train_set: Dataset, val_set: Dataset, config: Config) -> str:
    """Describe a training in a paragraph: the data, its most serious problems, and the settings that matter most.

    Only the annotations are looked at. ``retinanet data inspect`` also looks at the images.
    """
    splits = {"train": train_set, "val": val_set}
    settings, data = config.train, config.data
    found: list[Finding] = list(class_findings(splits, {name: part.classes for name, part in splits.items()}))
    found += tile_findings("train", train_set, data)
    for name, part in splits.items():
        found += [finding_of(name, problem) for problem in part.problems]
    scale = f"{data.size} px" if data.tile is None else f"{data.size} px in tiles of {data.tile} px of the images"
    epochs = "1 epoch" if settings.epochs == 1 else f"{settings.epochs} epochs"
    return (
        f"This training uses {contents(splits)} {problems(found, config)} It trains {config.model.backbone} at "
        f"{scale} for {epochs} with {settings.batch} {'images' if data.tile is None else 'tiles'} per step, and keeps "
        "the weights with the best AP on val."
    )


class Clock:
    """Estimates the time that a training takes."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._said = False

    def estimate(self, step: int, steps: int) -> str | None:
        """Return a line with the time left, once; ``None`` before it is known, and for short trainings.

        Args:
            step: number of the step that has ended.
            steps: number of the last step.
        """
        now = time.monotonic()
        if self._first is None:  # the first step also loads kernels
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        if self._said or done < _STEPS or seconds < _SECONDS:
            return None
        self._said = True
        left = seconds / done * (steps - step)
        if left < _WORTH:
            return None
        return f"about {duration(left)} left: {steps - step:,} steps of {seconds / done:.2g} s, and the evaluations"


def duration(seconds: float) -> str:
    """Format a duration in hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
