"""Ways to spoil a file of a dataset; each takes a seeded generator and the file, and writes over it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz_annotations import SPECIAL, TEXTS, Corruption, one_of

# --- any file ---------------------------------------------------------------------------------------------------------


def truncate(rng: np.random.Generator, file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(rng.integers(len(data) + 1))])


def flip_bits(rng: np.random.Generator, file: Path) -> None:
    data = bytearray(file.read_bytes() or b"\n")
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)  # half of the times in the header
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def empty(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(b"")


def random_bytes(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(rng.bytes(int(rng.integers(1, 3000))))


def zeros_in_the_middle(rng: np.random.Generator, file: Path) -> None:
    data = bytearray(file.read_bytes())
    start = int(rng.integers(len(data) + 1))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    file.write_bytes(data)


def missing(rng: np.random.Generator, file: Path) -> None:
    file.unlink()


def directory(rng: np.random.Generator, file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(rng: np.random.Generator, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link(rng: np.random.Generator, file: Path) -> None:
    """To nothing, to itself, or to a device that never ends."""
    file.unlink()
    file.symlink_to(one_of(rng, ("nowhere.bin", file.name, "/dev/zero", "/proc/self/mem")))


def harmless_link(rng: np.random.Generator, file: Path) -> None:
    moved = file.with_name(f".{file.name}")
    file.rename(moved)
    (file.symlink_to if rng.random() < 0.5 else file.hardlink_to)(moved)


def loop_of_folders(rng: np.random.Generator, file: Path) -> None:
    (file.parent / "again").symlink_to(one_of(rng, (".", "..", "again")))


def litter(rng: np.random.Generator, file: Path) -> None:
    for name in ("Thumbs.db", f"._{file.name}", ".DS_Store"):
        (file.parent / name).write_bytes(rng.bytes(100))


def other_case(rng: np.random.Generator, file: Path) -> None:
    file.rename(file.with_suffix(file.suffix.upper()))


def not_utf8_name(rng: np.random.Generator, file: Path) -> None:
    os.rename(file, os.fsencode(file.parent) + b"/caf\xe9" + os.fsencode(file.suffix))


ANYWHERE: tuple[Corruption, ...] = (
    truncate, flip_bits, empty, random_bytes, zeros_in_the_middle, missing, directory, pipe, link, harmless_link,
    loop_of_folders, litter, other_case, not_utf8_name,
)  # fmt: skip


# --- images -----------------------------------------------------------------------------------------------------------


def cut_near_the_end(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -int(rng.integers(1, 40))])


def one_pixel(rng: np.random.Generator, file: Path) -> None:
    Image.new("RGB", (1, 1)).save(file)


def other_size(rng: np.random.Generator, file: Path) -> None:
    Image.new("RGB", (int(rng.integers(1, 90)), int(rng.integers(1, 90)))).save(file)


def bomb(rng: np.random.Generator, file: Path) -> None:
    """A PNG whose header promises far more than its few bytes hold."""
    size = one_of(rng, ((100_000, 100_000), (100_000, 1), (1, 100_000), (0, 0), (2**31 - 1, 1), (13_000, 13_000)))
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(400))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def other_mode(rng: np.random.Generator, file: Path) -> None:
    """The same image in another kind of file, most often under the wrong suffix."""
    image = Image.open(file)
    kind, mode = one_of(
        rng,
        (("PNG", "I;16"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L"), ("GIF", "P"),
         ("TIFF", "F"), ("TIFF", "I;16"), ("BMP", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB")),
    )  # fmt: skip
    changed = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    more: dict[str, Any] = {"save_all": True, "append_images": [changed.copy()]} if kind == "GIF" else {}
    changed.save(file, kind, **more)


def exif(rng: np.random.Generator, file: Path) -> None:
    image = Image.open(file)
    tags = image.getexif()
    tags[0x0112] = one_of(rng, (0, 3, 6, 8, 9))
    data = bytearray(tags.tobytes())
    if rng.random() < 0.5:
        data[int(rng.integers(6, len(data)))] ^= 0xFF
    image.save(file, exif=bytes(data))


def web_page(rng: np.random.Generator, file: Path) -> None:
    file.write_text("<!doctype html><title>404</title>")


IMAGES: tuple[Corruption, ...] = (
    cut_near_the_end, one_pixel, other_size, bomb, other_mode, exif, web_page
)  # fmt: skip


def kinds_of(suffixes: set[str]) -> list[tuple[str, Corruption]]:
    """What can be done to a dataset of files with these suffixes, each with ``image`` or the suffix it is for."""
    found: list[tuple[str, Corruption]] = [("image", kind) for kind in (*ANYWHERE, *IMAGES)]
    found += [("text", kind) for kind in (*ANYWHERE, *TEXTS)]
    found += [(suffix, kind) for suffix in sorted(suffixes) for kind in SPECIAL.get(suffix, ())]
    return found
