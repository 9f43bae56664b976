"""The routes of the API: detection, the list of models, health and metrics."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from retinanet.detection.tile_plan import LEAST_TILE
from retinanet.serve.answers import JPEG, PNG, answer_body, media_type
from retinanet.serve.batcher import Found, Job, Options
from retinanet.serve.bodies import Upload, receive_body, upload_in
from retinanet.serve.budget import Charge
from retinanet.serve.openapi import DETECT, HEALTH, METRICS, MODELS
from retinanet.serve.refusals import Refusal
from retinanet.serve.service import Service
from retinanet.serve.uploads import UploadHeader, read_upload_header

router = APIRouter()

# A batch that takes longer than this number of seconds means that the network hangs.
_STUCK = 120.0


class DetectQuery(BaseModel):
    """The query of ``/v1/detect``."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=200, description="Name of the model. Unset: the first one.")
    score: float | None = Field(
        None, ge=0, lt=1, allow_inf_nan=False, description="Lowest score reported. Unset: the setting of the server."
    )
    max_detections: int | None = Field(
        None, ge=1, le=1_000_000, description="Largest number of detections. Unset: the number that the model stores."
    )
    tile: Annotated[int, Field(ge=LEAST_TILE, le=100_000)] | Literal["auto", "none"] | None = Field(
        None,
        description="Side in pixels of the tiles that an image is divided into, or auto, or none: the image is scaled "
        "as a whole. Unset: none, or auto if the model was trained on tiles.",
    )


@router.post("/v1/detect", **DETECT)
async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
    """Detect objects in one image."""
    service: Service = request.app.state.service
    begin = monotonic()
    if service.draining:
        raise Refusal("shutting_down", "the server is shutting down", retry_after=5)
    kind = media_type(", ".join(request.headers.getlist("accept")))
    options = service.options(query.model, query.score, query.max_detections, query.tile)
    limits = service.settings.limits
    with service.budget.charge() as charge:
        body = await receive_body(request.receive, request.headers, limits, charge)
        received = monotonic()
        service.uploads += 1
        upload = upload_in(body, request.headers.get("content-type", ""))
        del body
        await _admit(upload, options, service, charge)
        job = Job(upload.content, options, received + limits.seconds, keep=kind in (JPEG, PNG))
        name, upload = upload.name, Upload(b"", "")
        job.seconds["receive"] = received - begin
        found = await service.detect(job, request.receive)
        return await _answer(kind, found, options.model, name, service)


async def _admit(upload: Upload, options: Options, service: Service, charge: Charge) -> UploadHeader:
    """Charge a request and the pixels of its image, before it is decoded."""
    charge.add("requests", 1)
    limits = service.settings.limits
    header = await asyncio.to_thread(read_upload_header, upload.content, limits.megapixels)
    if (tiling := options.tiling) is not None:
        step = tiling.side - tiling.overlap
        tiles = math.ceil(header.width / step) * math.ceil(header.height / step)
        if tiles > limits.tiles:
            raise Refusal("invalid_option", f"the image has {tiles} tiles; the limit is {limits.tiles}, so raise tile")
    charge.add("pixels", header.pixels)
    return header


async def _answer(kind: str, found: Found, model: str, name: str, service: Service) -> Response:
    begin = monotonic()
    content = (kind, found, model, service.models[model].classes, name)
    drawn = kind in (JPEG, PNG)
    body = await asyncio.to_thread(answer_body, *content) if drawn else answer_body(*content)
    seconds = {**found.seconds, "answer": monotonic() - begin}
    service.metrics.detected(model, seconds)
    headers = {"server-timing": ", ".join(f"{stage};dur={1000 * value:.1f}" for stage, value in seconds.items())}
    if len(found.detections.limited):
        headers["x-limit-reached"] = "max_detections"
    return Response(body, media_type=kind, headers=headers)


@router.get("/v1/models", **MODELS)
async def models(request: Request) -> JSONResponse:
    """List the models, the default one first."""
    service: Service = request.app.state.service
    return JSONResponse({"models": service.describe()})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", **HEALTH)
async def healthz(request: Request) -> JSONResponse:
    """Tell whether the process works; restart it if not."""
    service: Service = request.app.state.service
    return _status(not service.batcher.stuck(_STUCK), "stuck")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", **HEALTH)
async def readyz(request: Request) -> JSONResponse:
    """Tell whether the server takes requests; send it none if not."""
    service: Service = request.app.state.service
    return _status(not service.draining and not service.batcher.stuck(_STUCK), "not ready")


def _status(well: bool, otherwise: str) -> JSONResponse:
    content: dict[str, Any] = {"status": "ok" if well else otherwise}
    return JSONResponse(content, 200 if well else 503)


@router.get("/metrics", **METRICS)
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
