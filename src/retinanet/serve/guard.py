"""Around every request: the token, security headers, errors as JSON, metrics and one line of log."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from retinanet.serve.bodies import Receive, discard_body
from retinanet.serve.refusals import Refusal
from retinanet.serve.service import Service

_log = logging.getLogger("retinanet.serve")

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

# Paths that need the token, if there is one. The page and the health checks hold nothing secret.
_PROTECTED = ("/v1/", "/metrics")

# A page may load scripts, styles and images from this server only; other sites may not embed it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY: Headers = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._service)
        begin = perf_counter()
        try:
            exchange.check_token()
            await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:  # raised before a route was found
            await exchange.refuse(refusal)
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else "?"
            _log.error("%s at %s", type(error).__name__, place)
            if exchange.status == 0:
                await exchange.refuse(Refusal("internal", "an error of the server; its log has the place"))
        seconds = perf_counter() - begin
        route = str(getattr(scope.get("route"), "path", "other"))  # never the text that the client sent
        self._service.metrics.finished(route, exchange.status, seconds)
        _log.info("%s %s %d %.0f ms", scope["method"][:8], route, exchange.status, 1000 * seconds)


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: Service) -> None:
        self._scope, self._receive, self._send, self._service = scope, receive, send, service
        self.status = 0
        headers = dict(scope["headers"])
        # A client that expects "100 Continue" has not sent its body yet.
        self._body_left = b"expect" not in headers and (
            headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        )
        self._authorization: bytes = headers.get(b"authorization", b"")

    def check_token(self) -> None:
        """Raise :class:`Refusal` if the request needs a token and has another one or none."""
        token = self._service.token
        if token is None or not self._scope["path"].startswith(_PROTECTED):
            return
        scheme, _, given = self._authorization.partition(b" ")
        same = hmac.compare_digest(given.strip(), token.encode())  # takes equally long for every wrong token
        if scheme.lower() != b"bearer" or not same:
            raise Refusal("unauthorized", "send the token of this server as: Authorization: Bearer TOKEN")

    async def receive(self) -> Message:
        """Receive a message, and note the end of the body."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message, with security headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400 and self._body_left:
                await discard_body(self.receive, self._service.settings.limits)
            headers: Headers = list(message["headers"])
            names = {name for name, _ in headers}
            headers += [header for header in _SECURITY if header[0] not in names]
            if b"cache-control" not in names:
                headers.append((b"cache-control", b"no-store"))
            if self._service.draining or self._body_left:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal as JSON."""
        self._service.metrics.refused(refusal.code)
        body = json.dumps(refusal.content()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refusal_headers(refusal).items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Headers of the answer to a refused request."""
    if refusal.code == "unauthorized":
        return {"www-authenticate": "Bearer"}
    return {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
