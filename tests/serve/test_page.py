"""The page in Chromium: images in, boxes on a canvas, filters, downloads, two models, keyboard, accessibility.

Needs ``chromium`` (Debian's package); skipped without it. With ``RETINANET_SCREENSHOTS`` set to a folder, screenshots
are written there.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from retinanet.detection.detector import Detector
from retinanet.detection.draw import COLORS
from retinanet.detection.loading import load
from retinanet.serve.settings import ServeSettings
from serving import Client, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

DROP = """([content, names]) => {
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    const data = new DataTransfer();
    names.forEach((name) => data.items.add(new File([bytes], name, {type: "image/jpeg"})));
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return load(weights, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def client(detector: Detector) -> Iterator[Client]:
    with running({"parts": detector}) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photo(parts: Path) -> Path:
    return parts / "images" / "000000.jpg"


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    yield from opened(browser, client)


def opened(browser: Browser, client: Client, **options: Any) -> Iterator[Page]:
    """The page. The test fails if a script fails or the content policy blocks something."""
    page = browser.new_page(**options)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{client.port}/")
    yield page
    page.close()
    assert [each for each in problems if "status of 4" not in each] == []  # a refused request is logged as an error


def drop(page: Page, path: Path, *names: str) -> None:
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(DROP, [content, list(names) or [path.name]])


def wait_for_result(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text(re.compile(r"\d objects? by"))


def counted(page: Page) -> int:
    return page.locator("#rows tr").count()


def screenshot(page: Page, name: str) -> None:
    if folder := os.environ.get("RETINANET_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def assert_accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def set_score(page: Page, value: float) -> None:
    page.locator("#score").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input'));"
        " slider.dispatchEvent(new Event('change')); }",
        str(value),
    )


def test_a_dropped_image_shows_the_detections_of_the_server(page: Page, client: Client, photo: Path) -> None:
    drop(page, photo)
    wait_for_result(page)
    expected = client.detect(photo.read_bytes()).json()["detections"]
    assert counted(page) == len(expected) > 0
    assert page.locator("#rows tr").first.inner_text().startswith(expected[0]["class_name"])
    canvas = page.locator(".view canvas")
    assert canvas.evaluate("(each) => [each.width, each.height]") == [640, 640]  # a small image is enlarged
    x, y = (round(side * 640 / 96) for side in expected[0]["box"][:2])
    corner = canvas.evaluate(f"(each) => Array.from(each.getContext('2d').getImageData({x}, {y}, 1, 1).data)")
    color = COLORS[expected[0]["class_id"] % len(COLORS)]
    assert corner[:3] == [int(color[each : each + 2], 16) for each in (1, 3, 5)]


def test_the_slider_and_the_classes_filter(page: Page, client: Client, photo: Path) -> None:
    drop(page, photo)
    wait_for_result(page)
    before = counted(page)
    set_score(page, 0.6)
    many = client.detect(photo.read_bytes(), "?score=0.6").json()["detections"]
    assert 0 < counted(page) == len(many) < before
    box = page.locator("#classes input").first
    name = str(box.get_attribute("data-class"))
    of_class = sum(each["class_name"] == name for each in many)
    expect(page.locator("#classes label").first).to_contain_text(f"{name} ({of_class})")
    box.uncheck()
    assert counted(page) == len(many) - of_class
    box = page.locator(f"#classes input[data-class='{name}']")
    expect(box).to_be_focused()
    box.check()
    assert counted(page) == len(many)


def test_downloads_have_what_is_shown(page: Page, client: Client, photo: Path, tmp_path: Path) -> None:
    drop(page, photo)
    wait_for_result(page)
    saved = {}
    for name in ("json", "csv", "image"):
        with page.expect_download() as download:
            page.locator(f"#save-{name}").click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    [result] = json.loads(saved["json"].read_text())
    expected = client.detect(photo.read_bytes()).json()
    assert result == {**expected, "name": photo.name}
    lines = saved["csv"].read_text().splitlines()
    assert lines[0] == "path,x1,y1,x2,y2,class,score,model"
    assert len(lines) == 1 + len(expected["detections"])
    assert saved["image"].name == "000000-detections.png"
    with Image.open(saved["image"]) as image:
        assert image.size == (96, 96)


def test_several_images_have_thumbnails(page: Page, photo: Path) -> None:
    drop(page, photo, "one.jpg", "two.jpg", "three.jpg")
    wait_for_result(page)
    expect(page.locator("#thumbnails button")).to_have_count(3)
    expect(page.locator("#result-title")).to_have_text("one.jpg")
    page.get_by_role("button", name="three.jpg").click()
    expect(page.locator("#result-title")).to_have_text("three.jpg")
    expect(page.locator("#thumbnails button[aria-current=true]")).to_have_text("three.jpg")


def test_a_pasted_image_is_detected(page: Page, photo: Path) -> None:
    content = base64.b64encode(photo.read_bytes()).decode()
    page.evaluate(
        DROP.replace(
            'document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}))',
            'document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}))',
        ),
        [content, ["pasted.jpg"]],
    )
    wait_for_result(page)
    expect(page.locator("#result-title")).to_have_text("pasted.jpg")


def test_two_models_side_by_side(browser: Browser, detector: Detector, photo: Path) -> None:
    with running({"first": detector, "second": detector}) as client:
        for page in opened(browser, client, viewport={"width": 1280, "height": 900}):
            drop(page, photo)
            wait_for_result(page)
            one = counted(page)
            page.get_by_label("Compare with").select_option("second")
            expect(page.locator("#status")).to_contain_text("by second")
            expect(page.locator(".view")).to_have_count(2)
            boxes = [each.bounding_box() for each in page.locator(".view").all()]
            assert boxes[0] is not None
            assert boxes[1] is not None
            assert boxes[0]["y"] == boxes[1]["y"]
            assert counted(page) == 2 * one
            assert_accessible(page)
            screenshot(page, "two models")


def test_the_slider_has_the_threshold_of_the_chosen_model(browser: Browser, detector: Detector, photo: Path) -> None:
    models = {}
    for name, threshold in (("first", 0.62), ("second", 0.31)):
        models[name] = copy.copy(detector)
        models[name].info = replace(detector.info, metrics={"threshold": threshold})
    with running(models, ServeSettings(score="auto")) as client:
        for page in opened(browser, client):
            drop(page, photo)
            wait_for_result(page)
            expect(page.locator("#score-value")).to_have_text("0.62")
            assert counted(page) == len(client.detect(photo.read_bytes(), "?model=first").json()["detections"])
            page.get_by_label("Model", exact=True).select_option("second")
            expect(page.locator("#status")).to_contain_text("by second")
            expect(page.locator("#score-value")).to_have_text("0.31")
            assert counted(page) == len(client.detect(photo.read_bytes(), "?model=second").json()["detections"])
            page.get_by_label("Compare with").select_option("first")  # one slider for both
            expect(page.locator("#score-value")).to_have_text("0.31")


def test_everything_works_by_keyboard(page: Page, photo: Path) -> None:
    with page.expect_file_chooser() as chooser:  # Chromium must know of it before the key opens the chooser
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the result")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#files")).to_be_focused()
        page.keyboard.press("Enter")
    chooser.value.set_files(photo)
    wait_for_result(page)
    page.locator("#score").focus()
    before = page.locator("#score-value").inner_text()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert float(page.locator("#score-value").inner_text()) == pytest.approx(float(before) - 0.05)
    page.keyboard.press("Tab")
    expect(page.locator("#classes input").first).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#classes input").first).not_to_be_checked()
    page.keyboard.press("Space")
    page.locator("#save-image").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#rows button").first).to_be_focused()
    expect(page.locator("#zoom")).to_be_visible()


def test_pointing_at_a_row_shows_a_closeup(page: Page, photo: Path) -> None:
    drop(page, photo)
    wait_for_result(page)
    expect(page.locator("#zoom")).to_be_hidden()
    page.locator("#rows tr").first.hover()
    expect(page.locator("#zoom")).to_be_visible()
    pixels = page.locator("#zoom canvas").evaluate(
        "(each) => each.getContext('2d').getImageData(160, 160, 1, 1).data[3]"
    )
    assert pixels == 255


def test_a_broken_image_is_told_and_the_others_are_shown(page: Page, photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    page.locator("#files").set_input_files([broken, photo])
    expect(page.locator("#status")).to_contain_text("broken.jpg: the image cannot be decoded")
    page.get_by_role("button", name=photo.name).click()
    wait_for_result(page)
    assert counted(page) > 0


def test_names_are_shown_as_text(page: Page, photo: Path) -> None:
    drop(page, photo, "<img src=x onerror=alert(1)>.jpg", "b.jpg")
    wait_for_result(page)
    expect(page.locator("#result-title")).to_have_text("<img src=x onerror=alert(1)>.jpg")
    assert page.locator("img").count() == 0


def test_a_token_is_asked_for(browser: Browser, detector: Detector, photo: Path) -> None:
    with running({"parts": detector}, token="secret") as client:
        for page in opened(browser, client):
            expect(page.locator("#token-form")).to_be_visible()
            page.get_by_label("This server needs a token").fill("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_contain_text("token")
            assert_accessible(page)
            page.get_by_label("This server needs a token").fill("secret")
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_contain_text("Ready")
            drop(page, photo)
            wait_for_result(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_and_fits(
    browser: Browser, client: Client, photo: Path, scheme: str, width: int, parts: Path
) -> None:
    phone = {"has_touch": True, "is_mobile": True} if width < 500 else {}
    options: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, **phone}
    for page in opened(browser, client, **options):
        expect(page.locator("#status")).to_contain_text("Ready")
        assert_accessible(page)
        screenshot(page, f"start {scheme} {width}")
        drop(page, photo, "a rather long name of a photograph.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
        wait_for_result(page)
        page.locator("#rows tr").first.hover()
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("label.camera").is_visible() == bool(phone)
        screenshot(page, f"result {scheme} {width}")


def test_nothing_is_loaded_from_elsewhere(browser: Browser, client: Client) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{client.port}/")
    expect(page.locator("#status")).to_contain_text("Ready")
    page.close()
    assert len(asked) >= 7
    assert all(url.startswith(f"http://127.0.0.1:{client.port}/") for url in asked)
