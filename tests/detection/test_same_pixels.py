"""Training, evaluation and detection read the same pixels: upright, and scaled by the range of the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retinanet
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.loader import load_sample
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.evaluation.detections import read_detections
from retinanet.evaluation.predict import predict
from retinanet.read_options import ReadOptions

TURNS = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}


@pytest.fixture(scope="module")
def detector(weights: Path) -> PyTorchDetector:
    return load_pytorch(weights, precision="fp32", device="cpu")


def write_turned(parts: Path, folder: Path, width: int, height: int) -> Path:
    """Store images of ``parts`` on their side, with an EXIF tag, and annotations of the stored pixels."""
    source = json.loads((parts / "instances_val.json").read_text())
    (folder / "images").mkdir(parents=True)
    for image, orientation in zip(source["images"], [6, 8, 3] * len(source["images"]), strict=False):
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(parts / "images" / image["file_name"]) as opened:
            upright = opened.convert("RGB").crop((0, 0, width, height))
        stored = upright.transpose(TURNS[orientation])
        image["file_name"] = f"{Path(image['file_name']).stem}.png"
        stored.save(folder / "images" / image["file_name"], exif=exif)
        image["width"], image["height"] = stored.size
        for each in source["annotations"]:
            if each["image_id"] == image["id"]:
                x, y, w, h = each["bbox"]
                w, h = max(1, min(w, width - x)), max(1, min(h, height - y))
                each["bbox"] = {6: [y, width - x - w, h, w], 8: [height - y - h, x, h, w]}.get(
                    orientation, [width - x - w, height - y - h, w, h]
                )
    (folder / "instances_val.json").write_text(json.dumps(source))
    return folder


@pytest.mark.parametrize(("size", "options"), [((96, 80), ReadOptions()), ((96, 96), ReadOptions(exif="ignore"))])
def test_detections_of_files_are_those_of_the_dataset(
    parts: Path, tmp_path: Path, detector: PyTorchDetector, size: tuple[int, int], options: ReadOptions
) -> None:
    folder = write_turned(parts, tmp_path / "turned", *size)
    data = read_split(folder, "val", options)
    in_dataset = predict(detector, data)
    in_files = detector.detect([np.asarray(Image.open(data.path(i)).transpose(_undo(data.path(i)))) for i in data])
    assert len(in_dataset) == sum(map(len, in_files)) > 0
    boxes = np.concatenate([found.boxes for found in in_files])
    np.testing.assert_allclose(in_dataset.boxes, boxes, atol=1e-3)

    retinanet.detect(detector, [data.path(i) for i in data], tmp_path / "out", score=0.05, formats="coco", draw=False)
    from_file, _ = read_detections(tmp_path / "out" / "detections.json", data.with_classes(detector.classes))
    kept = in_dataset.scores >= 0.05
    np.testing.assert_allclose(np.sort(from_file.boxes, axis=0), np.sort(in_dataset.boxes[kept], axis=0), atol=0.02)


def _undo(path: Path) -> Image.Transpose:
    with Image.open(path) as image:
        return {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[
            image.getexif()[0x0112]
        ]


def test_deep_images_have_the_range_of_the_weights(tmp_path: Path, detector: PyTorchDetector, parts: Path) -> None:
    folder = tmp_path / "deep"
    (folder / "images").mkdir(parents=True)
    content = json.loads((parts / "instances_val.json").read_text())
    for image in content["images"]:
        with Image.open(parts / "images" / image["file_name"]) as opened:
            gray = np.asarray(opened.convert("L")).astype(np.float32) * 2 + 3000
        image["file_name"] = f"{Path(image['file_name']).stem}.tif"
        Image.fromarray(gray).save(folder / "images" / image["file_name"])
    (folder / "instances_val.json").write_text(json.dumps(content))
    data = read_split(folder, "val")

    config = detector.info.config
    ranged = replace(detector.info, config=replace(config, data=replace(config.data, pixel_range=(2900.0, 3600.0))))
    trained = PyTorchDetector(detector.model, ranged, "fp32", "cpu")
    in_dataset = predict(trained, data)
    in_files = [trained(data.path(i), score=0.05) for i in data]
    assert len(in_dataset) > 0
    assert sum(map(len, in_files)) == int((in_dataset.scores >= 0.05).sum())
    sample = load_sample(replace(data, pixel_range=(2900.0, 3600.0)), 0)
    expected = np.rint((np.asarray(Image.open(data.path(0))) - 2900) * 255 / 700)
    assert np.abs(sample.image[0].numpy() - expected).max() <= 1
