"""Explain a loss or a gradient that is NaN or infinite: which images caused it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from retinanet.data.loader import Batch
from retinanet.files import write_json
from retinanet.training.job import Job
from retinanet.training.state import TrainingState
from retinanet.training.step import forward_alone


def explain(job: Job, state: TrainingState, batch: Batch) -> str:
    """Write ``nonfinite.json`` with the losses of each image of the failing batch; return the error message."""
    own = [_contribution(job, state, batch, row) for row in range(len(batch.indices))]
    images = [image for of_rank in job.processes.gather(own) for image in of_rank]
    report = job.out / "nonfinite.json"
    if job.processes.is_main:
        write_json(report, images, indent=1)
    culprits = [image for image in images if not image["finite"]] or images
    named = ", ".join(
        f"{Path(i['file']).name} (classification {i['classification loss']}, box {i['box loss']})" for i in culprits[:3]
    )
    settings = job.config.train
    # Clipping the gradient is the remedy that helps most often, and it costs nothing.
    bound = "" if settings.clip else "--train.clip 10, "
    other = "" if settings.precision == "fp32" else ", or with --train.precision fp32"
    return (
        f"the loss or its gradient is not finite on {named}{' …' if len(culprits) > 3 else ''}; "
        f"every value is in {report}. Start again in another --out with {bound}a lower --train.lr than "
        f"{settings.lr:g}{other}"
    )


def _contribution(job: Job, state: TrainingState, batch: Batch, row: int) -> dict[str, Any]:
    """The losses and the largest outputs of one image, and its boxes."""
    outputs, losses = forward_alone(state.model, batch[row : row + 1], job.config, state.dtype)
    values = {
        "classification loss": losses.classification.item(),
        "box loss": losses.box.item(),
        "largest logit": max(level.abs().max().item() for level in outputs.logits),
        "largest delta": max(level.abs().max().item() for level in outputs.deltas),
    }
    return {
        "file": str(job.train_set.path(batch.indices[row])),
        "finite": all(map(math.isfinite, values.values())),
        **{name: str(value) for name, value in values.items()},  # JSON has no NaN
        "boxes": batch.boxes[row].tolist(),
        "classes": [job.train_set.classes[label] for label in batch.labels[row].tolist()],
    }
