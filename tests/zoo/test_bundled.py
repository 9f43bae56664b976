"""The models that come with the package: small, described, and loadable by name without a network."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import matplotlib.cbook
import pytest
import skimage.data
import torch
from safetensors import safe_open
from torchvision.ops import box_iou

import retinanet
from retinanet.errors import CheckpointError
from retinanet.zoo.weights import BUNDLED, bundled_names, find_weights


@pytest.fixture(params=bundled_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_there_is_a_model_of_people() -> None:
    assert "person" in bundled_names()


def test_they_are_small_and_in_float16(name: str) -> None:
    path = BUNDLED / f"{name}.safetensors"
    assert path.stat().st_size < 16e6
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  # no mapping
    assert kinds <= {"F16", "I64"}
    assert "F16" in kinds


def test_each_has_a_card_with_what_a_user_must_know(name: str) -> None:
    card = (BUNDLED / f"{name}.md").read_text(encoding="utf-8")
    for heading in ("Classes", "Data", "License", "Recipe", "Size", "Speed", "Limits", "held out"):
        assert heading in card
    assert re.search(r"seed \d+.*20\d\d-\d\d-\d\d", card)
    measured = [float(number) for number in re.findall(r"\| (0\.\d{3}) \|", card)]
    assert measured
    assert max(measured) > 0.2
    assert re.search(r"!\[.+\]\(|There is no example image", card)
    for link in re.findall(r"\]\(([^)#:]+)\)", card):
        assert (BUNDLED / link).is_file(), link
        assert (BUNDLED / link).resolve().parent == BUNDLED, f"{link} is not installed with the package"


def test_they_load_by_name_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    detector = retinanet.load(name, precision="fp32")
    assert len(detector.classes) >= 1
    assert detector.info.metrics["AP"] > 0.2


def test_the_person_model_finds_people_it_never_saw() -> None:
    detector = retinanet.load("person", precision="fp32")
    photos: Any = skimage.data  # its functions are not annotated
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    people = {  # name: photo, and the person in it, by eye
        "astronaut": (photos.astronaut(), (15, 5, 455, 512)),
        "Grace Hopper": (Path(hopper), (10, 22, 512, 600)),
        "cameraman": (photos.camera(), (0, 62, 332, 512)),
    }
    for who, (photo, box) in people.items():
        found = detector(photo, score=0.3)
        assert len(found) >= 1, who
        assert found.data["class_name"][0] == "person"
        overlap = box_iou(torch.tensor(found.xyxy), torch.tensor([box], dtype=torch.float32)).max()
        assert overlap > 0.5, who


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"bundled model \(.*person.*\)") as caught:
        retinanet.load("persom")
    assert "\n" not in str(caught.value)


def test_a_path_is_never_taken_for_a_name(tmp_path: Path) -> None:
    assert find_weights(tmp_path / "person") == tmp_path / "person"
    assert find_weights("./person.safetensors") == Path("person.safetensors")
    assert find_weights("person") == BUNDLED / "person.safetensors"
