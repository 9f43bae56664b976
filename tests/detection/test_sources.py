from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data import open_images
from retinanet.data.image_suffixes import IMAGE_SUFFIXES
from retinanet.data.window_reader import Window
from retinanet.detection import web
from retinanet.detection.input_images import ImageFile, InputImage
from retinanet.detection.sources import SourceList, find_images
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import DataError


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """b.png, a.jpg, trip/a.jpg, and files that are not images."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "trip/a.jpg", ".thumbnail.jpg"):
        Image.new("RGB", (20, 10)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(sources: Iterable[InputImage]) -> list[str]:
    return [source.name.as_posix() for source in sources]


def test_file(album: Path) -> None:
    assert find_images([str(album / "b.png")]) == [ImageFile(album / "b.png", Path("b.png"))]


def test_folder_with_all_below_it_sorted(album: Path) -> None:
    assert names(find_images([str(album)])) == ["a.jpg", "b.png", "trip/a.jpg"]


def test_pattern(album: Path) -> None:
    assert names(find_images([str(album / "*")])) == ["a.jpg", "b.png"]
    assert names(find_images([str(album / "**" / "*.jpg")])) == ["a.jpg", "a.jpg"]
    assert names(find_images([str(album / "[b].png")])) == ["b.png"]


def test_file_whose_name_looks_like_a_pattern(album: Path) -> None:
    (album / "a.jpg").rename(album / "a[1].jpg")
    assert names(find_images([str(album / "a[1].jpg")])) == ["a[1].jpg"]


def test_several_sources_keep_their_order_without_repetition(album: Path) -> None:
    found = find_images([str(album / "b.png"), str(album), str(album / "*.png")])
    assert names(found) == ["b.png", "a.jpg", "trip/a.jpg"]


def test_suffixes_in_capitals(album: Path) -> None:
    (album / "a.jpg").rename(album / "A.JPG")
    assert "A.JPG" in names(find_images([str(album)]))


def test_loop_of_links_ends(album: Path) -> None:
    os.symlink(album, album / "trip" / "again")
    assert len(find_images([str(album)])) == 3


def test_images_behind_a_link_are_found(album: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (album / "b.png").rename(tmp_path / "disk" / "b.png")
    os.symlink(tmp_path / "disk", album / "linked")
    assert names(find_images([str(album)])) == ["a.jpg", "linked/b.png", "trip/a.jpg"]


def test_files_that_are_not_read_are_counted(album: Path) -> None:
    for name in ("1.mp4", "2.MP4", "3.dng"):
        (album / name).write_bytes(b"")
    listed = SourceList([str(album)])
    assert listed.count() == 3
    assert [sentence.split(": ")[1:] for sentence in listed.notes] == [
        [
            "2 MP4 files left out",
            "videos; give each to 'retinanet detect' by its path, or extract its frames, for example with "
            "ffmpeg -i FILE frames/%06d.jpg",
        ],
        ["1 DNG file left out", "convert them to JPEG or PNG"],
    ]
    assert len(find_images([str(album)])) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [("missing.jpg", "no such file or folder"), ("missing/*.jpg", "matches no image"), ("empty", "contains no image")],
)
def test_sources_without_images(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as failure:
        find_images([str(tmp_path / source)])
    assert source in str(failure.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a source is empty"),
        (" ", "a source is empty"),
        ("https://example.org/x.jpg", "x.jpg: URLs are read only if they are allowed"),
        ("RTSP://camera", "RTSP addresses are not supported"),
    ],
)
def test_what_is_no_path_is_refused(album: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(album)  # which holds images
    with pytest.raises(DataError, match=message):
        find_images([source])


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/z.jpg", "b.jpg", "a.jpg", "c/d/e.jpg", "c/a.jpg", "b-1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [image.name for image in find_images([str(tmp_path)])]
    assert found == sorted(found)
    assert len(found) == 6


def test_results_of_an_earlier_run_are_no_sources(album: Path) -> None:
    (album / "out").mkdir()
    Image.new("RGB", (20, 10)).save(album / "out" / "a.jpg")
    assert len(names(SourceList([str(album)], out=album / "out"))) == 3
    assert names(SourceList([str(album / "**" / "*.jpg")], out=album / "out")) == ["a.jpg", "a.jpg"]
    assert names(SourceList([str(album / "out")], out=album / "out")) == ["a.jpg"]
    assert names(SourceList([str(album / "out" / "*")], out=album / "out")) == ["a.jpg"]


def test_list_of_paths_relative_to_the_list(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (album / "list.txt").write_bytes(b"\xef\xbb\xbfb.png\r\n\r\n" + f"{album}/a.jpg\n trip/a.jpg \ngone.jpg".encode())
    found = find_images([f"@{album / 'list.txt'}"])
    assert names(found) == ["b.png", "a.jpg", "trip/a.jpg", "gone.jpg"]
    assert [image.read().shape for image in found[:3]] == [(10, 20, 3)] * 3
    with pytest.raises(DataError, match=r"list\.txt:5: .*gone\.jpg: no such image file"):
        found[3].read()


def test_line_of_a_list_with_another_address_fails_alone(album: Path) -> None:
    (album / "list.txt").write_text("ftp://example.org/x.jpg\nb.png\n")
    first, second = find_images([f"@{album / 'list.txt'}"])
    assert second.read().shape == (10, 20, 3)
    with pytest.raises(DataError, match=r"list\.txt:1: .*ftp addresses are not supported"):
        first.read()


def test_errors_of_a_list_name_the_line_also_with_windows(album: Path) -> None:
    (album / "c.png").write_bytes((album / "b.png").read_bytes()[:50])
    (album / "list.txt").write_text("gone.jpg\nc.png\nhttp://127.0.0.1:1/x.jpg\nftp://example.org/x.jpg\n")
    for number, image in enumerate(SourceList([f"@{album / 'list.txt'}"], WebLimits()), 1):
        place = rf"^[^:]*list\.txt:{number}: (?!.*list\.txt)"
        with pytest.raises(DataError, match=place):
            image.read()
        with pytest.raises(DataError, match=place), image.windows() as reader:
            reader.read(Window(0, 0, *reader.size))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "names no image"), (b"\n \n", "names no image"), (b"a\0b", "not a list in UTF-8"), (None, "No such file")],
)
def test_lists_that_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_images([f"@{tmp_path / 'list.txt'}"])


def encoded(suffix: str, size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    options = {"compression": "tiff_lzw", "strip_size": 900} if suffix == "tiff" else {}
    Image.new("RGB", size, (200, 10, 10)).save(content, suffix, **options)
    return content.getvalue()


class Stdin(io.TextIOWrapper):
    """A standard input with some content."""

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_paths_from_the_standard_input(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    monkeypatch.setattr(sys, "stdin", Stdin(b"b.png\ntrip/a.jpg\nb.png"))
    listed = SourceList(["-", "a.jpg"])
    assert listed.count() is None
    assert names(listed) == ["b.png", "trip/a.jpg", "a.jpg"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "ppm", "tiff", "webp", "bmp", "gif"])
def test_image_from_the_standard_input(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 10, 10)).save(content, kind)
    monkeypatch.setattr(sys, "stdin", Stdin(content.getvalue()))
    [image] = SourceList(["-"])
    assert image.read().shape == (10, 20, 3)


@pytest.mark.parametrize(
    "kind", sorted(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".mpo", ".heic", ".heif"))
)
def test_image_with_line_breaks_in_its_header_from_the_standard_input(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Sizes of 10, 266 and 2570 pixels are line breaks in many headers."""
    for width, height in ((10, 10), (266, 10), (2570, 266), (1, 13)):
        content = io.BytesIO()
        Image.new("RGB", (width, height), (200, 10, 10)).save(content, Image.registered_extensions()[kind])
        monkeypatch.setattr(sys, "stdin", Stdin(content.getvalue()))
        [image] = SourceList(["-"])
        assert image.read().shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["bmp", "webp"])
