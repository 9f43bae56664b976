"""Find the images that annotations name, and read their sizes.

Annotation files often hold paths of another computer, a server's addresses, or names without a folder. All readers find
images by the same rules, in this order: the name as written, below each usual folder of the format; the path as
written, absolute or from the current folder; the file whose path ends most alike, below the same folders.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from retinanet.data.dataset import DatasetBuilder
from retinanet.data.formats.reading import SPLIT_ALIASES, clean_path, short, split_role, walk
from retinanet.data.image_suffixes import is_image
from retinanet.data.images import image_size
from retinanet.errors import DataError

_MOST_BROKEN_IMAGES = 5
_PROBED_IMAGES = 8

# Names of folders that hold annotations only; the images are in a folder beside them.
ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "anns", "annots", "labels", "label", "json", "csv", "gt"})

# Prefix that Label Studio puts before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


def image_folders(annotations: Path, split: str = "") -> list[Path]:
    """Folders in which the images of an annotation file are searched, the most likely first.

    Args:
        annotations: the annotation file.
        split: the split that its name says.
    """
    here = annotations.parent
    beside = here.name.lower() in ANNOTATION_FOLDERS or here.absolute().name.lower() in ANNOTATION_FOLDERS
    bases = [here, here.absolute().parent if here.name in ("", "..") else here.parent] if beside else [here]
    splits = [split, *SPLIT_ALIASES.get(split_role(split), ())] if split else []
    names = [*(f"images/{s}" for s in splits), "images", *splits, "data", "JPEGImages", "Images", "imgs", ""]
    folders = [folder for base in bases for name in names if os.path.isdir(folder := base / name)]
    return list(dict.fromkeys(folders))


class ImageFinder:
    """Finds the images of one split, reads their sizes, and collects those that are missing or broken.

    Args:
        builder: gets notes on the rules that found images; ``builder.options`` names a folder of images and says
            whether missing images are left out. Paths of images below ``builder.root`` are relative to it.
        source: the annotation file, for messages.
        folders: folders to search, the most likely first.
        outer: further folders that names may start from; their sub-folders are not searched.
    """

    def __init__(
        self, builder: DatasetBuilder, source: Path, folders: Sequence[Path], outer: Sequence[Path] = ()
    ) -> None:
        named = builder.options.images
        if named is not None and not os.path.isdir(named):
            raise DataError(f"--data.images {named}: no such folder; give the folder that holds the images")
        self._builder, self._source = builder, source
        self.folders = list(dict.fromkeys([*([Path(named).expanduser()] if named else []), *folders]))
        self._outer = list(outer)
        self._names: dict[str, frozenset[str]] = {}
        self._index: dict[str, list[str]] | None = None
        self._broken: list[str] = []
        self._missing: list[str] = []
        self._unclear = 0

    def prefer_common_folder(self, names: Sequence[str]) -> None:
        """Search first the folder that holds most of a sample of ``names``, and make it the builder's root."""
        count = min(_PROBED_IMAGES, len(names))
        probes = [_written(names[i * len(names) // count]) for i in range(count)]
        hits = [sum(self._exists(os.path.join(folder, probe)) for probe in probes) for folder in self.folders]
        if any(hits):
            self.folders.insert(0, self.folders.pop(hits.index(max(hits))))
            self._builder.root = self.folders[0]

    def find(self, names: str | Sequence[str], where: str, detections: bool = False) -> str | None:
        """Return the path of an image, relative to the builder's root if it is below; ``None`` if it is missing.

        Args:
            names: the image as the annotations name it; or several names, of which the first that is found is taken.
            where: place of the name, for messages.
            detections: the file is an output of ``retinanet detect``. Its paths start from a folder above it or from
                the current folder, and images beside it are drawings.
        """
        names = [names] if isinstance(names, str) else names
        names = list(dict.fromkeys(clean_path(_written(name), where) for name in names if name.strip()))
        for search in (self._from_above, self._as_written) if detections else (self._as_written,):
            for name in names:
                if (path := search(name)) is not None:
                    return self._relative(path)
        for by_rule in (self._from_here, self._by_ending):
            for name in names:
                if (hit := by_rule(name)) is not None:
                    path, rule = hit
                    self._builder.report("image-found", f"{where}: {short(name)} is {path}", rule)
                    return self._relative(path)
        if names and not self._builder.options.needs_images:
            return names[0]
        self._miss(names[0] if names else "", where)
        return None

    def size(self, file: str, where: str = "") -> tuple[int, int] | None:
        """Return ``(width, height)`` of an image file, or ``None`` for a broken file, which the caller skips.

        Args:
            file: path that :meth:`find` returned, or another path.
            where: file and line that name the image; unset if the image was found in a folder.
        """
        path = self._builder.root / file
        try:
            size = image_size(path)
            self._builder.size_is_measured = True
            return size
        except DataError as error:
            self._leave_out(str(path), str(error).removeprefix(f"{path}: "))
            self._broken.append(f"{where}: {error}" if where else str(error))
            if len(self._broken) == _MOST_BROKEN_IMAGES and not self._lenient:
                self.check()
            return None

    def check(self) -> None:
        """Raise DataError if images were missing or broken and may not be left out, or if none is left."""
        if self._lenient and len(self._builder):
            return
        option = ", or leave such images out with --data.skip-broken" if len(self._builder) else ""
        if self._missing:
            total = len(self._missing) + len(self._broken) + len(self._builder)
            count = f"{len(self._missing)} of {total} images not found"
            searched = ", ".join(map(str, self.folders[:6])) or "no folder"
            unclear = f" ({self._unclear} have the name of several files)" if self._unclear else ""
            raise DataError(
                f"{self._source}: {count}{unclear}, first {self._missing[0]}; searched {searched} with their "
                f"sub-folders; name the folder of the images with --data.images DIR{option}"
            )
        if len(self._broken) == 1:
            raise DataError(self._broken[0] + option)
        if self._broken:
            more = " or more" if len(self._broken) == _MOST_BROKEN_IMAGES else ""
            listed = "; ".join(self._broken[:3])
            raise DataError(f"{len(self._broken)}{more} images cannot be read: {listed}{option}")

    @property
    def _lenient(self) -> bool:
        return self._builder.tolerant or self._builder.options.skip_broken

    def _miss(self, name: str, where: str) -> None:
        self._leave_out(str(self._builder.root / name), "no such image file")
        self._missing.append(f"{short(name)} ({where})")

    def _leave_out(self, path: str, reason: str) -> None:
        if self._builder.tolerant:
            self._builder.report("unreadable-image", path, reason)
        elif self._builder.options.skip_broken:
            self._builder.report("skipped-image", path, reason)

    def _relative(self, path: str) -> str:
        prefix = os.path.join(str(self._builder.root), "")
        if path.startswith(prefix):
            return path[len(prefix) :].replace(os.sep, "/")
        return path if str(self._builder.root) in (".", "") and not os.path.isabs(path) else os.path.abspath(path)

    def _exists(self, path: str) -> bool:
        """Whether there is a file, from one listing of its folder."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder or "."))
            except OSError:
                self._names[folder] = frozenset()
        return name in self._names[folder]

    def _as_written(self, name: str) -> str | None:
        if _leads_out(name):
            # Only images: a foreign annotation file must not make its reader copy other files of this computer.
            path = os.path.join(self._source.parent, name)
            return path if is_image(name) and os.path.isfile(path) else None
        places = [*self.folders, *self._outer]
        return next((path for folder in places if self._exists(path := os.path.join(folder, name))), None)

    def _from_above(self, name: str) -> str | None:
        above = self._source.absolute().parent.parents
        places = [*map(str, above), ""] if is_image(name) and not _leads_out(name) else []
        return next((path for place in places if os.path.isfile(path := os.path.join(place, name))), None)

    def _from_here(self, name: str) -> tuple[str, str] | None:
        path = self._from_above(name) if "/" in name else None
        return None if path is None else (path, "from a folder above, or from the current folder")

    def _by_ending(self, name: str) -> tuple[str, str] | None:
        for variant, rule in _variants(name):
            *parts, last = _key(variant).split("/")
            found = self._files.get(last, ())
            if not found:
                continue
            scores = [_common_end(parts, _key(os.path.dirname(path)).split("/")) for path in found]
            best = [path for path, score in zip(found, scores, strict=True) if score == max(scores)]
            best = [path for path in best if os.path.basename(path) == os.path.basename(variant)] or best
            if len(best) > 1:
                best = [path for path in best if path.startswith(os.path.join(self.folders[0], ""))]
            if len(best) == 1:
                return best[0], rule if rule != _BY_NAME else _rule(os.path.basename(best[0]), os.path.basename(name))
            self._unclear += 1
            return None
        return None

    @property
    def _files(self) -> dict[str, list[str]]:
        """Paths of all images below the folders, by their names and by their names without suffix, in lower case."""
        if self._index is None:
            self._index = {}
            seen: set[str] = set()
            for folder in self.folders:
                for path in filter(is_image, walk(folder)):
                    if path not in seen:
                        seen.add(path)
                        name = _key(os.path.basename(path))
                        for key in {name, os.path.splitext(name)[0]}:
                            self._index.setdefault(key, []).append(path)
        return self._index


_BY_NAME = "by the end of its path"


def _variants(name: str) -> Iterator[tuple[str, str]]:
    """Yield names under which an image may be stored, with the rule that each follows."""
    yield name, _BY_NAME
    address, _, query = name.partition("?")
    if query:  # Label Studio's local files: /data/local-files/?d=folder/name.jpg
        for part in query.split("&"):
            yield unquote(part.partition("=")[2]), "by the name in its address"
        yield unquote(address), "by the name in its address"
    if (decoded := unquote(name)) != name:
        yield decoded, "by its name, percent-decoded"
    for variant in dict.fromkeys((name, decoded)):
        folder, last = os.path.split(variant)
        if short_name := _UPLOAD_PREFIX.sub("", last) if _UPLOAD_PREFIX.match(last) else "":
            yield os.path.join(folder, short_name), "by its name without the prefix of an upload"
        if is_image(variant):
            yield os.path.splitext(variant)[0], "by its name with another suffix"


def _rule(found: str, wanted: str) -> str:
    """Name the rule by which a file of the name ``found`` matches ``wanted``."""
    if found == wanted:
        return _BY_NAME
    return "by its name in another case" if _key(found) == _key(wanted) else "by its name without a suffix"


def _written(name: str) -> str:
    """Path with forward slashes, without the blanks around it and without ``file://``."""
    return re.sub("^file:/*(?=[A-Za-z]:|/)", "", name.strip().replace("\\", "/"))


def _leads_out(name: str) -> bool:
    return name.startswith("/") or name.split("/")[0] == ".." or bool(re.match("[A-Za-z][A-Za-z+.-]*:", name))


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """Number of equal elements at the ends of two sequences."""
    pairs: Iterable[tuple[str, str]] = zip(reversed(a), reversed(b), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count
