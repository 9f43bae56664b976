"""Schemathesis calls the API as its OpenAPI document describes it, with valid and invalid values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serving import HeldDetector, gray, running

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]

# Random bytes are never an image, so half of the bodies are images.
IMAGES = st.one_of(st.sampled_from([gray(50), gray(60, (200, 30))]), st.binary(max_size=500))
for kind in ("image/png", "image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, IMAGES)

ROUTES = [
    ("POST", "/v1/detect"),
    ("GET", "/v1/models"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    with running({"held": HeldDetector()}) as client:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{client.port}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_answer_is_as_the_document_says(document: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and path != "/v1/detect":
        return  # the others take no values that could be invalid
    statuses: set[int] = set()

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    assert 500 not in statuses
    assert 200 in statuses or mode is GenerationMode.NEGATIVE