def test_image_whose_length_is_a_line_break_from_the_standard_input(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 10, 10)).save(content, kind)
    place = {"bmp": 2, "webp": 4}[kind]
    changed = content.getvalue()[:place] + b"\n" + content.getvalue()[place + 1 :]
    monkeypatch.setattr(sys, "stdin", Stdin(changed))
    [image] = SourceList(["-"])
    assert image.address == "-"


@pytest.mark.parametrize(
    "lines", [["BM"], ["RIFF", "b.png"], ["BMW/1.jpg", "gone.jpg", "b.png", "x" * 5000], ["P1/a.jpg"], ["", "b.png"]]
)
def test_paths_that_begin_like_images_from_the_standard_input(
    album: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.chdir(album)
    for end in ("\n", "\r\n"):
        monkeypatch.setattr(sys, "stdin", Stdin(end.join(lines).encode()))
        assert [image.address for image in SourceList(["-"])] == [line for line in lines if line]


def test_first_path_is_read_before_the_second_comes(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    read, write = os.pipe()
    with os.fdopen(read) as stream, os.fdopen(write, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", stream)
        pipe.write(b"b.png\n")
        assert next(iter(SourceList(["-"]))).address == "b.png"


def test_standard_input_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"b.png"))
    with pytest.raises(DataError, match="the standard input is given twice; leave one - out"):
        SourceList(["-", "x.jpg", "-"])


def test_standard_input_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"", terminal=True))
    with pytest.raises(DataError, match="standard input is a terminal"):
        find_images(["-"])
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    with pytest.raises(DataError, match="standard input: names no image"):
        find_images(["-"])


