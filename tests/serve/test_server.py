"""The server on real sockets: slow, surplus and leaving clients, overload, and the end."""

from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic, sleep

import pytest

from retinanet.serve.settings import Limits, ServeSettings
from serving import Answer, Client, HeldDetector, answer_of, gray, read_to_end, running

QUICK = ServeSettings(batch=4, limits=Limits(idle_seconds=1, upload_seconds=0.5, connections=20, requests=6))


def wait_until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end
        sleep(0.01)


def request_head(length: int | str, more: str = "") -> bytes:
    return (
        f"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


def test_a_client_that_sends_its_headers_slowly_is_ended() -> None:
    with running({"held": HeldDetector()}, QUICK) as client, client.open() as connection:
        begin = monotonic()
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with suppress(OSError):
            while monotonic() - begin < 10:
                sleep(0.2)
                connection.sendall(b"X: y\r\n")
        assert 0.5 < monotonic() - begin < 5
        assert client("GET", "/healthz").status == 200


def test_a_client_that_sends_nothing_is_ended() -> None:
    with running({"held": HeldDetector()}, QUICK) as client, client.open() as connection:
        assert read_to_end(connection) == b""


def test_a_client_that_sends_its_body_slowly_gets_an_answer() -> None:
    with running({"held": HeldDetector()}, QUICK) as client, client.open() as connection:
        connection.sendall(request_head(5000) + b"x")
        assert b"HTTP/1.1 408" in read_to_end(connection)


def test_an_endless_body_ends() -> None:
    with running({"held": HeldDetector()}, QUICK) as client, client.open() as connection:
        connection.sendall(request_head(5000).replace(b"Content-Length: 5000", b"Transfer-Encoding: chunked"))
        sent = 0
        with suppress(OSError):
            while sent < 10**9:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        assert sent < 5 * 32e6 + 8e6


@pytest.mark.parametrize("first", [0, 100_000])
def test_a_body_in_tiny_chunks_is_refused_before_it_keeps_others_waiting(first: int) -> None:
    with running({"held": HeldDetector()}, QUICK) as client, client.open() as connection:
        head = request_head(5).replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")
        connection.sendall(head + b"2\r\nab\r\n" * first)
        with suppress(OSError):
            for _ in range(20):
                connection.sendall(b"2\r\nab\r\n" * 10_000)
        begin = monotonic()
        assert client("GET", "/healthz").status == 200
        assert monotonic() - begin < 0.4


def test_a_body_in_chunks_of_a_kilobyte_is_accepted() -> None:
    content = gray(5, (400, 400)) + bytes(100_000)
    parts = [content[place : place + 1000] for place in range(0, len(content), 1000)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])
    with running({"held": HeldDetector()}, ServeSettings()) as client:
        head = request_head(5).replace(b"Content-Length: 5", b"Transfer-Encoding: chunked\r\nConnection: close")
        assert client.send_bytes(head + body).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        request_head("-5"),
        request_head("5, 6"),
        request_head("5\r\nContent-Length: 6"),
        request_head("5\r\nTransfer-Encoding: nonsense"),
        b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_bytes_that_are_not_http_are_answered_with_json(data: bytes) -> None:
    with running({"held": HeldDetector()}, QUICK) as client:
        answer = client.send_bytes(data)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")) or answer == b""
        assert answer == b"" or b'"code": "bad_request"' in answer
        assert client.detect(gray(5)).status == 200


def test_a_client_that_leaves_is_not_computed() -> None:
    held = HeldDetector()
    with running({"held": held}, QUICK) as client, ThreadPoolExecutor(2) as pool:
        held.gate.clear()
        first = pool.submit(client.detect, gray(1))
        wait_until(lambda: held.batches)
        body = gray(66)
        with client.open() as connection:
            connection.sendall(request_head(len(body)) + body)
            wait_until(lambda: client.service.budget.used("requests") == 2)
        wait_until(lambda: client.service.budget.used("requests") == 1)
        second = pool.submit(client.detect, gray(2))
        wait_until(lambda: client.service.budget.used("requests") == 2)
        held.gate.set()
        assert first.result().status == second.result().status == 200
        assert held.batches == [[1], [2]]
        assert client.service.budget.used("bytes") == client.service.budget.used("pixels") == 0


def test_more_requests_than_the_queue_holds_are_refused_and_the_others_answered() -> None:
    held = HeldDetector()
    with running({"held": held}, QUICK) as client, ThreadPoolExecutor(12) as pool:
        held.gate.clear()
        answers = [pool.submit(client.detect, gray(value)) for value in range(1, 13)]
        wait_until(lambda: sum(each.done() for each in answers) == 6)
        held.gate.set()
        found = [each.result() for each in answers]
        assert sorted(each.status for each in found) == [200] * 6 + [429] * 6
        for value, each in enumerate(found, start=1):
            if each.status == 200:
                assert each.json()["detections"][0]["box"][2] == value
            else:
                assert (each.code, each.headers["retry-after"]) == ("overloaded", "1")
        assert client.detect(gray(3)).status == 200


def test_a_request_that_waits_too_long_is_refused() -> None:
    held = HeldDetector()
    settings = ServeSettings(limits=Limits(seconds=0.3))
    with running({"held": held}, settings) as client:
        held.gate.clear()
        answer = client.detect(gray(1))
        assert (answer.status, answer.code) == (503, "deadline_exceeded")
        assert "retry-after" in answer.headers
        held.gate.set()
        assert client.detect(gray(1)).status == 200


def test_more_connections_than_the_limit_are_closed_with_503() -> None:
    with running({"held": HeldDetector()}, QUICK) as client:
        connections = [client.open() for _ in range(20)]
        answer = client.send_bytes(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer == b"" or answer.startswith(b"HTTP/1.1 503")
        for connection in connections:
            connection.close()
        wait_until(lambda: not client.server.server_state.connections)
        assert client("GET", "/healthz").status == 200


def test_a_shutdown_answers_everything_that_was_accepted() -> None:
    held = HeldDetector()
    answers: list[Answer] = []
    broken: list[BaseException] = []

    def load(client: Client) -> None:
        """Send requests over one connection until the server says that it ends."""
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        for value in range(1, 1000):
            try:
                connection.request("POST", "/v1/detect", gray(1 + value % 70), {"Content-Type": "image/png"})
                answer = answer_of(connection.getresponse())
            except Exception as error:
                broken.append(error)
                return
            answers.append(answer)
            if answer.headers.get("connection") == "close":
                return

    with running({"held": held}, ServeSettings(batch=4)) as client:
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) > 100)
        client.server.should_exit = True
        for thread in threads:
            thread.join(20)
    assert not broken
    assert {answer.status for answer in answers} <= {200, 503}
    # Each connection ends with such an answer. Other connections may get plain answers after that.
    assert sum(answer.headers.get("connection") == "close" for answer in answers) == 8


def test_while_it_shuts_down_the_server_is_not_ready() -> None:
    held = HeldDetector()
    with running({"held": held}, QUICK) as client, ThreadPoolExecutor(1) as pool:
        other = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        other.connect()
        held.gate.clear()
        answer = pool.submit(client.detect, gray(5))
        wait_until(lambda: held.batches)
        client.server.should_exit = True
        wait_until(lambda: client.service.draining)
        other.request("GET", "/readyz")
        assert other.getresponse().status == 503
        held.gate.set()
        assert answer.result().status == 200
