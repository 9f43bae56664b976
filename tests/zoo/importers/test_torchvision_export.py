"""Imported and exported, torchvision's RetinaNet has the same detections in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import retinanet
from retinanet.bench.peer import torchvision_retinanet
from retinanet.detection.detector import Detector
from retinanet.exporting import verification
from retinanet.exporting.agreement import EXACT, compare_detections
from retinanet.exporting.sample_images import sample_images
from retinanet.hardware import one_thread
from retinanet.zoo.conversion import convert_weights
from retinanet.zoo.importers import ImportOptions
from retinanet.zoo.weights import load_weights, save_weights
from torchvision_parity import LONGEST, SIZE, as_array, see_theirs, smooth_image

CLASSES = ("cat", "dog", "horse")

# No detection is left out because of it.
LIMIT = 2000


@pytest.fixture(scope="module")
def theirs() -> Any:
    """``retinanet_resnet50_fpn`` with random weights, for small images."""
    model = torchvision_retinanet(len(CLASSES))
    model.transform.min_size, model.transform.max_size = (SIZE,), LONGEST
    model.detections_per_img = LIMIT
    return model


@pytest.fixture(scope="module")
def exported(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("torchvision")
    torch.save(theirs.state_dict(), folder / "theirs.pth")
    convert_weights(folder / "theirs.pth", folder / "ours.safetensors", ImportOptions(classes=tuple(CLASSES)))
    model, info = load_weights(folder / "ours.safetensors")
    data = replace(info.config.data, size=SIZE, max_size=LONGEST)
    decode = replace(info.config.decode, max_detections=LIMIT)
    info = replace(info, config=replace(info.config, data=data, decode=decode))
    save_weights(folder / "small.safetensors", model.state_dict(), info)
    with pytest.MonkeyPatch.context() as patch:
        few = sample_images()[-2:]
        patch.setattr(verification, "sample_images", lambda: few)
        result = retinanet.export(folder / "small.safetensors", "onnx")
    assert result.description.input_type is np.float32
    return retinanet.load(result.path)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((240, 320), id="landscape"),
        pytest.param((310, 230), id="portrait"),
        pytest.param((60, 70), id="enlarged"),
        pytest.param((130, 700), id="longest-side-decides"),
        pytest.param((257, 331), id="odd"),
    ],
)
def test_the_file_has_the_detections_of_torchvision(theirs: Any, exported: Detector, shape: tuple[int, int]) -> None:
    image = smooth_image(*shape)
    (ours,) = exported.detect([as_array(image)])
    # PyTorch's bilinear resizing depends on the number of threads.
    found = one_thread()(see_theirs)(theirs, image).found
    # torchvision also returns boxes that clipping leaves without area.
    found = found.take(np.flatnonzero((found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)))
    assert len(found) > 200
    assert found.scores.max() > 0.3
    assert found.scores.min() < 0.06
    # The two runtimes add in different orders, and float32 has 7 digits: of pixels of a few hundred, 0.0001 remains,
    # and of scores 0.000001.
    agreement = compare_detections(found, ours, shape, EXACT, floor=theirs.score_thresh)
    assert agreement.differing == 0
    assert agreement.box <= 0.002
    assert agreement.score <= 5e-6
