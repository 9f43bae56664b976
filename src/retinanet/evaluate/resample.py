"""Which detections are right, by COCO's rule, and the average precision that follows for any weights of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.evaluate.ap import Predictions, coco_evaluation

# COCO asks for this overlap: 0.50, 0.55, … 0.95.
IOUS = np.linspace(0.5, 0.95, 10)

_RECALLS = np.linspace(0, 1, 101)

# hotcoco's verdict on an image and class is a Python dictionary; all of a large dataset's would fill gigabytes.
_CLASSES_AT_ONCE = 10

# Numbers held at once for the detections of a class in several resamples: 64 MB.
_CHUNK = 8_000_000


@dataclass(frozen=True)
class Matches:
    """COCO's verdict on the detections of one class: of each image the best 100, from the best score to the worst.

    Attributes:
        rows: int64 ``(D,)``, their positions in the :class:`Predictions`.
        images: int64 ``(D,)``, positions of their images in the dataset.
        scores: float64 ``(D,)``, falling.
        right: bool ``(T, D)``, whether each is an object at the overlap ``IOUS[t]``.
        ignored: bool ``(T, D)``, whether it lies in an ignore region, and is neither right nor wrong.
        targets: int64 ``(D,)``, the row in ``dataset.boxes`` that each found at IoU 0.5, −1 for none.
        objects: int64 ``(N,)``, how many objects of the class each image of the dataset has.
    """

    rows: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    targets: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]


def match(dataset: Dataset, predictions: Predictions) -> list[Matches]:
    """The verdict on ``predictions`` for each class of ``dataset``, in the order of its classes."""
    evaluation = coco_evaluation(dataset, predictions)
    position = {int(image): i for i, image in enumerate(dataset.image_ids)}
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    copies = np.where(dataset.labels < 0, len(dataset.classes), 1)
    source = np.repeat(np.arange(len(dataset.labels)), copies)  # row of each annotation id, from 1
    result = []
    for first in range(0, len(dataset.classes), _CLASSES_AT_ONCE):
        categories = dataset.category_ids[first : first + _CLASSES_AT_ONCE]
        settings = evaluation.params
        settings.cat_ids, settings.area_rng, settings.area_rng_lbl = list(categories), [[0.0, 1e10]], ["all"]
        evaluation.params = settings
        evaluation.evaluate()
        found = [image for image in evaluation.eval_imgs if image is not None and image["dtIds"]]
        for label, category in enumerate(categories, first):
            mine = owner[(dataset.labels == label) & ~dataset.ignore]
            here = [image for image in found if image["category_id"] == category]
            result.append(_matches(here, position, source, np.bincount(mine, minlength=len(dataset))))
    return result


def _matches(
    found: list[dict[str, Any]],
    position: dict[int, int],
    source: npt.NDArray[np.int64],
    objects: npt.NDArray[np.int64],
) -> Matches:
    def joined(key: str, empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([empty, *(np.asarray(image[key], dtype=empty.dtype) for image in found)], axis=-1)

    none, none_each = np.zeros(0, np.int64), np.zeros((len(IOUS), 0), np.int64)
    scores = joined("dtScores", none.astype(np.float64))
    order = np.argsort(-scores, kind="stable")
    images = np.array([position[image["image_id"]] for image in found for _ in image["dtIds"]], dtype=np.int64)
    matched = joined("dtMatches", none_each)[:, order]
    ignored = joined("dtIgnore", none_each.astype(np.bool_))[:, order]
    right = (matched > 0) & ~ignored
    targets = np.full(len(scores), -1, dtype=np.int64)
    targets[right[0]] = source[matched[0][right[0]] - 1]
    rows = joined("dtIds", none)[order] - 1
    return Matches(rows, images[order], scores[order], right, ignored, targets, objects)


def average_precision(matches: Matches, weights: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """COCO's average precision of one class when image ``i`` is there ``weights[r, i]`` times.

    It is what pycocotools computes for a dataset with that many copies of each image, in one pass over the detections.

    Args:
        matches: the verdict on the detections of the class.
        weights: integers ``(R, N)``, a row for each resample.

    Returns:
        float64 ``(R, T)``, for each resample and overlap; NaN where a resample has no object of the class.
    """
    chunk = max(1, _CHUNK // max(1, len(matches.rows)))
    parts = [_average_precision(matches, weights[i : i + chunk]) for i in range(0, len(weights), chunk)]
    return np.concatenate(parts)


def _average_precision(matches: Matches, weights: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    weights = weights.astype(np.int64)
    objects = weights @ matches.objects  # (R,)
    times = weights[:, matches.images].T  # (D, R)
    seen = np.cumsum(times, axis=0)  # (D, R) detections up to and with each
    needed = _smallest_counts(objects)  # (R, 101)
    result = np.full((len(weights), len(IOUS)), np.nan)
    for t in range(len(IOUS)):
        hits, skipped = np.flatnonzero(matches.right[t]), np.flatnonzero(matches.ignored[t])
        right = np.cumsum(times[hits], axis=0)  # (H, R)
        ignored = np.concatenate([np.zeros_like(times[:1]), np.cumsum(times[skipped], axis=0)]) if len(skipped) else 0
        before = ignored[np.searchsorted(skipped, hits)] if len(skipped) else 0  # type: ignore[index]
        precision = right / np.maximum(seen[hits] - before, 1)
        # The best precision at this recall or any higher one; none beyond the last hit.
        envelope = np.concatenate([np.maximum.accumulate(precision[::-1])[::-1], np.zeros((1, len(weights)))])
        for r in np.flatnonzero(objects):
            result[r, t] = envelope[np.searchsorted(right[:, r], needed[r]), r].mean()
    return result


def _smallest_counts(objects: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each number of objects ``(R,)`` the fewest found that reach each recall, as floats compare: ``(R, 101)``."""
    total = np.maximum(objects, 1)[:, None]
    count = np.ceil(_RECALLS * total).astype(np.int64)
    count -= (count - 1) / total >= _RECALLS
    count += count / total < _RECALLS
    return np.maximum(count, 0)
