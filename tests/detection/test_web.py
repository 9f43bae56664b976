"""Downloads from a local server."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from retinanet.detection.sources import SourceList
from retinanet.detection.web import fetch
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import ConfigError, DataError

LIMITS = WebLimits(megabytes=1, seconds=2)


REDIRECTS = {"/file": "file:///etc/passwd", "/ftp": "ftp://localhost/x", "/moved": "/a.png?b", "/loop": "/loop"}


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 10)).save(content, "PNG")
    return content.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the path of the request."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[path])
            self.end_headers()
        elif path.startswith("/hops"):
            self.send_response(301)
            self.send_header("Location", f"/hops{int(path[5:] or 0) + 1}")
            self.end_headers()
        elif path == "/missing":
            self.send_error(404)
        elif path == "/declared":
            self.answer(b"", {"Content-Length": "2000000"})
        elif path == "/short":
            self.answer(b"abc", {"Content-Length": "20"})
        elif path in ("/endless", "/drip"):
            self.answer(b"", {})
            while True:
                self.wfile.write(b"x" * (100_000 if path == "/endless" else 1))
                time.sleep(0.0 if path == "/endless" else 0.05)
        else:
            self.answer(b"<html>" if path == "/page.jpg" else png(), {})

    def answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    """A server that says nothing when a client goes away."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server."""
    with pytest.MonkeyPatch.context() as patch, Quiet(("127.0.0.1", 0), Handler) as serving:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@contextmanager
def silent_server(reply: bytes) -> Iterator[str]:
    """The address of a server that accepts, repeats ``reply`` ten times a second, and never ends its headers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                for _ in range(100):
                    try:
                        connection.sendall(reply)
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.png"


@pytest.mark.parametrize("path", ["/a.png", "/moved"])
def test_image_is_downloaded_and_redirects_are_followed(server: str, path: str) -> None:
    assert fetch(server + path, LIMITS) == png()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/bä r.png", "/b%C3%A4%20r.png"),
        ("/b%C3%A4%20r.png?a=b%20c&d=ö 1#ä", "/b%C3%A4%20r.png?a=b%20c&d=%C3%B6%201"),
        ("/a+b;c,d=(1)@[2]~'!*$:100%.png", "/a+b;c,d=(1)@[2]~'!*$:100%.png"),
        (os.fsdecode(b"/b\xe4r.png"), "/b%E4r.png"),
    ],
)
def test_urls_are_encoded_as_in_browsers(server: str, path: str, asked: str) -> None:
    assert fetch(server + path, LIMITS) == png()
    assert Handler.asked[-1] == asked


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/file", "redirects to a file address, which is not followed"),
        ("/ftp", "redirects to a ftp address, which is not followed"),
        ("/loop", "redirects more than"),
        ("/hops", "redirects more than"),
        ("/missing", "the server answers 404 Not Found"),
        ("/declared", "larger than 1 MB"),
        ("/endless", "larger than 1 MB"),
        ("/drip", "not downloaded within 2 s"),
        ("/short", "ended after 3 of 20 bytes"),
    ],
)
def test_downloads_that_are_refused(server: str, path: str, message: str) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=message) as failure:
        fetch(server + path, LIMITS)
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith(server + path)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("reply", [b"", b"x", b"HTTP/1.0 200 OK\r\nA: "], ids=["silent", "one byte", "headers"])
def test_server_that_never_answers(reply: bytes) -> None:
    with silent_server(reply) as url, pytest.raises(DataError, match=r"not downloaded within 0\.5 s"):
        fetch(url, WebLimits(seconds=0.5))


def test_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch(f"http://127.0.0.1:{port}/x.png", LIMITS)


@pytest.mark.parametrize("url", ["http://", "http://[", "http://a b/", "http://localhost:99999/x"])
def test_malformed_urls(url: str) -> None:
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch(url, LIMITS)


def test_url_is_a_source(server: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{server}/page.jpg\n{server}/b/..%2Fc.png?x=1\n")
    direct, page, listed = SourceList([f"{server}/a.png", f"@{tmp_path / 'list.txt'}"], web=LIMITS)
    assert direct.address == f"{server}/a.png"
    assert direct.name == Path("a.png")
    assert direct.read().shape == listed.read().shape == (10, 20, 3)
    assert listed.name == Path("c.png")
    with pytest.raises(DataError, match=r"page\.jpg: not a readable image"):
        page.read()


@pytest.mark.parametrize("limits", [{"seconds": 0.0}, {"megabytes": -1.0}, {"seconds": float("nan")}])
def test_limits_out_of_range(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        WebLimits(**limits)
