"""Decode every image before a training, so that a broken file is reported at the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from retinanet.data.dataset import Dataset
from retinanet.data.image_memory import Decoded, ImageMemory, Stamp
from retinanet.data.images import read_image
from retinanet.errors import DataError

_Found = list[tuple[int, str | None, str | None]]  # index, error, remark


def verify_images(
    dataset: Dataset,
    skip_broken: bool = False,
    progress: Callable[[int], object] = lambda images: None,
    share: Callable[[Sequence[int]], Sequence[int]] = lambda indices: indices,
    gather: Callable[[_Found], list[_Found]] = lambda found: [found],
    memory: ImageMemory | None = None,
) -> tuple[Dataset, list[str]]:
    """Decode all images of ``dataset``.

    Args:
        dataset: the images to check.
        skip_broken: leave out unreadable images instead of raising an error.
        progress: called with the number of images just checked.
        share: selects the indices that this process checks, if several processes share the work.
        gather: collects the results of all processes.
        memory: images that it knows are not decoded again. It stores the images that were decoded without a remark.

    Returns:
        The dataset without unreadable images, and notes. A note names an unreadable image, or an image whose size
        differs from its annotations.

    Raises:
        DataError: an image cannot be read and ``skip_broken`` is off, or no image can be read.
    """
    own = share(range(len(dataset)))
    known = _known(dataset, own, memory) if memory else set()
    progress(len(known))
    new = [index for index in own if index not in known]
    found: _Found = []
    sound: list[tuple[Path, Decoded]] = []
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow releases the GIL while it decodes
        for index, (error, remark, decoded) in zip(new, pool.map(partial(_check, dataset), new), strict=True):
            if error or remark:
                found.append((index, error, remark))
            elif decoded:
                sound.append((dataset.path(index), decoded))
            progress(1)
    if memory:
        memory.store(sound)
    together = sorted((entry for results in gather(found) for entry in results), key=lambda entry: entry[0])
    broken = {index: error for index, error, _ in together if error}
    remarks = [remark for _, _, remark in together if remark]
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


def _known(dataset: Dataset, indices: Sequence[int], memory: ImageMemory) -> set[int]:
    """Return the images that ``memory`` knows in the size of their annotations."""
    recalled = memory.recall([dataset.path(index) for index in indices])
    known = {indices[i] for i, each in recalled.items() if each.size == tuple(dataset.sizes[indices[i]].tolist())}
    memory.used += len(known)
    return known


def _check(dataset: Dataset, index: int) -> tuple[str | None, str | None, Decoded | None]:
    """Return the error of an unreadable image, a note about an unexpected size, and what can be remembered."""
    path = dataset.path(index)
    stamp = Stamp.of(path)
    try:
        pixels = read_image(path)
    except DataError as error:
        return str(error), None, None
    size = (pixels.shape[1], pixels.shape[0])
    return None, other_size(dataset, index, size), Decoded(stamp, size) if stamp else None


def other_size(dataset: Dataset, index: int, found: tuple[int, int]) -> str | None:
    """Return a note if the ``(width, height)`` of an image differs from that of its annotations."""
    width, height = (int(v) for v in dataset.sizes[index])
    if found == (width, height):
        return None
    return f"{dataset.path(index)}: the image has {found[0]}×{found[1]} pixels, its annotations say {width}×{height}"
