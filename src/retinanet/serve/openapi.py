"""What the OpenAPI document says about the routes: bodies, answers, errors and examples."""

from __future__ import annotations

from typing import Any

from retinanet.serve.answers import COCO, JPEG, JSON, PNG
from retinanet.serve.bodies import FIELD
from retinanet.serve.refusals import STATUS

_BINARY = {"type": "string", "format": "binary"}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "additionalProperties": False,
            "properties": {
                "code": {"type": "string", "enum": [code for code in STATUS if code != "client_left"]},
                "message": {"type": "string"},
            },
        }
    },
}

_BOX = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "x1, y1, x2, y2 in pixels of the upright image",
}
_DETECTION = {
    "type": "object",
    "required": ["box", "score", "class_id", "class_name"],
    "properties": {
        "box": _BOX,
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "class_id": {"type": "integer", "minimum": 0},
        "class_name": {"type": "string"},
    },
}
_DETECTIONS = {
    "type": "object",
    "required": ["model", "width", "height", "detections"],
    "properties": {
        "model": {"type": "string"},
        "width": {"type": "integer", "minimum": 1},
        "height": {"type": "integer", "minimum": 1},
        "detections": {"type": "array", "items": _DETECTION, "description": "best first"},
    },
}
_COCO = {
    "type": "object",
    "required": ["images", "annotations", "categories"],
    "properties": {
        name: {"type": "array", "items": {"type": "object"}} for name in ("images", "annotations", "categories")
    },
}
_EXAMPLE = {
    "model": "person",
    "width": 640,
    "height": 480,
    "detections": [{"box": [12.5, 40.25, 210.0, 455.75], "score": 0.9312, "class_id": 0, "class_name": "person"}],
}
_MODEL = {
    "type": "object",
    "required": ["name", "default", "classes", "score", "lowest_score", "max_detections", "auto_tile"],
    "properties": {
        "name": {"type": "string"},
        "default": {"type": "boolean", "description": "whether requests that name no model use it"},
        "classes": {"type": "array", "items": {"type": "string"}},
        "score": {"type": "number", "description": "lowest score reported unless a request gives another"},
        "lowest_score": {"type": "number", "description": "lowest score that a request may give"},
        "max_detections": {"type": "integer"},
        "auto_tile": {"type": ["integer", "null"], "description": "side that tile=auto chooses; null: it is refused"},
    },
}
_MODEL_LIST = {
    "type": "object",
    "required": ["models"],
    "properties": {"models": {"type": "array", "items": _MODEL, "minItems": 1}},
}
_HEALTH = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def _errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The answers with these codes, by their status."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        entry = found.setdefault(STATUS[code], {"description": code, "content": {JSON: {"schema": _ERROR}}})
        if code not in entry["description"]:
            entry["description"] += f", {code}"
        if STATUS[code] in (429, 503):
            entry["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def _answers(content: dict[str, Any], description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": content}}


_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": f"The bytes of an image file, or a form with the file in the field {FIELD!r}.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _BINARY}}},
            **{kind: {"schema": _BINARY} for kind in ("image/jpeg", "image/png", "application/octet-stream")},
        },
    }
}

DETECT: dict[str, Any] = {
    "responses": _answers(
        {
            JSON: {"schema": _DETECTIONS, "example": _EXAMPLE},
            COCO: {"schema": _COCO},
            JPEG: {"schema": _BINARY},
            PNG: {"schema": _BINARY},
        },
        "the detections, or the image with the detections drawn, by the header Accept",
    )
    | _errors(*(code for code in STATUS if code not in ("client_left", "not_found", "method_not_allowed"))),
    "openapi_extra": _UPLOAD,
}
MODELS: dict[str, Any] = {
    "responses": _answers({JSON: {"schema": _MODEL_LIST}}, "the models") | _errors("unauthorized"),
}
HEALTH: dict[str, Any] = {
    "responses": _answers({JSON: {"schema": _HEALTH}}, "yes")
    | {503: {"description": "no", "content": {JSON: {"schema": _HEALTH}}}},
}
METRICS: dict[str, Any] = {
    "responses": _answers({"text/plain": {"schema": {"type": "string"}}}, "the metrics") | _errors("unauthorized"),
}
