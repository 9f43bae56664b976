"""The web application: :func:`create_app` makes it, any ASGI server runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from retinanet._version import __version__
from retinanet.detection.detector import Detector
from retinanet.detection.tile_plan import LEAST_TILE
from retinanet.serve.batcher import Batcher, MakeJobRunner
from retinanet.serve.guard import Guard, refusal_headers
from retinanet.serve.page_files import page_router
from retinanet.serve.refusals import Refusal
from retinanet.serve.routes import DetectQuery, router
from retinanet.serve.service import Service
from retinanet.serve.settings import ServeSettings

# What to say about an option, instead of a sentence about each of its types.
_REASONS = {"tile": f"give a whole number from {LEAST_TILE}, auto or none"}

_DESCRIPTION = 'Detects objects in images. Errors are JSON with a code: `{"error": {"code": …, "message": …}}`.'


def create_app(
    models: Mapping[str, Detector],
    settings: ServeSettings | None = None,
    token: str | None = None,
    make_batcher: MakeJobRunner = Batcher,
) -> FastAPI:
    """Make the application of a server. ``app.state.service`` is its :class:`Service`.

    Args:
        models: detectors by name; the first is used for requests that name none.
        settings: limits and batches; unset: the defaults.
        token: bearer token that clients need; unset: none.
        make_batcher: makes what works on the images. Unset: threads of this process.

    Raises:
        ConfigError: there is no model, or a model cannot report scores as low as ``settings.score``.
    """
    service = Service(models, settings or ServeSettings(), token, make_batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher = service.batcher  # starts its threads
        yield
        service.draining = True
        await anyio.to_thread.run_sync(batcher.close)

    # The pages of FastAPI for the document load scripts from other servers.
    app = FastAPI(
        title="retinanet",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the address would be built from the client's header Host
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(page_router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Guard, service=service)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    service: Service = request.app.state.service
    service.metrics.refused(error.code)
    return JSONResponse(error.content(), error.status, refusal_headers(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][1])[:60] if len(first["loc"]) > 1 else "the query"
    reason = _REASONS.get(name) or first["msg"]
    if first["type"] == "extra_forbidden":
        reason = f"no such option; there are {', '.join(DetectQuery.model_fields)}"
    return await _refused(request, Refusal("invalid_option", f"{name}: {reason}"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    refusal = Refusal(codes.get(error.status_code, "bad_request"), str(error.detail))
    answer = await _refused(request, refusal)
    answer.headers.update(error.headers or {})
    return answer
