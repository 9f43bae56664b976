"""Run the application with uvicorn: slow and surplus connections end, and a shutdown answers what was accepted."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from retinanet.serve.memory import give_memory_back
from retinanet.serve.refusals import Refusal
from retinanet.serve.service import Service
from retinanet.serve.settings import Limits

# Seconds for which open connections may send another request after the shutdown has begun.
_LAST_REQUESTS = 1.0

# Seconds for which a client may take no byte of its answer.
_UNREAD = 30.0

# Most lines in the bytes that a client sends at once, if its body comes in chunks: this number, or one for so many
# bytes. A chunk has two lines. Taking a chunk apart takes as long as receiving 10 kB.
_CHUNK_LINES, _SMALLEST_CHUNK = 200, 256


class Connection(H11Protocol):
    """A connection with limits on the time in which nothing useful arrives."""

    def __init__(self, *arguments: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._limits = limits
        self._waiting_since = self._written_at = self.loop.time()
        self._unwritten = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to use a connection, or end it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._end_with(503, Refusal("overloaded", "too many connections; try again later"))

    def data_received(self, data: bytes) -> None:
        """Receive bytes; none are looked at after the connection was refused."""
        if self.transport.is_closing():
            return
        if self._in_tiny_chunks(data):
            self._end_with(400, Refusal("bad_request", "the chunks of the body are too small; send larger ones"))
            return
        super().data_received(data)

    def _in_tiny_chunks(self, data: bytes) -> bool:
        """Whether bytes hold so many chunks of a body that taking them apart would keep all other clients waiting."""
        if data.count(b"\r\n") <= max(_CHUNK_LINES, len(data) // _SMALLEST_CHUNK):
            return False
        if self.conn.their_state is h11.SEND_BODY:
            return any(name == b"transfer-encoding" for name, _ in self.headers)
        head, _, body = data.partition(b"\r\n\r\n")
        return b"chunked" in head.lower() and body.count(b"\r\n") > _CHUNK_LINES

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._end_with(400, Refusal("bad_request", "the request is not valid HTTP, or its headers are too long"))
        else:  # the answer has begun
            self.transport.close()

    def end_if_stalled(self) -> None:
        """End the connection if its client has sent no request, or taken nothing of its answer, for too long."""
        now = self.loop.time()
        unwritten = self.transport.get_write_buffer_size()
        if unwritten == 0 or unwritten != self._unwritten:
            self._unwritten, self._written_at = unwritten, now
        idle = self.cycle is None or self.cycle.response_complete
        late = idle and unwritten == 0 and now - self._waiting_since > self._limits.idle_seconds
        if late or now - self._written_at > _UNREAD:
            self.transport.abort()

    def _end_with(self, status: int, refusal: Refusal) -> None:
        """Send a refusal and close, beside h11, whose state is that of a broken request."""
        body = json.dumps(refusal.content()).encode()
        lines = [
            f"HTTP/1.1 {status} {'Bad Request' if status == 400 else 'Service Unavailable'}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 1"] if status == 503 else []),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """A server that ends stalled connections, and that answers everything it has accepted before it ends.

    Args:
        app: the application of :func:`retinanet.serve.app.create_app`.
        on_start: called when requests are accepted.
    """

    def __init__(self, app: FastAPI, on_start: Callable[[], object] = lambda: None) -> None:
        self._service: Service = app.state.service
        self._on_start = on_start
        self._trimmed_at = 0  # the number of uploads when memory was last returned
        limits = self._service.settings.limits
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits=limits),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=max(1, round(limits.idle_seconds / 2)),
            timeout_graceful_shutdown=round(limits.seconds + limits.upload_seconds),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections; uvicorn calls it ten times per second."""
        if counter % 10 == 0:
            self._give_memory_back()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.end_if_stalled()
        return await super().on_tick(counter)

    def _give_memory_back(self) -> None:
        """Return the memory of finished requests to the system, once after each busy time."""
        uploads = self._service.uploads
        if uploads != self._trimmed_at and self._service.budget.used("bytes") == 0:
            self._trimmed_at = uploads
            asyncio.get_running_loop().run_in_executor(None, give_memory_back)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, answer all requests, and end.

        Clients that keep their connections open have a moment to send their next request. Its answer tells them that
        the connection ends. Otherwise their requests would meet closed connections.
        """
        self._service.draining = True
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + _LAST_REQUESTS
        while self.server_state.connections and loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down after SIGTERM or Ctrl-C; after a second Ctrl-C, do not wait for answers."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
