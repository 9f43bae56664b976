"""The arguments of ``retinanet reproduce``. Nothing here imports torch, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.errors import ConfigError
from retinanet.flags import quoted


@dataclass(frozen=True)
class Options:
    """Repeat the paper's experiments, at small scale on any data or with the paper's recipe on COCO.

    Without NAME, list the experiments.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """table1a, table1b, table1c, table1d, table1e, table3, fig1, fig2, fig4, divergence, or all."""
    dataset: Annotated[Positional[str | None], arg(metavar="DATA")] = None
    """Dataset to train on. Unset: use the sample dataset (small scale) or only print the commands (paper scale)."""
    scale: Literal["small", "paper"] = "small"
    """small: minutes per training on two cores. paper: the paper's recipe, which needs COCO and GPUs."""
    seeds: tuple[int, ...] = ()
    """Seeds of each row. Unset: 0 1 2 at small scale, 0 at paper scale."""
    jobs: Annotated[int | None, arg(metavar="N")] = None
    """Number of parallel trainings. With several, each uses one thread. Unset: 2 at small scale, 1 at paper scale."""
    images: int = 1200
    """Number of images that each training sees at small scale. A larger dataset is reduced to a subset of this size."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE")] = None
    """Recipe that every row starts from at small scale. Unset: paper, with a small backbone and at 320 pixels."""
    every_row: bool = False
    """Include the rows that are left out by default (all settings of OHEM in table1d)."""
    weights: Annotated[Path | None, arg(metavar="WEIGHTS")] = None
    """Trained model for fig4. Unset: the γ = 2 training of table1b."""
    report: bool = False
    """Train nothing; write the results of the finished runs."""
    out: Path = Path("experiments/results")
    """Folder for NAME.md, NAME.json and NAME.png."""
    runs: Path = Path("runs/reproduce")
    """Folder of the trainings. Interrupted trainings are resumed."""

    def check(self) -> None:
        """Check the values that the parser cannot check.

        Raises:
            ConfigError: a value is out of range, or two options exclude each other.
        """
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"--jobs is {self.jobs}; it must be at least 1")
        if self.images < 1:
            raise ConfigError(f"--images is {self.images}; it must be at least 1")
        if any(seed < 0 for seed in self.seeds):
            raise ConfigError("--seeds must not be negative; use for example --seeds 0 1 2")
        if self.scale == "paper" and self.recipe:
            raise ConfigError("--recipe needs --scale small; --scale paper always uses the paper's recipe")
        if self.scale == "paper" and self.images != Options.images:
            raise ConfigError("--images needs --scale small; --scale paper always trains on the whole dataset")
        if self.weights is not None and self.name not in ("fig4", "all"):
            raise ConfigError("--weights needs fig4, which shows one trained model")

    def parallel_runs(self) -> int:
        """Number of parallel trainings. Two cores are the default budget at small scale."""
        return self.jobs or (2 if self.scale == "small" else 1)

    def distinct_seeds(self) -> tuple[int, ...]:
        """Seeds of each row, each once."""
        return tuple(dict.fromkeys(self.seeds or ((0, 1, 2) if self.scale == "small" else (0,))))

    def command(self) -> str:
        """The arguments to write after NAME to get the same results again."""
        words = [quoted(Path(self.dataset).resolve().name)] if self.dataset else []
        words += ["--scale paper"] if self.scale == "paper" else []
        words += [f"--seeds {' '.join(map(str, self.distinct_seeds()))}"]
        words += [f"--images {self.images}"] if self.images != Options.images else []
        words += [f"--recipe {quoted(self.recipe)}"] if self.recipe else []
        words += ["--every-row"] if self.every_row else []
        words += [f"--weights {quoted(self.weights.name)}"] if self.weights else []
        return " ".join(words)
