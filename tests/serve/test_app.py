"""The API: detections as JSON, as COCO and drawn; models, health, metrics, the token, and errors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from commands import Command
from retinanet.data.images import read_image
from retinanet.detection.detector import Detector
from retinanet.detection.draw import draw
from retinanet.detection.loading import load
from retinanet.errors import ConfigError
from retinanet.serve.app import create_app
from retinanet.serve.settings import Limits, ServeSettings
from serving import POISON, Client, HeldDetector, encoded, gray, running


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load(weights, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def client(detector: Detector) -> Iterator[Client]:
    settings = ServeSettings(limits=Limits(megabytes=1, megapixels=1))
    with running({"parts": detector, "held": HeldDetector()}, settings) as client:
        yield client


@pytest.fixture(scope="module")
def photo(parts: Path) -> Path:
    return parts / "images" / "000000.jpg"


def form(client: Client, content: bytes, query: str = "", **headers: str) -> httpx2.Response:
    url = f"http://127.0.0.1:{client.port}/v1/detect{query}"
    return httpx2.post(url, files={"image": ("a photo.jpg", content)}, headers=headers)


def test_detections_are_those_of_the_command(
    client: Client, run: Command, weights: Path, parts: Path, tmp_path: Path
) -> None:
    said = run("detect", weights, parts / "images", "--out", tmp_path, "--precision", "fp32", "--device", "cpu")
    assert said.code == 0
    written = json.loads((tmp_path / "detections.json").read_text())
    total = 0
    for image in written["images"]:
        answer = client.detect(Path(image["file_name"]).read_bytes()).json()
        assert (answer["model"], answer["width"], answer["height"]) == ("parts", image["width"], image["height"])
        expected = [each for each in written["annotations"] if each["image_id"] == image["id"]]
        assert len(answer["detections"]) == len(expected)
        total += len(expected)
        for ours, theirs in zip(answer["detections"], expected, strict=True):
            x1, y1, x2, y2 = ours["box"]
            np.testing.assert_allclose([x1, y1, x2 - x1, y2 - y1], theirs["bbox"], atol=0.02)
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
            assert ours["class_id"] == theirs["category_id"] - 1
            assert ours["class_name"] == written["categories"][ours["class_id"]]["name"]
    assert total > 5


def test_a_form_and_raw_bytes_give_the_same(client: Client, photo: Path) -> None:
    content = photo.read_bytes()
    assert form(client, content).json() == client.detect(content).json()


def test_options_of_a_request(client: Client, photo: Path) -> None:
    content = photo.read_bytes()
    many = client.detect(content, "?score=0.1").json()["detections"]
    few = client.detect(content, "?score=0.1&max_detections=2")
    assert len(many) > 2
    assert [each["class_id"] for each in few.json()["detections"]] == [each["class_id"] for each in many[:2]]
    assert few.headers["x-limit-reached"] == "max_detections"
    assert client.detect(gray(50), "?model=held").json()["detections"][0]["box"][2] == 50


def test_tiles_give_what_python_gives(client: Client, detector: Detector, photo: Path) -> None:
    with Image.open(photo) as image:
        content = encoded(image.resize((250, 170)), "PNG")
    expected = detector(Image.open(io.BytesIO(content)), 0.3, tile=96)
    answer = client.detect(content, "?tile=96").json()
    np.testing.assert_allclose([each["box"] for each in answer["detections"]], expected.xyxy, atol=0.02)
    assert answer["detections"] != client.detect(content).json()["detections"]
    assert client.detect(content, "?tile=auto").status == 200
    assert client.detect(content, "?tile=20").code == "invalid_option"
    many = client.detect(gray(9, (2000, 490)), "?tile=64")
    assert (many.status, many.code) == (400, "invalid_option")


def test_coco(client: Client, photo: Path) -> None:
    plain = client.detect(photo.read_bytes()).json()
    answer = form(client, photo.read_bytes(), accept="application/vnd.coco+json")
    assert answer.headers["content-type"] == "application/vnd.coco+json"
    coco = answer.json()
    assert coco["images"] == [{"id": 1, "file_name": "a photo.jpg", "width": 96, "height": 96}]
    assert [each["name"] for each in coco["categories"]] == list(client.service.models["parts"].classes)
    for ours, theirs in zip(coco["annotations"], plain["detections"], strict=True):
        x1, y1, x2, y2 = theirs["box"]
        assert ours["bbox"] == [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        assert (ours["score"], ours["category_id"]) == (theirs["score"], theirs["class_id"] + 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_drawn_image(client: Client, detector: Detector, photo: Path, kind: str) -> None:
    answer = client.detect(photo.read_bytes(), Accept=f"image/{kind.lower()}")
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(answer.body)) as image:
        assert image.format == kind
        drawn = np.asarray(image)
    pixels = read_image(photo)
    [found] = detector.detect([pixels], 0.3)
    expected = encoded(Image.fromarray(draw(pixels, found, detector.classes)), kind, quality=92)
    with Image.open(io.BytesIO(expected)) as image:
        np.testing.assert_array_equal(drawn, np.asarray(image))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/*;q=0.5", "application/json"),
        ("image/*", "image/jpeg"),
        ("application/json;q=0.2, image/png", "image/png"),
        ("image/webp, */*;q=0.1", "application/json"),
    ],
)
def test_accept_chooses_the_answer(client: Client, accept: str, expected: str) -> None:
    assert client.detect(gray(9), Accept=accept).headers["content-type"] == expected


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?model=other", 404, "unknown_model"),
        ("?model=../parts", 404, "unknown_model"),
        ("?score=1", 400, "invalid_option"),
        ("?score=nan", 400, "invalid_option"),
        ("?score=x", 400, "invalid_option"),
        ("?max_detections=0", 400, "invalid_option"),
        ("?max_detections=1000000", 400, "invalid_option"),
        ("?max_detections=1e3", 400, "invalid_option"),
        ("?scores=0.5", 400, "invalid_option"),
        ("?url=http://localhost/x.png", 400, "invalid_option"),
        ("?path=/etc/passwd", 400, "invalid_option"),
    ],
)
def test_invalid_options_are_refused(client: Client, query: str, status: int, code: str) -> None:
    answer = client.detect(gray(9), query)
    assert (answer.status, answer.code) == (status, code)


def test_messages_about_options_say_what_can_be_given(client: Client) -> None:
    assert "a whole number from 64, auto or none" in client.detect(gray(9), "?tile=AUTO").body.decode()
    assert "there are model, score, max_detections, tile" in client.detect(gray(9), "?skore=1").body.decode()


def test_addresses_with_a_slash_at_the_end_are_not_redirected(client: Client) -> None:
    answer = client("POST", "/v1/detect/", gray(9))
    assert (answer.status, answer.code) == (404, "not_found")


def test_health_can_be_asked_for_without_a_body(client: Client) -> None:
    answer = client("HEAD", "/healthz")
    assert (answer.status, answer.body) == (200, b"")


def test_errors_are_json_with_a_code(client: Client) -> None:
    large = client.detect(bytes(1_000_001))
    assert (large.status, large.code) == (413, "too_large")
    pixels = client.detect(gray(9, (2000, 501)))
    assert (pixels.status, pixels.code) == (413, "too_many_pixels")
    assert "2000×501" in pixels.json()["error"]["message"]
    assert client.detect(b"").code == "empty_body"
    assert client.detect(b"x").code == "not_an_image"
    assert client.detect(gray(9)[:60]).code == "broken_image"
    assert client.detect(gray(9), Accept="text/html").code == "not_acceptable"
    assert client("GET", "/etc/passwd").code == "not_found"
    assert client("GET", "/page/..%2F..%2Fapp.py").code == "not_found"
    wrong = client("GET", "/v1/detect")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_an_error_of_the_network_has_no_stack_trace(client: Client) -> None:
    answer = client.detect(gray(POISON), "?model=held")
    assert (answer.status, answer.code) == (500, "internal")
    assert b"Traceback" not in answer.body
    assert b"does not like" not in answer.body
    assert client.detect(gray(50), "?model=held").status == 200


def test_models_health_and_metrics(client: Client) -> None:
    listed = client("GET", "/v1/models").json()["models"]
    assert [(each["name"], each["default"]) for each in listed] == [("parts", True), ("held", False)]
    assert listed[0]["classes"] == list(client.service.models["parts"].classes)
    assert client("GET", "/healthz").json() == client("GET", "/readyz").json() == {"status": "ok"}
    client.detect(b"x")
    client.detect(gray(9))
    text = client("GET", "/metrics").body.decode()
    assert 'retinanet_requests_total{route="/v1/detect",status="200"}' in text
    assert 'retinanet_rejected_total{code="not_an_image"}' in text
    for stage in ("receive", "decode", "queue", "network", "answer"):
        assert f'retinanet_stage_seconds_count{{stage="{stage}"}}' in text
    for name in ("retinanet_queue_requests 0.0", "retinanet_queue_bytes 0.0", "retinanet_batch_images_bucket"):
        assert name in text
    assert "process_resident_memory_bytes" in text


def test_every_answer_has_security_headers(client: Client) -> None:
    for path in ("/", "/healthz", "/nothing", "/v1/models", "/openapi.json"):
        headers = client("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


def test_the_token_protects_the_api_but_not_the_health() -> None:
    with running({"held": HeldDetector()}, token="secret") as client:
        for answer in (
            client.detect(gray(9)),
            client.detect(gray(9), Authorization="Bearer secre"),
            client.detect(gray(9), Authorization="Bearer secret2"),
            client.detect(gray(9), Authorization="Basic secret"),
            client.detect(gray(9), Authorization="Bearer \xff"),
            client("GET", "/v1/models"),
            client("GET", "/metrics"),
            client("GET", "/v1/other"),
        ):
            assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert client.detect(gray(9), Authorization="Bearer secret").status == 200
        assert [client("GET", path).status for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]


def test_the_document_describes_routes_with_examples(client: Client) -> None:
    document: dict[str, Any] = client("GET", "/openapi.json").json()
    assert set(document["paths"]) == {"/v1/detect", "/v1/models", "/healthz", "/readyz", "/metrics"}
    operation = document["paths"]["/v1/detect"]["post"]
    assert set(operation["requestBody"]["content"]) >= {"multipart/form-data", "image/jpeg", "image/png"}
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    answer = client.detect(gray(50), "?model=held").json()
    assert set(example) == set(answer)
    assert set(example["detections"][0]) == set(answer["detections"][0])
    assert {"400", "401", "408", "413", "415", "422", "429", "503"} <= set(operation["responses"])


def test_each_model_has_its_own_threshold_with_auto() -> None:
    models: dict[str, Detector] = {}
    for name, threshold in (("a", 0.25), ("b", 0.75)):
        models[name] = HeldDetector()
        models[name].info = replace(models[name].info, metrics={"threshold": threshold})
    with running(models, ServeSettings(score="auto")) as client:
        listed = client("GET", "/v1/models").json()["models"]
        assert {each["name"]: each["score"] for each in listed} == {"a": 0.25, "b": 0.75}
        assert client.service.options("b", None, None, None).score == 0.75
        assert client.service.options("b", 0.5, None, None).score == 0.5
    with pytest.raises(ConfigError, match="these weights store no threshold"):
        create_app({"held": HeldDetector()}, ServeSettings(score="auto"))
    with pytest.raises(ConfigError, match="--score is 1"):
        ServeSettings(score=1.0)


def test_an_application_needs_models_that_reach_the_score() -> None:
    with pytest.raises(ConfigError, match="no models given"):
        create_app({})
