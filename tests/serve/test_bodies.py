"""Bodies of requests: forms as other programs write them, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.serve.bodies import discard_body, receive_body, upload_in
from retinanet.serve.budget import Budget
from retinanet.serve.refusals import Refusal
from retinanet.serve.settings import Limits


def form(*fields: tuple[str, tuple[str | None, bytes]], **values: str) -> tuple[bytes, str]:
    """Body and Content-Type of a form, written by another program."""
    request = httpx2.Request("POST", "http://localhost", files=list(fields), data=values or None)
    return request.read(), request.headers["content-type"]


@given(st.binary(min_size=1, max_size=300))
def test_a_form_holds_the_image(content: bytes) -> None:
    upload = upload_in(*form(("other", (None, b"x")), ("image", ("a photo.png", content)), note="n"))
    assert upload.content == content
    assert upload.name == "a photo.png"


@given(st.binary(min_size=1, max_size=100), st.sampled_from(["", "image/png", "application/octet-stream", "text/html"]))
def test_any_other_body_is_the_image(content: bytes, kind: str) -> None:
    assert upload_in(content, kind).content == content


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\Users\\x\\passwd", "/etc/passwd"])
def test_a_name_has_no_folders(name: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\nX\r\n--b--\r\n' % name.encode()
    assert upload_in(body, "multipart/form-data; boundary=b") == (b"X", "passwd")


def test_a_boundary_may_be_quoted_and_followed_by_spaces() -> None:
    body = b"--a b\r\nContent-Disposition: form-data; name=image\r\n\r\nX\r\n--a b--"
    assert upload_in(body, 'multipart/form-data; boundary="a b"').content == b"X"


HEAD = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"", "image/png", "empty_body"),
        (HEAD + b"\r\n--b--", FORM, "empty_body"),
        (HEAD + b"X\r\n" + HEAD + b"Y\r\n--b--", FORM, "bad_multipart"),
        (HEAD + b"X", FORM, "bad_multipart"),
        (b"--b--", FORM, "bad_multipart"),
        (b"", FORM, "bad_multipart"),
        (HEAD + b"X\r\n--b--", "multipart/form-data", "bad_multipart"),
        (HEAD + b"X\r\n--b--", "multipart/form-data; boundary=", "bad_multipart"),
        (HEAD + b"X\r\n--b--", "multipart/form-data; boundary=" + "b" * 500, "bad_multipart"),
        (HEAD + b"X\r\n--b--", "multipart/mixed; boundary=b", "bad_multipart"),
        (b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nX\r\n--b--', FORM, "bad_multipart"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nX\r\n--b--", FORM, "bad_multipart"),
        (b"--b\r\n\r\nX\r\n--b--", FORM, "bad_multipart"),
        (b"--b\r\nX: " + b"y" * 9000 + b"\r\n\r\nX\r\n--b--", FORM, "bad_multipart"),
        (HEAD + b'X\r\n--b\r\nContent-Disposition: form-data; name="score"\r\n\r\n0.9\r\n--b--', FORM, "bad_multipart"),
        (HEAD * 100 + b"X\r\n--b--", FORM, "bad_multipart"),
    ],
)
def test_bodies_without_exactly_one_image_are_refused(body: bytes, kind: str, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        upload_in(body, kind)
    assert refused.value.code == code


@given(st.binary(max_size=200), st.text(max_size=60))
def test_no_body_and_content_type_raise_another_error(body: bytes, kind: str) -> None:
    for content_type in (kind, f"multipart/form-data; boundary={kind}"):
        with suppress(Refusal):
            assert upload_in(body, content_type).content


class Sender:
    """Sends chunks to the server, and then nothing more."""

    def __init__(self, chunks: Iterator[bytes], delay: float = 0.0) -> None:
        self.chunks, self.delay, self.sent = chunks, delay, 0

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.delay)
        chunk = next(self.chunks, None)
        if chunk is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        self.sent += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}


LIMITS = Limits(megabytes=0.001, queue_megabytes=0.0015, upload_seconds=0.1)


def received(sender: Sender, budget: Budget, **headers: str) -> bytes:
    async def receive() -> bytes:
        with budget.charge() as charge:
            return await receive_body(sender.receive, headers, LIMITS, charge)

    return asyncio.run(receive())


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 100


def test_a_body_is_received_in_chunks() -> None:
    budget = Budget(LIMITS)
    assert received(Sender(iter([b"a", b"b"])), budget) == b"ab"
    assert budget.used("bytes") == 0


@pytest.mark.parametrize("length", ["1001", "99999999999999999999"])
def test_a_body_that_is_announced_as_too_large_is_not_received(length: str) -> None:
    sender = Sender(endless())
    with pytest.raises(Refusal) as refused:
        received(sender, Budget(LIMITS), **{"content-length": length})
    assert refused.value.code == "too_large"
    assert sender.sent == 0


def test_an_endless_body_ends_at_the_limit() -> None:
    sender, budget = Sender(endless()), Budget(LIMITS)
    with pytest.raises(Refusal) as refused:
        received(sender, budget)
    assert refused.value.code == "too_large"
    assert sender.sent == 1100
    assert budget.used("bytes") == 0


def test_a_slow_body_ends_after_its_time() -> None:
    with pytest.raises(Refusal) as refused:
        received(Sender(iter([b"x"] * 100), delay=0.03), Budget(LIMITS))
    assert refused.value.code == "upload_too_slow"


def test_bytes_of_all_requests_are_limited_together() -> None:
    budget = Budget(LIMITS)
    with budget.charge() as other:
        other.add("bytes", 1000)
        with pytest.raises(Refusal) as refused:
            received(Sender(iter([b"x" * 600])), budget)
        assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1)
    assert received(Sender(iter([b"x" * 600])), budget) == b"x" * 600


def test_the_rest_of_a_refused_body_is_discarded_up_to_a_limit() -> None:
    sender = Sender(endless())
    asyncio.run(discard_body(sender.receive, LIMITS))
    assert sender.sent == 4000
    slow = Sender(endless(), delay=0.05)
    asyncio.run(discard_body(slow.receive, LIMITS, seconds=0.2))
    assert slow.sent < 1000
