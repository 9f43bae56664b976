"""The files of the page. They are read once; no path that a client sends is ever opened."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from retinanet.serve.refusals import Refusal

page_router = APIRouter(include_in_schema=False)

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of each file of the page, by name."""
    found = {}
    for file in files("retinanet.serve").joinpath("page").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found[file.name] = (file.read_bytes(), f"{kind}; charset=utf-8")
    return found


@page_router.get("/")
async def page() -> Response:
    """Return the page."""
    return _file("index.html")


@page_router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """Return a file of the page."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in page_files():
        raise Refusal("not_found", "no such file")
    content, kind = page_files()[name]
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})
