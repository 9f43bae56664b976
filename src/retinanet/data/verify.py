"""Decode every image once before a training, so that a broken file is named now and not after hours."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.errors import DataError


def verify_images(
    dataset: Dataset, skip_broken: bool = False, progress: Callable[[int], object] = lambda images: None
) -> tuple[Dataset, list[str]]:
    """Decode all images of ``dataset``.

    Args:
        dataset: what to check.
        skip_broken: leave unreadable images out instead of stopping.
        progress: called with the number of images just checked.

    Returns:
        The dataset without images that were left out, and remarks: what was left out, and images whose size is not the
        one their annotations refer to.

    Raises:
        DataError: images cannot be read and ``skip_broken`` is off, or none can.
    """
    broken: dict[int, str] = {}
    remarks: list[str] = []
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes outside the interpreter's lock
        for index, (error, remark) in enumerate(pool.map(partial(_check, dataset), dataset)):
            if error:
                broken[index] = error
            if remark:
                remarks.append(remark)
            progress(1)
    if broken and (not skip_broken or len(broken) == len(dataset)):
        shown = "; ".join(list(broken.values())[:3])
        more = f" … and {len(broken) - 3} more" if len(broken) > 3 else ""
        remedy = "" if len(broken) == len(dataset) else ". Or leave such images out with --data.skip-broken"
        count = f"{len(broken)} of {len(dataset)} images cannot be read"
        raise DataError(f"{dataset.name}: {count}: {shown}{more}{remedy}")
    if broken:
        remarks += [f"left out: {error}" for error in broken.values()]
        dataset = dataset.subset([i for i in dataset if i not in broken])
    return dataset, remarks


def _check(dataset: Dataset, index: int) -> tuple[str | None, str | None]:
    """What is wrong with an image, and what is odd about it."""
    width, height = (int(v) for v in dataset.sizes[index])
    try:
        pixels = read_image(dataset.path(index), expected_size=(width, height))
    except DataError as error:
        return str(error), None
    found = (pixels.shape[1], pixels.shape[0])
    if found != (width, height):
        return None, (
            f"{dataset.path(index)}: the picture has {found[0]}×{found[1]} pixels, its annotations say {width}×{height}"
        )
    return None, None
