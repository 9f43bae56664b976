"""The cases of ``retinanet bench``. Each function makes its tensors once, so that all sides use the same tensors.

torchvision's side calls the functions of its own RetinaNet: ``torchvision.ops`` and ``torchvision.models.detection``.
Everything runs on the CPU. If both sides compute the same result, a check compares the results before timing. The
results of training steps are not compared: they differ by design (box loss, normalizer, forced matches).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss
from torchvision.transforms.functional import to_tensor

from retinanet.anchors import BACKGROUND, AnchorSpec, assign, make_grid, match_batch
from retinanet.bench.inputs import random_boxes, textured_image
from retinanet.bench.measure import Case
from retinanet.bench.peer import set_input_size, torchvision_retinanet, torchvision_step
from retinanet.config import Config, DataConfig, DecodeConfig
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.image_sizes import scaled_size
from retinanet.data.images import to_rgb
from retinanet.data.loader import Batch, training_loader
from retinanet.data.sampling import TrainingOrder
from retinanet.data.synthetic import write_sample
from retinanet.data.transforms import normalized_batch, resize_image
from retinanet.detection.pipeline import detect_in_files
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.detection.sources import find_images
from retinanet.hardware import autocast, resolve_precision
from retinanet.losses import Normalizer, detection_losses, focal_loss
from retinanet.machine import Precision
from retinanet.model import Outputs, RetinaNet
from retinanet.postprocess import postprocess
from retinanet.recipes import load_recipe
from retinanet.training.optim import make_optimizer
from retinanet.zoo.importers import from_torchvision

_CPU = torch.device("cpu")


def focal(classes: int, anchors: int = 120_087) -> Case:
    """Focal loss and its gradient for the logits of one image. An image of 800×800 pixels has 120,087 anchors."""
    torch.manual_seed(0)
    logits = torch.randn(anchors, classes) - 4.6
    labels = torch.full((anchors,), BACKGROUND)
    foreground = torch.randperm(anchors)[:40]
    labels[foreground] = torch.randint(classes, (len(foreground),))
    out = torch.empty_like(logits)

    def ours() -> Tensor:
        x = logits.detach().requires_grad_()
        loss = focal_loss(x, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def theirs() -> Tensor:
        x = logits.detach().requires_grad_()
        targets = torch.zeros_like(x)
        rows = torch.nonzero(labels >= 0).squeeze(1)
        targets[rows, labels[rows]] = 1.0
        loss: Tensor = sigmoid_focal_loss(x, targets, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    _require_close(ours(), theirs(), 2e-5)
    return Case(
        f"focal loss, {anchors:,} × {classes:,}",
        {"ours": ours, "torchvision": theirs},
        lambda: torch.sigmoid(logits, out=out),
        "one sigmoid pass over the logits",
    )


def assignment(count: int) -> Case:
    """Assignment of ``count`` boxes to the anchors of an 800×800 image."""
    grid = make_grid(AnchorSpec(), (800, 800))
    boxes = random_boxes(count, 800)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: assign(grid, boxes)}
    note = "torchvision's IoU matrix would take 2.4 GB and half a minute" if count > 1000 else ""
    if not note:
        sides["torchvision"] = lambda: matcher(box_iou(boxes, grid.boxes))
        if not torch.equal(assign(grid, boxes), matcher(box_iou(boxes, grid.boxes))):
            raise AssertionError("the assignments differ")
    out = torch.empty(len(grid.boxes), dtype=torch.int64)
    return Case(
        f"assignment, {count:,} box{'es' * (count > 1)}", sides, lambda: out.fill_(-1), "writing the result", note=note
    )


def postprocessing(classes: int, images: int = 8) -> Case:
    """Post-processing of 800×800 images, from tens of thousands of scores over the threshold to 300 detections each."""
    torch.manual_seed(0)
    grid = make_grid(AnchorSpec(), (800, 800))
    mean = -5.6 if classes > 1 else -2.5
    logits = [torch.randn(images, count, classes) + mean for count in grid.level_sizes]
    deltas = [0.2 * torch.randn(images, count, 4) for count in grid.level_sizes]
    peer = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes).eval()
    anchors = [list(grid.split(grid.boxes))] * images
    sizes = [(800, 800)] * images
    config = DecodeConfig(top_k=1000, max_detections=300)

    def ours() -> Any:
        return postprocess(Outputs(logits, deltas), grid, sizes, config)

    @torch.no_grad()
    def theirs() -> Any:
        return peer.postprocess_detections({"cls_logits": logits, "bbox_regression": deltas}, anchors, sizes)

    for own, other in zip(ours(), theirs(), strict=True):
        # torchvision also returns boxes without area; here, worse boxes take their places
        filled = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(dim=1)
        found = own.take(slice(int(filled.sum())))
        _require_close(torch.from_numpy(found.scores), other["scores"][filled], 1e-5)
        _require_close(torch.from_numpy(found.boxes), other["boxes"][filled], 1e-2)
        _require_close(torch.from_numpy(found.labels).float(), other["labels"][filled].float(), 0)
    over = sum(int((level > -2.944).sum()) for level in logits) // images
    return Case(
        f"post-processing, {images} images × {classes} class{'es' * (classes > 1)}",
        {"ours": ours, "torchvision": theirs},
        lambda: [level.amax() for level in logits],
        "reading the logits once",
        images,
        f"{over:,} scores over 0.05 in each 800×800 image",
    )


def detector(side: int = 800) -> Case:
    """Detection in one uint8 image with ResNet-50, with the same weights on both sides."""
    peer = torchvision_retinanet(91)
    fp32, bf16 = (from_torchvision(peer.state_dict(), precision=p, device="cpu") for p in ("fp32", "bf16"))
    image = torch.from_numpy(textured_image(side, side))
    array = image.permute(1, 2, 0).numpy()
    set_input_size(peer, side)
    for found in (fp32, bf16):
        found.info = _with_size(found, side)

    def ours(which: PyTorchDetector) -> Callable[[], Any]:
        return lambda: which.detect([array])

    @torch.inference_mode()
    def theirs() -> Any:
        return peer([torch.from_numpy(array).permute(2, 0, 1).float() / 255])

    batch = normalized_batch([image], fp32.model.mean, fp32.model.std)

    @torch.inference_mode()
    def network() -> Any:
        return fp32.network(batch)

    own, other = ours(fp32)()[0], theirs()[0]
    _require_close(torch.from_numpy(own.scores[:50]), other["scores"][:50], 1e-3)
    _require_close(torch.from_numpy(own.boxes[:50]), other["boxes"][:50], 0.1)
    return Case(
        f"detector R-50, one {side}×{side} image",
        {"ours": ours(fp32), "torchvision": theirs, "ours bf16": ours(bf16)},
        network,
        "our float32 network alone",
    )


def training_step(side: int = 320, images: int = 4) -> Case:
    """A training step of ResNet-50 with the paper's settings, on tensors in memory."""
    torch.manual_seed(0)
    pixels = [torch.from_numpy(textured_image(side, side)) for _ in range(images)]
    boxes = [random_boxes(12, side) for _ in range(images)]
    labels = [torch.randint(80, (len(b),)) for b in boxes]
    nothing = [torch.zeros(0, 4)] * images
    batch = Batch(pixels, boxes, labels, nothing, list(range(images)))

    def side_of(precision: Precision) -> Callable[[], Any]:
        step = _our_step(precision)
        return lambda: step(batch)

    their_step = torchvision_step(side)
    return Case(
        f"training step R-50, {images} × {side} px",
        {"ours": side_of("fp32"), "torchvision": lambda: their_step(batch), "ours bf16": side_of("bf16")},
        items=images,
        note="both sides freeze the stem, the first stage and batch norm, and use SGD",
    )


