"""What one GPU does: its own ceilings, then this package beside torchvision on the same tensors, and where time goes.

    python benchmarks/gpu.py [--out FILE] [--device cuda] [--only SECTION ...] [--compiled] [--quick]

All sections take about two minutes, and ten with ``--compiled``, which also measures what ``torch.compile`` makes of
each side; ``--only`` divides them over several calls. Results are
written after every row, so an interrupted call keeps what it measured. Sides run alternately; times are medians of
rounds, each ended by waiting for the device.
``--quick`` takes sizes that a CPU can do: it shows that the script works, its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from retinanet.anchors import BACKGROUND, AnchorSpec, Matches, make_grid, match_batch
from retinanet.bench.peer import torchvision_retinanet
from retinanet.config import Config, DecodeConfig
from retinanet.data.loader import Batch
from retinanet.detection.detector import Detector
from retinanet.files import write_json
from retinanet.hardware import autocast, resolve_precision
from retinanet.losses import Normalizer, focal_loss
from retinanet.model import Outputs, RetinaNet
from retinanet.model.backbone import load_backbone_weights
from retinanet.postprocess import postprocess
from retinanet.recipes import load_recipe
from retinanet.training.distributed import Processes
from retinanet.training.optim import make_optimizer
from retinanet.training.step import backward
from retinanet.zoo.importers import from_torchvision

CLASSES = 80
ROUNDS = 7
Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """What is measured on.

    Attributes:
        device: the GPU, or the CPU to try the script.
        quick: small sizes.
        compiled: also measure what ``torch.compile`` makes of each side; it takes most of the script's time.
    """

    device: torch.device
    quick: bool
    compiled: bool

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return 128 if self.quick else 800

    def sizes(self, *values: int) -> tuple[int, ...]:
        """Batches to measure: all of them, or the smallest of them, shrunk."""
        return (min(2, values[0]),) if self.quick else values

    def wait(self) -> None:
        """For the device to finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, sides: dict[str, Call], least: int = 1) -> dict[str, float]:
        """Median seconds of a call of each side, in turn; quick ones are called several times between two waits.

        ``least`` times if that matters: steps in a row overlap, the CPU's part of one with the GPU's of the last.
        """
        repeats = {}
        for side, call in sides.items():
            for _ in range(3):  # also compiles what is to be compiled
                call()
            repeats[side] = max(least, min(100, round(0.02 / max(1e-6, self._seconds(call, 1)))))
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(2 if self.quick else ROUNDS):
            for side, call in sides.items():
                found[side].append(self._seconds(call, repeats[side]))
        return {side: statistics.median(values) for side, values in found.items()}

    def device_times(self, sides: dict[str, Call]) -> dict[str, float] | None:
        """Median seconds that the GPU works on a call of each side when the CPU is ahead, as it is in a training.

        The calls are queued behind a pause, so that no launch is waited for. A side that asks the GPU for anything
        cannot be measured this way. None on the CPU.
        """
        if self.device.type != "cuda":
            return None
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(2 if self.quick else ROUNDS):
            for side, call in sides.items():
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # cycles: about 10 ms
                began.record()
                for _ in range(10):
                    call()
                ended.record()
                self.wait()
                found[side].append(began.elapsed_time(ended) / 10 / 1000)
        return {side: statistics.median(values) for side, values in found.items()}

    def _seconds(self, call: Call, repeats: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def memory(self, call: Call) -> float | None:
        """Megabytes that a call takes at its peak beyond what is in use; None on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

    def compare(
        self,
        what: str,
        sides: dict[str, Call],
        images: int = 1,
        least: int = 1,
        queued: Sequence[str] = (),
        **more: Any,
    ) -> Row:
        """A row: milliseconds, images a second, peak memory of each side; it names the sides that fail instead.

        ``queued`` are the sides whose time on the GPU alone is measured, too; none of them may wait for it.
        """
        failed = {}
        for side, call in list(sides.items()):
            try:
                call()
            except Exception as error:  # the others are worth having
                traceback.print_exc()
                failed[side] = f"{type(error).__name__}: {error}"[:500]
                sides = {name: each for name, each in sides.items() if name != side}
        seconds = self.times(sides, least)
        more |= {"error": failed} if failed else {}
        row: Row = {
            "what": what,
            "median_ms": {side: round(1000 * value, 4) for side, value in seconds.items()},
            "peak_memory_mb": {side: self.memory(call) for side, call in sides.items()},
            **more,
        }
        if "torchvision" in seconds:
            row["times_faster"] = {
                side: round(seconds["torchvision"] / value, 2) for side, value in seconds.items() if side != "floor"
            }
        alone = self.device_times({side: call for side, call in sides.items() if side in queued}) if queued else None
        if alone is not None:
            row["device_ms"] = {side: round(1000 * value, 4) for side, value in alone.items()}
        if "floor" in seconds:
            alone = alone or seconds
            row["share_of_floor"] = {side: round(alone["floor"] / value, 3) for side, value in alone.items()}
        if images > 1 or "images" in what:
            row["images_per_second"] = {side: round(images / value, 1) for side, value in seconds.items()}
        return row


def ceilings(bench: Bench) -> Iterator[Row]:
    """Bytes a second of a copy, counted read and written; and the bf16 matrix product's operations a second."""
    numbers, side = (2**20, 256) if bench.quick else (2**30, 8192)
    source = torch.randn(numbers // 4, device=bench.device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.times({"copy": lambda: target.copy_(source), "matmul": lambda: left @ right})
    yield {
        "what": "ceilings",
        "copy_tb_per_second": round(2 * source.numel() * 4 / seconds["copy"] / 1e12, 3),
        "bf16_matmul_tflop_per_second": round(2 * side**3 / seconds["matmul"] / 1e12, 1),
    }


def losses(bench: Bench) -> Iterator[Row]:
    """Focal loss and gradient of a batch's logits. The floor reads each logit and writes each gradient: a copy."""
    anchors = len(make_grid(AnchorSpec(), (bench.side, bench.side)).boxes)
    for classes in (1, 80, 1203):
        images = bench.sizes(16)[0] if classes < 1000 else bench.sizes(2)[0]  # torchvision's temporaries must fit
        for dtype in (torch.float32, torch.bfloat16):
            logits, labels = _logits(bench, images, classes, dtype)
            sides = _loss_sides(logits, labels, bench.compiled and classes == CLASSES)
            ours, theirs = sides["ours"](), sides["torchvision"]()
            torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=0)
            name = str(dtype).removeprefix("torch.")
            what = f"focal loss, {images} × {anchors:,} × {classes:,}, {name}"
            yield bench.compare(what, sides, queued=("ours", "floor"))


def _logits(bench: Bench, images: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits around the prior's, ``(images, A, classes)``, and labels with 40 foreground anchors an image."""
    torch.manual_seed(0)
    anchors = len(make_grid(AnchorSpec(), (bench.side, bench.side)).boxes)
    logits = (torch.randn(images, anchors, classes, device=bench.device) - 4.6).to(dtype)
    labels = torch.full((images, anchors), BACKGROUND)
    labels.view(-1)[torch.randperm(labels.numel())[: 40 * images]] = 0
    return logits, labels.to(bench.device)


def _loss_sides(logits: Tensor, labels: Tensor, compiled: bool = False) -> dict[str, Call]:
    target = torch.empty_like(logits)

    def ours() -> Tensor:
        x = logits.detach().requires_grad_()
        loss = focal_loss(x, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().float()

    def peer(summed: Callable[[Tensor, Tensor], Tensor]) -> Call:
        def call() -> Tensor:
            x = logits.detach().requires_grad_()
            targets = torch.zeros_like(x)
            rows = torch.nonzero(labels >= 0, as_tuple=True)
            targets[(*rows, labels[rows])] = 1.0
            loss = summed(x, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach().float()

        return call

    def focal(x: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = sigmoid_focal_loss(x, targets, reduction="none").sum(dtype=torch.float32)
        return loss

    sides = {"ours": ours, "torchvision": peer(focal), "floor": lambda: target.copy_(logits)}
    if compiled:
        sides["torchvision compiled"] = peer(torch.compile(focal, dynamic=False))
    return sides


def tuning(bench: Bench) -> Iterator[Row]:
    """The loss's kernel with other sizes of blocks and numbers of warps than it has; nothing on the CPU."""
    if bench.device.type != "cuda":
        return
    from retinanet.losses.kernels import triton as kernels

    own = kernels.BLOCK_BYTES, kernels.WARPS
    (images,) = bench.sizes(16)
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = _logits(bench, images, CLASSES, dtype)
        plain = _loss_sides(logits, labels)

        def with_sizes(sizes: tuple[int, int], ours: Call = plain["ours"]) -> Any:
            kernels.BLOCK_BYTES, kernels.WARPS = sizes
            try:
                return ours()
            finally:
                kernels.BLOCK_BYTES, kernels.WARPS = own

        sizes = dict.fromkeys((own, (2048, 2), (2048, 4), (4096, 2), (4096, 8), (8192, 4), (8192, 8)))
        sides: dict[str, Call] = {
            f"{size} bytes in {warps} warps": partial(with_sizes, (size, warps)) for size, warps in sizes
        }
        sides |= {"floor": plain["floor"]}
        what = f"blocks of the focal loss, {str(dtype).removeprefix('torch.')}"
        yield bench.compare(what, sides, queued=tuple(sides))


def assignment(bench: Bench) -> Iterator[Row]:
    """Ours runs on the CPU while the GPU computes the network; torchvision's on the GPU, image by image."""
    grid = make_grid(AnchorSpec(), (bench.side, bench.side))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
    (images,) = bench.sizes(16)
    for count in (7, 50, 500):
        boxes = [_boxes(count, bench.side, seed) for seed in range(images)]
        there, anchors = [b.to(bench.device) for b in boxes], grid.boxes.to(bench.device)
        nothing = [torch.zeros(0, 4)] * images
        config = load_recipe("paper").assign

        def ours(boxes: list[Tensor] = boxes, nothing: list[Tensor] = nothing, config: Any = config) -> Matches:
            return match_batch(grid, boxes, nothing, config)

        def theirs(there: list[Tensor] = there, anchors: Tensor = anchors) -> list[Tensor]:
            return [matcher(box_iou(b, anchors)) for b in there]

        yield bench.compare(
            f"assignment, {images} images × {count} boxes", {"ours": ours, "torchvision": theirs}, images
        )


def postprocessing(bench: Bench) -> Iterator[Row]:
    """Outputs on the device → 300 detections an image, with tens of thousands of scores over the threshold."""
    grid = make_grid(AnchorSpec(), (bench.side, bench.side)).to(bench.device)
    peer = torchvision_retinanet(CLASSES)
    for images in bench.sizes(1, 8, 32):
        torch.manual_seed(0)
        logits = [torch.randn(images, n, CLASSES, device=bench.device) - 5.6 for n in grid.level_sizes]
        deltas = [0.2 * torch.randn(images, n, 4, device=bench.device) for n in grid.level_sizes]
        anchors, sizes = [list(grid.split(grid.boxes))] * images, [(bench.side, bench.side)] * images
        outputs, config = Outputs(logits, deltas), DecodeConfig(max_detections=300)

        @torch.inference_mode()
        def ours(outputs: Outputs = outputs, sizes: Any = sizes, config: DecodeConfig = config) -> Any:
            return postprocess(outputs, grid, sizes, config)

        @torch.inference_mode()
        def theirs(outputs: Outputs = outputs, anchors: Any = anchors, sizes: Any = sizes) -> Any:
            found = {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}
            return peer.postprocess_detections(found, anchors, sizes)

        yield bench.compare(f"post-processing, {images} images", {"ours": ours, "torchvision": theirs}, images)


def training(bench: Bench) -> Iterator[Row]:
    """A step of ResNet-50 in bf16 from uint8 pictures in the CPU's memory: losses, gradients and optimizer included."""
    for images in bench.sizes(16, 32):
        batch = _batch(images, bench)
        steps = {"ours": _our_step(bench, None), "torchvision": _their_step(bench)}
        if bench.compiled and images == 16:  # compiling takes a minute for each size
            steps["ours compiled"] = _our_step(bench, "default")
            steps["torchvision compiled"] = _their_step(bench, compiled=True)
        sides = {side: partial(step, batch) for side, step in steps.items()}
        more = {"host_waits": {side: _waits(bench, sides[side]) for side in ("ours", "torchvision")}}
        what = f"training step R-50, {images} images, {bench.side} px, bf16"
        yield bench.compare(what, sides, images, 1 if bench.quick else 4, **more)


def _waits(bench: Bench, call: Call) -> list[str] | None:
    """Where a step waits for the GPU; None on the CPU."""
    call()
    if bench.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchron" in str(w.message)]


def _our_step(bench: Bench, compiled: str | None) -> Callable[[Batch], None]:
    values = load_recipe("paper").to_dict()
    values["model"] |= {"backbone": "resnet50", "pretrained": False, "freeze_stages": 2}
    config = Config.from_dict(values)
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model, config.anchors, CLASSES)
    # Both sides' backbones start alike: activations and gradients that are 0 would flatter one of them.
    peer = torchvision_retinanet(CLASSES).backbone.body.state_dict()
    load_backbone_weights(model.backbone.body, peer, "torchvision")
    model = model.to(bench.device, memory_format=torch.channels_last).train()
    if compiled:
        model.compile(mode=compiled, dynamic=False)
    optimizer = make_optimizer(model, config.train)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    normalizer, processes = Normalizer(config.loss), Processes()
    dtype = resolve_precision("bf16", bench.device)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(model, batch, config, normalizer, dtype, processes, len(batch.images))
        optimizer.step()

    return step


def _their_step(bench: Bench, compiled: bool = False) -> Callable[[Batch], None]:
    peer = _peer(bench, compiled).train()
    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=bench.device.type == "cuda")

    def step(batch: Batch) -> None:
        images = [image.to(bench.device, non_blocking=True).float() / 255 for image in batch.images]
        targets = [
            {"boxes": boxes.to(bench.device), "labels": labels.to(bench.device)}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        with autocast(bench.device, torch.bfloat16):
            found = peer(images, targets)
        sum(found.values()).backward()
        optimizer.step()

    return step


def inference(bench: Bench) -> Iterator[Row]:
    """uint8 pictures in the CPU's memory → detections, in bf16: normalizing, network, decoding and suppression."""
    detectors, peers = {"ours": _detector(bench)}, {"torchvision": _peer(bench)}
    if bench.compiled:
        detectors["ours compiled"] = _detector(bench, "default")
        detectors["ours graph"] = _detector(bench, "reduce-overhead")  # CUDA graphs
        peers["torchvision compiled"] = _peer(bench, compiled=True)
    for images in bench.sizes(1, 8, 32):
        pictures = _batch(images, bench).images

        sides: dict[str, Call] = {side: partial(each.detect_scaled, pictures) for side, each in detectors.items()}
        sides |= {side: partial(_their_detections, each, pictures, bench) for side, each in peers.items()}
        if images not in (1, 32):  # compiling takes half a minute for each size
            sides = {side: call for side, call in sides.items() if side in ("ours", "torchvision")}
        found = {side: _count(sides[side]()) for side in ("ours", "torchvision")}
        what = f"detection R-50, {images} images, {bench.side} px, bf16"
        yield bench.compare(what, sides, images, detections=found)


@torch.inference_mode()
def _their_detections(peer: Any, pictures: list[Tensor], bench: Bench) -> list[dict[str, Tensor]]:
    there = [picture.to(bench.device, non_blocking=True).float() / 255 for picture in pictures]
    with autocast(bench.device, torch.bfloat16):
        found = peer(there)
    return [{name: value.cpu() for name, value in each.items()} for each in found]


def _count(found: Any) -> int:
    return sum(len(each["boxes"] if isinstance(each, dict) else each.boxes) for each in found)


def profile(bench: Bench) -> Iterator[Row]:
    """The kernels that take the most time of a training step and of a detection."""
    (images,) = bench.sizes(16)
    batch, step = _batch(images, bench), _our_step(bench, None)
    detector = _detector(bench)
    calls: dict[str, Call] = {
        "training step": lambda: step(batch),
        "detection": lambda: detector.detect_scaled(batch.images),
    }
    on_gpu = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    for name, call in calls.items():
        for _ in range(3):
            call()
        bench.wait()
        with torch.profiler.profile(activities=activities) as found:
            call()
            bench.wait()
        events = [e for e in found.key_averages() if not on_gpu or _is_kernel(e)]
        kernels = [(e.key, _own_time(e, on_gpu), e.count) for e in events]
        kernels = sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])
        yield {
            "what": f"profile of a {name}, {images} images",
            "total_ms": round(sum(k[1] for k in kernels) / 1000, 3),
            "top": [{"kernel": k[:120], "ms": round(t / 1000, 3), "calls": n} for k, t, n in kernels[:25]],
        }


def _is_kernel(event: Any) -> bool:
    """Not the operation that launched it, nor a part of the program that somebody named: their times hold its own."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def _own_time(event: Any, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


def _detector(bench: Bench, mode: str | None = None) -> Detector:
    """The same network with the same weights as :func:`_peer`; ``mode`` of ``torch.compile``, if any."""
    detector = from_torchvision(torchvision_retinanet(CLASSES).state_dict(), "bf16", str(bench.device))
    if mode:
        detector.network.compile(mode=mode, dynamic=False)
    return detector


def _peer(bench: Bench, compiled: bool = False) -> Any:
    """torchvision's RetinaNet; the stem, the first stage and batch norm are frozen as with published weights."""
    peer = torchvision_retinanet(CLASSES)
    peer.transform.min_size, peer.transform.max_size = (bench.side,), bench.side
    peer = peer.to(bench.device, memory_format=torch.channels_last)
    if compiled:
        peer.backbone.compile(dynamic=False)
        peer.head.compile(dynamic=False)
    return peer


def _batch(images: int, bench: Bench) -> Batch:
    """Pictures with 12 boxes each, in memory that the GPU can read while the CPU goes on."""
    generator = torch.Generator().manual_seed(images)
    shape = (3, bench.side, bench.side)
    pictures = [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for _ in range(images)]
    if bench.device.type == "cuda":
        pictures = [picture.pin_memory() for picture in pictures]
    boxes = [_boxes(12, bench.side, seed) for seed in range(images)]
    labels = [torch.randint(CLASSES, (12,), generator=generator) for _ in range(images)]
    return Batch(pictures, boxes, labels, [torch.zeros(0, 4)] * images, list(range(images)))


def _boxes(count: int, side: int, seed: int) -> Tensor:
    """Boxes of 10–200 px (in 800), as many small as large."""
    generator = torch.Generator().manual_seed(1000 * count + seed)
    corner = torch.rand(count, 2, generator=generator) * 0.9 * side
    size = side / 80 * torch.exp(3 * torch.rand(count, 2, generator=generator))
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=1)


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ceilings": ceilings,
    "losses": losses,
    "tuning": tuning,
    "assignment": assignment,
    "postprocessing": postprocessing,
    "training": training,
    "inference": inference,
    "profile": profile,
}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    bench = Bench(device, arguments.quick, arguments.compiled and device.type == "cuda")
    if bench.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --quick shows that the script works")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in arguments.only:
        began = time.perf_counter()
        torch._dynamo.reset()  # what was compiled for one section makes sizes symbolic in the next
        try:
            for row in SECTIONS[name](bench):
                rows.append(row)
                print(json.dumps(row, ensure_ascii=False), flush=True)
                _save(arguments.out, bench, rows)
        except Exception as error:  # the other sections are worth having
            traceback.print_exc()
            rows.append({"what": name, "error": f"{type(error).__name__}: {error}"[:500]})
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        _save(arguments.out, bench, rows)
    if any("error" in row for row in rows):
        raise SystemExit(1)


def _save(path: Path, bench: Bench, rows: list[Row]) -> None:
    import torchvision

    gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else "none (the script was only tried)"
    content = {"gpu": gpu, "torch": torch.__version__, "torchvision": torchvision.__version__, "rows": rows}
    write_json(path, content, indent=1)


if __name__ == "__main__":
    main()
