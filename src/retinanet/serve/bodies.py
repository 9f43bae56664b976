"""Receive the body of a request within limits of size and time, and find the image in it, all in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from retinanet.serve.budget import Charge
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import Limits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Bytes of a refused body that are received, as a multiple of the largest upload.
_DISCARDED = 4

# Bytes that a client must send per second, after the first seconds.
_SLOWEST = 100_000

# The field of a form that holds the image, the most parts of a form, and the most bytes of the header of a part.
FIELD = "image"
_MOST_PARTS, _LONGEST_HEADER = 16, 8192

# Fields that are refused, because they look as if they had an effect.
_OPTIONS = ("model", "score", "max_detections", "tile")

# Longest name of a file that is repeated in an answer.
_LONGEST_NAME = 255


class Upload(NamedTuple):
    """An image that a client sent: the bytes of the file, and the name that the client gives it."""

    content: bytes
    name: str


async def receive_body(receive: Receive, headers: Mapping[str, str], limits: Limits, charge: Charge) -> bytes:
    """Receive the whole body of a request.

    Raises:
        Refusal: the body is too large or too slow, or there are too many bytes in the server.
    """
    largest = round(limits.megabytes * 1e6)
    announced = headers.get("content-length", "0")
    if not announced.isdecimal():
        raise Refusal("bad_length", "Content-Length is not a number")
    if int(announced) > largest:
        raise _too_large(limits)
    chunks: list[bytes] = []
    received = 0
    loop = asyncio.get_running_loop()
    begin = loop.time()
    try:
        async with asyncio.timeout_at(begin + limits.upload_seconds) as timer:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal("client_left", "the client left before the body was complete")
                chunk = message.get("body", b"")
                received += len(chunk)
                if received > largest:
                    raise _too_large(limits)
                charge.add("bytes", len(chunk))
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                timer.reschedule(begin + limits.upload_seconds + received / _SLOWEST)
    except TimeoutError as error:
        raise Refusal("upload_too_slow", "the body did not arrive in time") from error


async def discard_body(receive: Receive, limits: Limits, seconds: float = 5.0) -> None:
    """Receive the rest of the body of a refused request and forget it.

    A client that still sends would otherwise see a broken connection and no answer. Large and slow bodies are not
    received to their end.
    """
    left = round(_DISCARDED * limits.megabytes * 1e6)
    try:
        async with asyncio.timeout(seconds):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return


def upload_in(body: bytes, content_type: str) -> Upload:
    """Find the image in a body: in the field ``image`` of a form, or the whole body if it is not a form.

    Raises:
        Refusal: the body is empty, or a form without exactly one image.
    """
    kind, values = _header_value(content_type)
    if kind == "multipart/form-data":
        upload = _of_form(body, values.get("boundary", ""))
    elif kind.startswith("multipart/"):
        raise Refusal("bad_multipart", f"{kind[:60]} is not accepted; send multipart/form-data")
    else:
        upload = Upload(body, "image")
    if not upload.content:
        raise Refusal("empty_body", f"no image; send its bytes as the body, or in the form field {FIELD!r}")
    return upload


def _of_form(body: bytes, boundary: str) -> Upload:
    if not 1 <= len(boundary) <= 200:
        raise Refusal("bad_multipart", "the Content-Type of the form has no boundary")
    # All searches are for fixed bytes, so the time grows with the size only.
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MOST_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise Refusal("bad_multipart", f"the form has no end, or more than {_MOST_PARTS} fields")
    found: list[Upload] = []
    for part in parts[:-1]:
        end = part.find(b"\r\n\r\n", 0, _LONGEST_HEADER)
        if end < 0:
            raise Refusal("bad_multipart", "a field of the form has no complete header")
        name, filename = _field_names(part[:end].decode("utf-8", "replace"))
        if name in _OPTIONS:
            raise Refusal("bad_multipart", f"the form has a field {name!r}; give options in the query, as in ?{name}=…")
        if name == FIELD:
            found.append(Upload(part[end + 4 :], filename))
    if len(found) != 1:
        raise Refusal("bad_multipart", f"the form has {len(found)} fields {FIELD!r}; send one image in each request")
    return found[0]


def _field_names(header: str) -> tuple[str, str]:
    """The name of a field of a form and of its file, from the header of the field."""
    for line in header.split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            _, values = _header_value(value)
            name = re.split(r"[/\\]", values.get("filename", "image"))[-1]
            printable = "".join(each for each in name if each.isprintable())
            return values.get("name", ""), printable[:_LONGEST_NAME] or "image"
    return "", "image"


def _header_value(text: str) -> tuple[str, dict[str, str]]:
    """The value of a header in lower case, and its parameters."""
    kind, _, rest = text.partition(";")
    pairs = re.findall(r'([\w*-]{1,40})\s{0,9}=\s{0,9}(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', rest[:2000])
    return kind.strip().lower(), {key.lower(): quoted or plain for key, quoted, plain in pairs}


def _too_large(limits: Limits) -> Refusal:
    return Refusal("too_large", f"the body is larger than {limits.megabytes:g} MB")