def _our_step(precision: Precision) -> Callable[[Batch], None]:
    config = training_config()
    model = RetinaNet.from_config(config.model, config.anchors, 80).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, config.train)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    normalizer = Normalizer(config.loss)
    dtype = resolve_precision(precision, _CPU)

    def step(batch: Batch) -> None:
        images = normalized_batch(batch.images, model.mean, model.std)
        grid = make_grid(config.anchors, (images.shape[-2], images.shape[-1]))
        with autocast(_CPU, dtype):
            outputs = model(images)
        matches = match_batch(grid, batch.boxes, batch.ignore, config.assign)
        boxes, labels = torch.cat(batch.boxes), torch.cat(batch.labels)
        losses = detection_losses(outputs, grid, matches, boxes, labels, config.loss, normalizer)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def from_files(images: int = 4, side: int = 320) -> Iterator[Case]:
    """Training and detection with ResNet-50 from image files. The times include decoding, scaling and color changes."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder), images=40, size=480)
        dataset = read_split(Path(folder), "train")
        config = DataConfig(size=side, max_size=side, color=0.2, workers=0)

        def endless() -> Iterator[Batch]:
            while True:
                order = TrainingOrder(dataset, images, epochs=1, seed=0, start=0)
                yield from training_loader(dataset, order, config, seed=0)

        def side_of(step: Callable[[Batch], None]) -> Callable[[], None]:
            batches = endless()
            return lambda: step(next(batches))

        yield Case(
            f"training R-50 from files, {images} × {side} px",
            {
                "ours": side_of(_our_step("fp32")),
                "torchvision": side_of(torchvision_step(side)),
                "ours bf16": side_of(_our_step("bf16")),
            },
            items=images,
            note="both sides read through this package's loader, in the same process",
        )

        peer = torchvision_retinanet(91)
        set_input_size(peer, 480)
        sources = find_images([str(dataset.path(i)) for i in range(images)])

        def ours(precision: Precision) -> Callable[[], Any]:
            found = from_torchvision(peer.state_dict(), precision=precision, device="cpu")
            found.info = _with_size(found, 480)
            return lambda: list(detect_in_files(found, sources, 0.05))

        @torch.inference_mode()
        def theirs() -> Any:
            images = [Image.open(source.address).convert("RGB") for source in sources]
            return [peer([to_tensor(image)]) for image in images]

        yield Case(
            f"detection R-50 from files, {images} × 480 px",
            {"ours": ours("fp32"), "torchvision": theirs, "ours bf16": ours("bf16")},
            items=images,
        )


def photograph(stages: bool = True) -> Iterator[Case]:
    """Detection of people in a 640×480 JPEG with the bundled model, and the time of each of its stages."""
    person = load_pytorch("person", device="cpu")
    stream = io.BytesIO()
    Image.fromarray(textured_image(480, 640).transpose(1, 2, 0)).save(stream, "JPEG", quality=90)
    data = stream.getvalue()

    def read() -> npt.NDArray[np.uint8]:
        return to_rgb(Image.open(io.BytesIO(data)))

    config = person.info.config.data
    yield Case("person, one 640×480 JPEG", {"ours": lambda: person.detect([read()])})
    if not stages:
        return
    image = torch.from_numpy(read()).permute(2, 0, 1)
    shape = scaled_size(480, 640, config)
    scaled = resize_image(image, shape, config)
    batch = normalized_batch([scaled], person.model.mean, person.model.std)
    grid = make_grid(person.info.config.anchors, (batch.shape[-2], batch.shape[-1]))

    @torch.inference_mode()
    def network() -> Outputs:
        with autocast(_CPU, person.dtype):
            outputs: Outputs = person.network(batch)
        return outputs

    outputs = network()
    yield Case("  of it decoding the JPEG", {"ours": read})
    yield Case("  of it scaling", {"ours": lambda: resize_image(image, shape, config)})
    normalize = {"ours": lambda: normalized_batch([scaled], person.model.mean, person.model.std)}
    yield Case("  of it normalizing", normalize)
    yield Case(f"  of it network, {str(person.dtype).removeprefix('torch.')}", {"ours": network})
    yield Case("  of it post-processing", {"ours": lambda: postprocess(outputs, grid, [shape])})


def evaluation(images: int = 5000, detections: int = 100) -> Case:
    """COCO evaluation of 5,000 images with 500,000 detections. The other side is pycocotools."""
    from retinanet.bench.coco import evaluation_sides

    ours, theirs = evaluation_sides(images, detections)
    sides = {"ours": ours} | ({"pycocotools": theirs} if theirs is not None else {})
    return Case(f"COCO evaluation, {images:,} images", sides, note=f"{images * detections:,} detections")


def training_config() -> Config:
    """The recipe ``paper`` with a ResNet-50 whose stem and first stage are frozen, as in torchvision."""
    values = load_recipe("paper").to_dict()
    values["model"] |= {"backbone": "resnet50", "pretrained": False, "freeze_stages": 2}
    return Config.from_dict(values)


def _with_size(found: PyTorchDetector, side: int) -> Any:
    """The detector's ``info`` with another input size."""
    data = replace(found.info.config.data, size=side, max_size=side)
    return replace(found.info, config=replace(found.info.config, data=data))


def _require_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Refuse to time sides whose results differ."""
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        raise AssertionError(f"the sides disagree: {ours} and {theirs}")
