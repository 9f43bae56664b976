"""A server in a thread of the test, a detector that can be held, and a client that sends bytes as they are."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from exported_files import INFO
from retinanet.detection.detector import Detector, Pixels
from retinanet.detections import Detections
from retinanet.serve.app import create_app
from retinanet.serve.run import bind
from retinanet.serve.server import Server
from retinanet.serve.service import Service
from retinanet.serve.settings import ServeSettings

# An image of this gray value makes the network of HeldDetector fail.
POISON = 77


class HeldDetector(Detector):
    """Finds one box, whose right side is the gray value of the image. It waits while ``gate`` is closed."""

    def __init__(self) -> None:
        super().__init__(INFO)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def resize(self, image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
        return np.asarray(Image.fromarray(image).resize(shape[::-1]))

    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        assert self.streams > 1 or len({image.shape for image in images}) == 1
        values = [int(image[0, 0, 0]) for image in images]
        self.batches.append(values)
        assert self.gate.wait(30)
        if POISON in values:
            raise RuntimeError("the network does not like this image")
        return [
            Detections.of_one_image(
                np.array([[0, 0, value, 8]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
            )
            for value in values
        ]


def gray(value: int, size: tuple[int, int] = (96, 96)) -> bytes:
    """A PNG file of one gray value; ``size`` is (width, height)."""
    return encoded(Image.new("RGB", size, (value, value, value)), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file in memory."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@dataclass
class Answer:
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json()["error"]["code"])


@dataclass
class Client:
    """Sends requests to a server on this machine."""

    port: int
    server: Server
    service: Service

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            return answer_of(connection.getresponse())
        finally:
            connection.close()

    def detect(self, body: bytes, query: str = "", **headers: str) -> Answer:
        """Send an image as raw bytes."""
        return self("POST", f"/v1/detect{query}", body, {"Content-Type": "image/png", **headers})

    def open(self) -> socket.socket:
        """A connection for bytes that no HTTP client sends."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send_bytes(self, data: bytes) -> bytes:
        """Send bytes, and return everything until the server closes the connection."""
        with self.open() as connection:
            connection.sendall(data)
            return read_to_end(connection)


def answer_of(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the other side closes the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def running(
    models: Mapping[str, Detector], settings: ServeSettings | None = None, token: str | None = None
) -> Iterator[Client]:
    """Run a server on a free port while the block runs."""
    app = create_app(models, settings, token)
    started = threading.Event()
    server = Server(app, started.set)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(30)
        yield Client(listener.getsockname()[1], server, app.state.service)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