def zipped(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_the_size_of_a_zipped_image_comes_from_its_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    content = path.read_bytes()
    members = {f"turned.{suffix}": content, f"cut.{suffix}": content[:20]}
    cut, turned = list(find_images([zipped(tmp_path / "x.zip", members)]))
    assert turned.header_size() == turned.read().shape[:2] == (40, 20)
    assert cut.header_size() is None


def test_images_of_a_zip_archive(album: Path, tmp_path: Path) -> None:
    image = (album / "b.png").read_bytes()
    source = zipped(tmp_path / "x.zip", {"trip/b.png": image, "notes.txt": b"", "a.png": image, ".c.png": image})
    found = find_images([source])
    assert names(found) == ["a.png", "trip/b.png"]
    assert [each.address for each in found] == [f"{source}/a.png", f"{source}/trip/b.png"]
    assert found[1].read().shape == (10, 20, 3)


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "C:\\evil.png", "a/../../evil.png", "..png/../evil.png"],
)
def test_names_in_an_archive_do_not_lead_out_of_the_output(album: Path, tmp_path: Path, name: str) -> None:
    [found] = find_images([zipped(tmp_path / "x.zip", {name: (album / "b.png").read_bytes()})])
    assert not found.name.is_absolute()
    assert ".." not in found.name.parts
    assert found.name.name == "evil.png"
    assert found.read().shape == (10, 20, 3)


def test_bomb_in_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.detection.input_images.LARGEST_FILE", 10_000)
    [found] = find_images([zipped(tmp_path / "x.zip", {"bomb.png": bytes(1_000_000)})])
    assert (tmp_path / "x.zip").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"bomb\.png: 1 MB in the archive, more than 0 MB"):
        found.read()


def test_broken_archives(album: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 and nothing else")
    with pytest.raises(DataError, match=r"broken\.zip: not a readable zip archive"):
        find_images([str(tmp_path / "broken.zip")])
    with pytest.raises(DataError, match=r"empty\.zip: contains no image"):
        find_images([zipped(tmp_path / "empty.zip", {"notes.txt": b""})])
    source = Path(zipped(tmp_path / "x.zip", {"b.png": (album / "b.png").read_bytes()}))
    content = bytearray(source.read_bytes())
    content[45] ^= 255  # inside the compressed member
    source.write_bytes(bytes(content))
    [found] = find_images([str(source)])
    with pytest.raises(DataError, match=r"b\.png: (cannot be unpacked|cannot be decoded|not a readable)"):
        found.read()


@pytest.mark.parametrize("kind", ["zip", "stdin", "url", "parquet"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_limit_of_pixels_holds_for_images_that_are_not_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    content = encoded(suffix, (200, 100))
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    source = {"stdin": "-", "url": "http://127.0.0.1/a"}.get(kind, str(tmp_path / f"a.{kind}"))
    if kind == "zip":
        zipped(Path(source), {file.name: content})
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.table({"bytes": [content]}), source)
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    monkeypatch.setattr(web, "fetch", lambda url, limits: content)
    [image] = SourceList([source], WebLimits())
    with pytest.raises(DataError, match=r"200×100 is too large \(limit 19,999 pixels\)"), image.windows(None, 19_999):
        pass
    monkeypatch.setattr(open_images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)  # Pillow refuses twice as many
    with image.windows(None, 20_000) as reader:
        assert reader.read(Window(0, 0, 100, 200)).shape == (100, 200, 3)


@pytest.mark.parametrize(("limit", "text"), [(178_000_000, "178 megapixels"), (1_500_000, "1.5 megapixels")])
def test_limit_of_pixels_is_told_in_megapixels(limit: int, text: str) -> None:
    with pytest.raises(DataError, match=rf"limit {text}\)"):
        open_images.check_pixels("a.png", (1_000_000, 1000), limit)
