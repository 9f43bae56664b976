"""Download an image from an ``http`` or ``https`` URL, with limits on its size, its time and its redirects."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from threading import Timer
from time import monotonic
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from retinanet._version import __version__
from retinanet.detection.web_limits import WebLimits
from retinanet.errors import DataError

_REDIRECTS = 5
_BLOCK = 1 << 16

# Characters that stay in paths and queries of URLs, besides letters and digits.
_ALLOWED = "%!#$&'()*+,-./:;=?@[]^_`{|}~\\"


def fetch(url: str, limits: WebLimits) -> bytes:
    """Download the content of ``url``.

    Proxies are those of the environment (``https_proxy``). At most 5 redirects are followed, to ``http`` and
    ``https`` only.

    Raises:
        DataError: the server cannot be reached, answers with an error, or exceeds a limit.
    """
    watch = _Watch(limits.seconds)
    try:
        request = urllib.request.Request(
            _encoded(url), headers={"User-Agent": f"retinanet/{__version__}", "Accept": "image/*"}
        )
        with watch, _opener(watch).open(request, timeout=limits.seconds) as response:
            return _content(response, url, limits, watch)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            raise DataError(f"{url}: redirects more than {_REDIRECTS} times; correct the URL") from error
        raise DataError(f"{url}: the server answers {error.code} {error.reason}; correct the URL") from error
    except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
        # The watch closes the connection in another thread; http.client then fails in different ways.
        if watch.expired or isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", 0), TimeoutError):
            raise _too_slow(url, limits) from error
        reason = getattr(error, "reason", None) or error
        text = str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
        raise DataError(f"{url}: cannot be downloaded ({text[:120]}); correct the URL or try again") from error


def _encoded(url: str) -> str:
    """Encode the characters that HTTP does not allow, as browsers do. What is encoded already stays as it is."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    # Lines of a list that are not UTF-8 are decoded with surrogates.
    path, query = (quote(part, _ALLOWED, errors="surrogateescape") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _content(response: Any, url: str, limits: WebLimits, watch: _Watch) -> bytes:
    """Read the body of a response block by block."""
    most = int(limits.megabytes * 1e6)
    declared = response.headers.get("Content-Length", "")
    size = int(declared) if declared.isdecimal() else 0
    blocks: list[bytes] = []
    length = 0
    while size <= most and length <= most:
        block = response.read1(_BLOCK)  # returns what has arrived, so that the time is checked often
        if watch.expired:
            raise _too_slow(url, limits)
        if not block:
            if length < size:
                raise DataError(f"{url}: the download ended after {length} of {size} bytes; try again")
            return b"".join(blocks)
        blocks.append(block)
        length += len(block)
    raise DataError(f"{url}: larger than {limits.megabytes:g} MB; raise --web.megabytes to allow it")


def _too_slow(url: str, limits: WebLimits) -> DataError:
    return DataError(f"{url}: not downloaded within {limits.seconds:g} s; raise --web.seconds or download it yourself")


class _Watch:
    """Closes the connections of a download when its time is over. Timeouts of sockets count from byte to byte only."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds
        self._timer = Timer(seconds, self._close)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return monotonic() >= self._end

    def add(self, connection: socket.socket) -> None:
        """Close ``connection``, too, when the time is over."""
        self._sockets.append(connection)

    def _close(self) -> None:
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """Return an opener of ``http`` and ``https`` URLs; the usual one also opens ``file``, ``ftp`` and ``data``."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch.add(self.sock)

    class SecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            http.client.HTTPConnection.connect(self)  # before the handshake, which a server can delay
            watch.add(self.sock)
            name = getattr(self, "_tunnel_host", None) or self.host
            self.sock = self._context.wrap_socket(self.sock, server_hostname=name)  # type: ignore[attr-defined]
            watch.add(self.sock)

    class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(SecureConnection, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Handler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, and none to another scheme."""

    max_redirections = _REDIRECTS
    max_repeats = 2

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect. The base class reports other schemes as an HTTP error, which says less."""
        target = headers.get("location") or headers.get("uri") or ""
        scheme = urlsplit(target).scheme
        if scheme not in ("", "http", "https"):
            raise DataError(f"{req.full_url}: redirects to a {scheme} address, which is not followed; correct the URL")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
