"""Write the results of ``retinanet detect``: the record and the files of each image while it runs, the others at the
end."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from retinanet.data.georeference import Georeference, georeference
from retinanet.detection.geojson import write_geojson
from retinanet.detection.input_images import ImageFile, InputImage
from retinanet.detection.path_set import PathSet
from retinanet.detection.pipeline import ImageResult
from retinanet.detection.record import Entry, Record
from retinanet.detection.texts import voc_text, yolo_text
from retinanet.errors import DataError
from retinanet.files import write_atomically, write_text
from retinanet.machine import cores

OutputFormat = Literal["coco", "csv", "yolo", "voc", "jsonl", "geojson", "parquet"]

# Longest side of a JPEG file that the library can write.
_JPEG_LONGEST = 65_500

# Suffixes of the files of an image.
_SUFFIXES = (".jpg", ".txt", ".xml", ".geojson")

# Comment in the JPEG files of drawings, by which an earlier drawing is told from an input image.
_COMMENT = b"drawn by retinanet detect"

# Limits of the images whose files are being written.
_WAITING_IMAGES, _WAITING_PIXELS = 32, 64_000_000


class OverwriteError(DataError):
    """An output file would replace a file that is not a result of ``retinanet detect``."""


@dataclass(frozen=True)
class Outputs:
    """What a run writes.

    Attributes:
        out: the folder.
        classes: names of the detector's classes.
        formats: formats of the detections.
        draw: whether copies of the images are written with their boxes drawn.
    """

    out: Path
    classes: tuple[str, ...]
    formats: tuple[OutputFormat, ...]
    draw: bool

    def drawing(self, name: Path) -> Path:
        """Return the path of the drawing of the image with the output name ``name``."""
        return self.out / name.with_suffix(".jpg")


class OutputNames:
    """Gives every image a name that no other image has; equal names get numbers.

    A folder that is named like an output file, such as ``x.jpg``, gets an underscore: ``x.png`` has that file.

    Args:
        taken: names of images that are done already, without suffixes.
    """

    def __init__(self) -> None:
        self._taken = PathSet()

    def take(self, name: str) -> None:
        """Reserve a name without a suffix."""
        self._taken.add(name)

    def name_of(self, image: InputImage) -> Path:
        """Return the output name of an image, which is reserved from now on."""
        folders = (f"{part}_" if part.lower().endswith(_SUFFIXES) else part for part in image.name.parts[:-1])
        first = Path(*folders, image.name.name)
        name, number = first, 1
        while not self._taken.add(name.with_suffix("").as_posix()):
            number += 1
            name = first.with_stem(f"{first.stem}-{number}")
        return name


class Writer:
    """Writes the files of each image, and then its entry in the record. Threads draw and encode.

    Args:
        outputs: what to write.
        record: where to append the entries.
        names: the names that are given away.
        check_drawings: refuse to replace a file by a drawing, unless the file is an earlier drawing. For images that
            :func:`refuse_overwriting` cannot check before the work.

    Attributes:
        without_coordinates: number of images for which no GeoJSON was written, because they are no GeoTIFF files.
    """

    def __init__(self, outputs: Outputs, record: Record, names: OutputNames, check_drawings: bool = False) -> None:
        self._check_drawings = check_drawings
        self._outputs, self._record, self._names = outputs, record, names
        self._pool = ThreadPoolExecutor(max_workers=min(4, max(2, cores())))
        self._waiting: deque[tuple[Entry, Future[None] | None, int]] = deque()
        self._pixels = 0
        self.without_coordinates = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, result: ImageResult) -> None:
        """Write the files of one image; they may be finished later, but before its entry is in the record.

        Raises:
            OverwriteError: the drawing would replace a file that is not a drawing.
            RetinaNetError: a file of this or an earlier image cannot be written.
        """
        name = self._names.name_of(result.image)
        stem = name.with_suffix("").as_posix()
        if result.found is None or result.size is None:
            entry, jobs = Entry(result.image.address, stem, None, error=str(result.error)), []
        else:
            entry = Entry.of(result.image.address, stem, result.size, result.found)
            jobs = self._jobs(result, entry, name)
        pixels = 0 if result.pixels is None else result.pixels.shape[0] * result.pixels.shape[1]
        self._pixels += pixels
        self._waiting.append((entry, self._pool.submit(_run, jobs) if jobs else None, pixels))
        while self._waiting and (
            len(self._waiting) > _WAITING_IMAGES or self._pixels > _WAITING_PIXELS or _is_done(self._waiting[0][1])
        ):
            self._finish_first()

    def finish(self) -> None:
        """Wait until the files of all images are written.

        Raises:
            RetinaNetError: a file cannot be written.
        """
        while self._waiting:
            self._finish_first()

    def _finish_first(self) -> None:
        entry, job, pixels = self._waiting.popleft()
        self._pixels -= pixels
        if job is not None:
            job.result()
        self._record.append(entry)

    def _write_geojson(self, result: ImageResult, name: Path) -> None:
        reference = _georeference(result.image)
        if reference is None:
            self.without_coordinates += 1
            return
        assert result.found is not None
        path = self._outputs.out / "geojson" / name.with_suffix(".geojson")
        write_geojson(path, result.found, self._outputs.classes, reference, result.image.address)

    def _jobs(self, result: ImageResult, entry: Entry, name: Path) -> list[Callable[[], object]]:
        """Return the functions that write the files of one image."""
        outputs, jobs = self._outputs, list[Callable[[], object]]()
        if "yolo" in outputs.formats:
            jobs.append(lambda: write_text(outputs.out / "labels" / name.with_suffix(".txt"), yolo_text(entry)))
        if "voc" in outputs.formats:
            path = outputs.out / "annotations" / name.with_suffix(".xml")
            jobs.append(lambda: write_text(path, voc_text(entry, outputs.classes)))
        if "geojson" in outputs.formats:
            jobs.append(lambda: self._write_geojson(result, name))
        if outputs.draw:
            if self._check_drawings:
                _refuse_replacing(result.image, outputs, outputs.drawing(name))
            jobs.append(lambda: _draw(result, outputs.classes, outputs.drawing(name)))
        return jobs


def _georeference(image: InputImage) -> Georeference | None:
    """Where the pixels of an image lie on the Earth; only TIFF files say so."""
    is_tiff = isinstance(image, ImageFile) and image.path.suffix.lower() in (".tif", ".tiff")
    return georeference(image.path) if is_tiff and isinstance(image, ImageFile) else None


def refuse_overwriting(outputs: Outputs, inside: Sequence[Path], images: Callable[[], Iterable[InputImage]]) -> None:
    """Raise OverwriteError if a drawing would replace one of the input files ``inside`` the output folder."""
    if not (outputs.draw and inside):
        return
    names, originals = OutputNames(), {path.resolve() for path in inside}
    for image in images():
        drawing = outputs.drawing(names.name_of(image))
        if drawing.resolve() in originals:
            raise _would_replace(outputs, drawing, "an input image")


def _refuse_replacing(image: InputImage, outputs: Outputs, drawing: Path) -> None:
    """Raise OverwriteError if the drawing of ``image`` would replace it, or a file that is not a drawing."""
    if not drawing.exists():
        return
    if isinstance(image, ImageFile) and image.path.exists() and image.path.samefile(drawing):
        raise _would_replace(outputs, drawing, "an input image")
    if not _is_drawing(drawing):
        raise _would_replace(outputs, drawing, "a file that no run of 'retinanet detect' has drawn")


def _would_replace(outputs: Outputs, drawing: Path, what: str) -> OverwriteError:
    return OverwriteError(f"--out {outputs.out}: the drawn {drawing} would replace {what}; choose another --out")


def _is_drawing(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("comment") == _COMMENT
    except Exception:  # not a readable image; Pillow raises many kinds of errors
        return False


def _run(jobs: Sequence[Callable[[], object]]) -> None:
    for job in jobs:
        job()


def _is_done(job: Future[None] | None) -> bool:
    return job is None or job.done()


def _draw(result: ImageResult, classes: Sequence[str], path: Path) -> None:
    drawing = drawn(result, classes) if result.drawing is None else result.drawing
    write_atomically(path, lambda temporary: temporary.write_bytes(drawing))


def drawn(result: ImageResult, classes: Sequence[str]) -> bytes:
    """Return the JPEG file of an image with its boxes drawn on ``result.pixels``."""
    from retinanet.detection.draw import draw

    assert result.pixels is not None
    assert result.found is not None
    assert result.size is not None
    found = result.found.rescaled(result.size, result.pixels.shape[:2])
    image = Image.fromarray(draw(result.pixels, found, classes))
    image.thumbnail((_JPEG_LONGEST, _JPEG_LONGEST))  # smaller images stay as they are
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, comment=_COMMENT)
    return file.getvalue()
