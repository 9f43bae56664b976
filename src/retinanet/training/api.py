"""``retinanet.train``: from the path of a dataset and a recipe to a trained detector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from retinanet.config import Config, ModelConfig
from retinanet.data.dataset import Dataset
from retinanet.data.formats.train_val import read_train_val
from retinanet.data.image_memory import ImageMemory
from retinanet.data.object_counts import most_objects
from retinanet.data.pixel_range import with_one_pixel_range
from retinanet.data.summary import note_lines, summary
from retinanet.data.verify import verify_images
from retinanet.decode_config import leaves_room
from retinanet.errors import ConfigError
from retinanet.files import claimed, make_folder
from retinanet.model.backbone import require_backbone
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import plain_console, progress_bar
from retinanet.schema import without_effect
from retinanet.training.distributed import Processes, joined_processes
from retinanet.training.job import Job, Result
from retinanet.training.loop import train_job
from retinanet.training.outlook import outlook
from retinanet.training.resume import open_run
from retinanet.training.tracking import require_trackers


@explain_missing_packages("retinanet.train")
def train(
    data: str | Path,
    out: str | Path = "runs/retinanet",
    recipe: str | Config | None = None,
    resume: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> Result:
    """Train a detector: ``retinanet.train("data", out="runs/a", recipe="modern", **{"train.epochs": 10})``.

    ``out`` gets ``best.safetensors``, ``last.safetensors``, ``metrics.jsonl``, ``config.yaml`` and ``curves.png``.

    Args:
        data: folder of a COCO, Pascal VOC, YOLO or CSV dataset, or its annotation file.
        out: folder of the run.
        recipe: ``modern``, ``paper``, a YAML file or a :class:`Config`. Unset: ``modern``, or the settings of the run
            that is resumed.
        resume: go on from the checkpoint in ``out`` if there is one. The result is that of an uninterrupted run.
        console: where messages and progress are printed. Unset: the standard output.
        **settings: single settings, named as the flags of ``retinanet train``: ``train.epochs``, ``data.size``, …

    Raises:
        TrainingStopped: Ctrl-C or SIGTERM; the state was saved.
        ConfigError: a setting is unknown or has an invalid value.
        DataError: the dataset cannot be used.
        CheckpointError: ``out`` holds another run, or a run with other settings or data.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        RetinaNetError: ``out`` cannot be written, or another training is writing to it.
    """
    out = Path(out)
    with joined_processes() as processes:
        console = (console or plain_console()) if processes.is_main else Console(quiet=True)
        with _own_folder(out) if processes.is_main else nullcontext():
            # Find errors that need no image first, because verifying the images can take minutes.
            config, checkpoint = open_run(out, resume, recipe, settings)
            require_backbone(config.model.backbone)
            _require_use_of_weights(config.model)
            require_trackers(config.train.track)
            for sentence in without_effect(config):
                console.print(f"note: {sentence}")
            train_set, val_set = _read_data(data, config, console, processes)
            if train_set.pixel_range is not None:  # stored with the weights
                config = replace(config, data=replace(config.data, pixel_range=train_set.pixel_range))
            result = train_job(Job(config, train_set, val_set, out, console, processes), checkpoint)
            limit = config.decode.resolved(most_objects(train_set)).max_detections
            _print_result(result, out, val_set, limit, console)
    return result


def _require_use_of_weights(settings: ModelConfig) -> None:
    """Raise ConfigError if there is a file of backbone weights that would not be read."""
    if settings.weights is not None and not settings.pretrained:
        instead = f"model.init ({settings.init})" if settings.init else "random weights (model.no-pretrained)"
        raise ConfigError(f"model.weights is {settings.weights}, but the network starts from {instead}; leave one out")


@contextmanager
def _own_folder(out: Path) -> Iterator[None]:
    """Make the run's folder and claim it while the block runs. After an error, remove it if new and empty."""
    new = not out.exists()
    make_folder(out)
    try:
        with claimed(out):
            yield
    except BaseException:
        if new and set(os.listdir(out)) <= {".lock"}:
            with suppress(OSError):
                (out / ".lock").unlink(missing_ok=True)
                out.rmdir()
        raise


def _read_data(data: str | Path, config: Config, console: Console, processes: Processes) -> tuple[Dataset, Dataset]:
    """Read and verify the data; print its contents."""
    settings = config.data
    train_set, val_set, notes = read_train_val(
        data, settings.train, settings.val, settings.val_fraction, options=settings
    )
    ranged = with_one_pixel_range({"train": train_set, "val": val_set}, settings.pixel_range)
    train_set, val_set = ranged["train"], ranged["val"]
    if settings.verify != "never":
        memory = ImageMemory(trusted=settings.verify == "auto")
        together = (processes.share, processes.gather, memory)
        images = (len(train_set) + len(val_set)) // processes.world_size
        with progress_bar(console, "checking images", images) as bar:
            train_set, train_notes = verify_images(train_set, settings.skip_broken, bar.advance, *together)
            val_set, val_notes = verify_images(val_set, settings.skip_broken, bar.advance, *together)
        notes = [*notes, *train_notes, *val_notes, *memory.notes(images)]
    for line in [*summary(train_set), *summary(val_set), *note_lines(notes)]:
        console.print(line)
    console.print(outlook(train_set, val_set, config))
    return train_set, val_set


def _print_result(result: Result, out: Path, val_set: Dataset, limit: int, console: Console) -> None:
    if result.unreadable:
        images, times = len(result.unreadable), sum(result.unreadable.values())
        console.print(f"{images} images could not be read ({times} times in all); others took their places")
    if result.seconds == 0:
        console.print(f"{out} is already finished ({result.finished}); to train again, choose another --out")
    elif "epochs are done" not in result.finished:
        console.print(f"stopped early: {result.finished}")
    limited = result.metrics.get("images_at_limit")
    if limited and not leaves_room(limit, most_objects(val_set)):
        console.print(
            f"note: {limited} of {len(val_set)} val images reached the limit of detections per image; 'retinanet eval "
            "--max-detections N' shows what a higher limit gives"
        )
    console.print(
        f"best AP {result.metrics['AP']:.4f}, AP50 {result.metrics['AP50']:.4f} on {val_set.name} "
        f"after {result.seconds:.0f} s of training; curves in {out / 'curves.png'}"
    )
