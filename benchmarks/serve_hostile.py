"""Hostile uploads and random requests against a server: no 500, no crash, and the memory goes back.

python benchmarks/serve_hostile.py [--model person] [--uploads 1000] [--requests 100000] [--seed 0] [--out FILE]
"""

from __future__ import annotations

import argparse
import http.client
import io
import random
import re
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from PIL import Image

from retinanet.files import write_json
from serve_load import Process

PATHS = ("/", "/v1/detect", "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json", "/page/app.js", "/page/")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, content: bytes) -> bytes:
    """A PNG file whose pixels need not fit its sides."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def image(chance: random.Random, kind: str) -> bytes:
    """A valid image of noise."""
    sides = chance.randrange(1, 300), chance.randrange(1, 300)
    values = np.random.default_rng(chance.randrange(10**6)).integers(0, 255, (*sides, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def long_image() -> bytes:
    """An image of 50,000×1 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (50_000, 1), (9, 9, 9)).save(file, "PNG")
    return file.getvalue()


def damaged(chance: random.Random) -> bytes:
    """An image with other bytes in some places."""
    content = bytearray(image(chance, chance.choice(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"))))
    for _ in range(chance.randrange(1, 30)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def truncated(chance: random.Random) -> bytes:
    """The beginning of an image."""
    content = image(chance, chance.choice(("PNG", "JPEG", "WEBP", "TIFF")))
    return content[: chance.randrange(len(content))]


def nested(chance: random.Random) -> tuple[bytes, str]:
    """A form in a form in a form."""
    body = image(chance, "PNG")
    for level in range(3):
        head = f'--b{level}\r\nContent-Disposition: form-data; name="image"\r\nContent-Type: multipart/mixed\r\n\r\n'
        body = head.encode() + body + f"\r\n--b{level}--\r\n".encode()
    return body, "multipart/form-data; boundary=b2"


UPLOADS: dict[str, Callable[[random.Random], bytes]] = {
    "valid": lambda chance: image(chance, "PNG"),
    "random bytes": lambda chance: chance.randbytes(chance.randrange(1, 100_000)),
    "text": lambda chance: b"http://127.0.0.1/x.png file:///etc/passwd\n" * chance.randrange(1, 100),
    "pickle": lambda chance: b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n(S'true'\ntR.",
    "zero bytes": lambda chance: b"",
    "truncated": truncated,
    "damaged": damaged,
    "bomb": lambda chance: png(30_000, 30_000, bytes(20_000_000)),
    "bomb below the limit": lambda chance: png(7000, 7000, bytes(7000 * 21_001)),
    "more pixels than content": lambda chance: png(5000, 5000, bytes(100)),
    "50,000×1": lambda chance: long_image(),
    "no pixels": lambda chance: png(0, 0, b""),
    "too large": lambda chance: bytes(40_000_000),
    "svg": lambda chance: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "postscript": lambda chance: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(%pipe%id) (r) file\n",
}


def raw_requests(chance: random.Random) -> dict[str, bytes]:
    """Bytes of requests that no HTTP client sends."""
    content = image(chance, "PNG")
    head = "POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    return {
        "shorter than announced": f"{head}Content-Length: {len(content) + 50}\r\n\r\n".encode() + content,
        "longer than announced": f"{head}Content-Length: {len(content) - 50}\r\n\r\n".encode() + content,
        "negative length": f"{head}Content-Length: -1\r\n\r\n".encode() + content,
        "two lengths": f"{head}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef".encode(),
        "huge header": head.encode() + b"X: " + bytes(300_000) + b"\r\n\r\n",
        "many headers": head.encode() + b"X: y\r\n" * 20_000 + b"\r\n",
        "broken chunks": f"{head}Transfer-Encoding: chunked\r\n\r\nzzz\r\n".encode(),
        "no http": chance.randbytes(500),
        "slow-loris": head.encode(),
        "slow body": f"{head}Content-Length: 100000\r\n\r\n".encode() + content[:10],
    }


def send(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    """Send a request; return the status, or 0 if the connection broke while the body was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if b"Traceback" in text or b"site-packages" in text:
            return 599
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def send_raw(port: int, data: bytes) -> int:
    """Send bytes; return the status, or 0 if the connection ended without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=90) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer:
                    break
        except OSError:
            pass
    found = re.match(rb"HTTP/1.1 (\d+)", answer)
    return int(found[1]) if found else 0


def hostile_uploads(port: int, count: int, chance: random.Random) -> dict[str, Counter[int]]:
    """Send uploads of all kinds in turn, eight at a time; return the statuses of each kind."""
    statuses: dict[str, Counter[int]] = {}
    lock = threading.Lock()

    def one(number: int, chance: random.Random) -> None:
        raw = raw_requests(chance)
        kinds = [*UPLOADS, "nested form", *raw]
        kind = kinds[number % len(kinds)]
        if kind in raw:
            status = send_raw(port, raw[kind])
        elif kind == "nested form":
            body, content_type = nested(chance)
            status = send(port, "POST", "/v1/detect", body, {"Content-Type": content_type})
        else:
            name = chance.choice(("image/png", "image/jpeg", "text/html", "application/json", "x/y", ""))
            status = send(port, "POST", "/v1/detect", UPLOADS[kind](chance), {"Content-Type": name})
        with lock:
            statuses.setdefault(kind, Counter())[status] += 1

    in_threads(8, count, one, chance)
    return statuses


def random_requests(port: int, count: int, chance: random.Random) -> Counter[str]:
    """Send random requests to all routes, over connections that stay open; return the statuses of each route."""
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    local = threading.local()

    def one(number: int, chance: random.Random) -> None:
        path = chance.choice(PATHS)
        if chance.random() < 0.5:
            query = "&".join(
                f"{chance.choice(('score', 'model', 'max_detections', 'tile', 'x'))}="
                f"{chance.choice(('0.5', '-1', 'nan', 'person', '1e99', '%00', '%F0%9F', '9' * 40, '../x', ''))}"
                for _ in range(chance.randrange(1, 4))
            )
            path += f"?{query}"
        elif chance.random() < 0.2:
            path += "".join(chance.choice(("%2e%2e/", "a", "%00", "/", "%ff", ";", "..")) for _ in range(5))
        body = chance.randbytes(chance.randrange(0, 300)) if chance.random() < 0.5 else None
        headers = {"Accept": chance.choice(("*/*", "image/png", "text/html;q=x", "application/json", ","))}
        if chance.random() < 0.3:
            headers["Content-Type"] = chance.choice(
                ("multipart/form-data; boundary=a", "multipart/form-data", "\xff", "a")
            )
        connection = getattr(local, "connection", None) or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        local.connection = connection
        try:
            connection.request(chance.choice(METHODS), path, body, headers)
            response = connection.getresponse()
            response.read()
            status = str(response.status)
        except (OSError, http.client.HTTPException):
            connection.close()
            status = "connection ended"
        with lock:
            statuses[status] += 1

    in_threads(8, count, one, chance)
    return statuses


def in_threads(threads: int, count: int, one: Callable[[int, random.Random], None], chance: random.Random) -> None:
    """Call ``one`` with the numbers below ``count``, each thread with its own random numbers."""

    def work(first: int, own: random.Random) -> None:
        for number in range(first, count, threads):
            one(number, own)

    running = [threading.Thread(target=work, args=(i, random.Random(chance.random()))) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def main() -> None:
    """Send everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="person")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    process = Process([given.model])
    photo = image(chance, "PNG")
    for _ in range(50):
        send(process.port, "POST", "/v1/detect", photo, {})
    rows: dict[str, Any] = {"memory_mb_before": process.memory_mb()}
    for name, count, work in (
        ("uploads", given.uploads, hostile_uploads),
        ("requests", given.requests, random_requests),
    ):
        begin = perf_counter()
        rows[name] = work(process.port, count, chance)  # type: ignore[operator]
        rows[f"{name}_seconds"] = round(perf_counter() - begin, 1)
        sleep(2)
        rows[f"memory_mb_after_{name}"] = process.memory_mb()
        print(name, rows[name], rows[f"memory_mb_after_{name}"], flush=True)
    rows["status_afterwards"] = send(process.port, "POST", "/v1/detect", photo, {})
    rows["exit_code"] = process.stop()
    print(rows)
    if given.out:
        write_json(given.out, rows, indent=1)


if __name__ == "__main__":
    main()
