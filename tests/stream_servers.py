"""Small servers of streams that drop their connections: MPEG-TS over HTTP, and RTSP with MPEG-TS in RTP over TCP."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Self

from clips import Image, write_clip

_PACKET = 188  # bytes of a packet of MPEG-TS


def transport_stream(images: Sequence[Image], first: int = 0) -> bytes:
    """A video of 30 frames/s as MPEG-TS. The time stamp of its first frame is that of frame number ``first``."""
    file = io.BytesIO()
    pts = [3000 * (first + k) for k in range(len(images))]
    write_clip(file, images, pts, format="mpegts", key_every=5)
    return file.getvalue()


class StreamServer:
    """Serves one part of a stream for each connection, then closes it. After the last part it refuses connections.

    Args:
        parts: the bytes of each connection.
        headers: more header lines of an HTTP response.
    """

    def __init__(self, parts: Sequence[bytes], headers: str = "") -> None:
        self.parts, self.headers = list(parts), headers
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self._thread.join(timeout=5)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        for part in self.parts:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                self.answer(connection, part)
        self._close()

    def answer(self, connection: socket.socket, part: bytes) -> None:
        """Answer an HTTP request."""
        connection.recv(4096)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n{self.headers}Connection: close\r\n\r\n"
        connection.sendall(head.encode() + part)


class RtspServer(StreamServer):
    """Serves RTSP 1.0 with interleaved RTP, payload type 33 (MPEG-TS), and drops the connection after each part."""

    def answer(self, connection: socket.socket, part: bytes) -> None:
        """Answer the requests of a session until it plays, then send the part."""
        text = b""
        while True:
            while b"\r\n\r\n" not in text:
                received = connection.recv(4096)
                if not received:
                    return
                text += received
            request, _, text = text.partition(b"\r\n\r\n")
            lines = request.decode().split("\r\n")
            method = lines[0].split()[0]
            number = next(line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq"))
            connection.sendall(self._response(method, number))
            if method == "PLAY":
                break
        self._send_rtp(connection, part)

    def _response(self, method: str, number: str) -> bytes:
        body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"
        lines = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN",
            "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(body)}",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1",
        }.get(method, "Session: 1")
        ending = body if method == "DESCRIBE" else ""
        return f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{lines}\r\n\r\n{ending}".encode()

    def _send_rtp(self, connection: socket.socket, part: bytes) -> None:
        for sequence, start in enumerate(range(0, len(part), 7 * _PACKET)):
            payload = part[start : start + 7 * _PACKET]
            header = struct.pack(">BBHII", 0x80, 33, sequence & 0xFFFF, sequence * 3000, 1)
            connection.sendall(struct.pack(">cBH", b"$", 0, len(header) + len(payload)) + header + payload)
            time.sleep(0.002)


class SilentServer(StreamServer):
    """Accepts a connection and never answers."""

    def __init__(self) -> None:
        super().__init__([b""])
        self._done = threading.Event()

    def answer(self, connection: socket.socket, part: bytes) -> None:
        """Keep the connection open."""
        self._done.wait(20)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        super().__exit__(*error)
