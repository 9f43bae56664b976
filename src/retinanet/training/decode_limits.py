"""Limits on the detections per image, from the number of objects in the training images."""

from __future__ import annotations

from dataclasses import replace

from retinanet.data.object_counts import most_objects
from retinanet.decode_config import LEAST_DETECTIONS
from retinanet.training.job import Job


def with_limits(job: Job) -> Job:
    """Return the job with ``decode.max_detections`` and ``decode.top_k`` set, and print the limits if they matter.

    Limits that are unset follow the densest training image or tile, see
    :meth:`retinanet.config.DecodeConfig.resolved`. In a detector that is trained on tiles, they apply to each tile.
    """
    before, densest = job.config.decode, job.most_objects
    shown = "image" if job.tiles is None else "tile"
    after = before.resolved(densest)
    decode = replace(before, max_detections=after.max_detections, top_k=after.top_k)
    limit = after.max_detections
    if job.processes.is_main:
        if limit < densest:
            job.warn(
                f"decode.max_detections is {limit}, but the densest training {shown} has {densest} objects; leave "
                "--decode.max-detections out, or raise it"
            )
        elif before.max_detections is None and limit > LEAST_DETECTIONS:
            job.console.print(
                f"the densest training {shown} has {densest} objects; the detector returns up to {limit} detections "
                f"per {shown} (--decode.max-detections)",
                highlight=False,
            )
        if job.tiles is None and densest <= limit < (val := most_objects(job.val_set)):
            job.warn(
                f"the densest val image has {val} objects, but the detector returns at most {limit} detections per "
                "image; raise --decode.max-detections"
            )
    return replace(job, config=replace(job.config, decode=decode))
