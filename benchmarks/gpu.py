"""One GPU: its own ceilings, this package beside torchvision on the same tensors, and the slowest kernels.

    python benchmarks/gpu.py [--out FILE] [--device cuda] [--only SECTION ...] [--compiled] [--quick]

All sections take about two minutes, or ten with ``--compiled``, which also measures each side under ``torch.compile``.
``--only`` divides the sections over several calls. Results are written after every row, so an interrupted call keeps
its measurements. The sides run alternately. Times are medians of rounds, and each round ends by waiting for the device.
``--quick`` uses sizes that a CPU can compute. It shows that the script works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from gpu_sides import (
    CLASSES,
    loss_sides,
    our_detector,
    our_step,
    random_batch,
    random_boxes,
    random_logits,
    their_detections,
    their_network,
    their_step,
)
from gpu_timing import Bench, Call, Row
from retinanet.anchors import AnchorSpec, Matches, make_grid, match_batch
from retinanet.bench.peer import torchvision_retinanet
from retinanet.config import DecodeConfig
from retinanet.data.transforms import normalized_batch
from retinanet.files import write_json
from retinanet.hardware import autocast
from retinanet.model import Outputs
from retinanet.postprocess import Candidates, postprocess, select, suppress
from retinanet.recipes import load_recipe


def ceilings(bench: Bench) -> Iterator[Row]:
    """Bandwidth of a copy, with reads and writes counted, and operations per second of a bf16 matrix product."""
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
    """Focal loss and gradient of a batch. The floor is a copy: it reads each logit and writes each gradient."""
    anchors = len(make_grid(AnchorSpec(), (bench.side, bench.side)).boxes)
    for classes in (1, 80, 1203):
        images = bench.sizes(16)[0] if classes < 1000 else bench.sizes(2)[0]  # torchvision's temporaries must fit
        for dtype in (torch.float32, torch.bfloat16):
            logits, labels = random_logits(bench, images, classes, dtype)
            sides = loss_sides(logits, labels, bench.compiled and classes == CLASSES)
            ours, theirs = sides["ours"](), sides["torchvision"]()
            torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=0)
            name = str(dtype).removeprefix("torch.")
            what = f"focal loss, {images} × {anchors:,} × {classes:,}, {name}"
            yield bench.compare(what, sides, queued=("ours", "floor"))


def tuning(bench: Bench) -> Iterator[Row]:
    """The kernel of the loss with other block sizes and numbers of warps; no rows on the CPU."""
    if bench.device.type != "cuda":
        return
    from retinanet.losses.kernels import triton as kernels

    own = kernels.BLOCK_BYTES, kernels.WARPS
    (images,) = bench.sizes(16)
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = random_logits(bench, images, CLASSES, dtype)
        plain = loss_sides(logits, labels)

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
    """Assignment: ours on the CPU, while the GPU would compute the network; torchvision's on the GPU, per image."""
    grid = make_grid(AnchorSpec(), (bench.side, bench.side))
    matcher = torchvision_retinanet(CLASSES).proposal_matcher  # thresholds 0.5 and 0.4
    matcher.allow_low_quality_matches = False
    (images,) = bench.sizes(16)
    for count in (7, 50, 500):
        boxes = [random_boxes(count, bench.side, seed) for seed in range(images)]
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
    """Outputs on the device → 300 detections per image; tens of thousands of scores exceed the threshold."""
    grid = make_grid(AnchorSpec(), (bench.side, bench.side)).to(bench.device)
    peer = torchvision_retinanet(CLASSES)
    for images in bench.sizes(1, 8, 32):
        torch.manual_seed(0)
        logits = [torch.randn(images, n, CLASSES, device=bench.device) - 5.6 for n in grid.level_sizes]
        deltas = [0.2 * torch.randn(images, n, 4, device=bench.device) for n in grid.level_sizes]
        anchors, sizes = [list(grid.split(grid.boxes))] * images, [(bench.side, bench.side)] * images
        outputs, config = Outputs(logits, deltas), DecodeConfig(top_k=1000, max_detections=300)

        @torch.inference_mode()
        def ours(outputs: Outputs = outputs, sizes: Any = sizes, config: DecodeConfig = config) -> Any:
            return postprocess(outputs, grid, sizes, config)

        @torch.inference_mode()
        def theirs(outputs: Outputs = outputs, anchors: Any = anchors, sizes: Any = sizes) -> Any:
            found = {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}
            return peer.postprocess_detections(found, anchors, sizes)

        yield bench.compare(f"post-processing, {images} images", {"ours": ours, "torchvision": theirs}, images)


def training(bench: Bench) -> Iterator[Row]:
    """A step of ResNet-50 in bf16 from uint8 images in the CPU's memory: losses, gradients and optimizer."""
    for images in bench.sizes(16, 32):
        batch = random_batch(images, bench)
        steps = {"ours": our_step(bench, None), "torchvision": their_step(bench)}
        if bench.compiled and images == 16:  # compiling takes a minute for each size
            steps["ours compiled"] = our_step(bench, "default")
            steps["torchvision compiled"] = their_step(bench, compiled=True)
        sides = {side: partial(step, batch) for side, step in steps.items()}
        more = {"host_waits": {side: _host_waits(bench, sides[side]) for side in ("ours", "torchvision")}}
        what = f"training step R-50, {images} images, {bench.side} px, bf16"
        yield bench.compare(what, sides, images, 1 if bench.quick else 4, **more)


def _host_waits(bench: Bench, call: Call) -> list[str] | None:
    """Lines at which a call waits for the GPU; None on the CPU."""
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


def inference(bench: Bench) -> Iterator[Row]:
    """uint8 images in the CPU's memory → detections, in bf16: normalization, network, decoding and NMS."""
    detectors, peers = {"ours": our_detector(bench)}, {"torchvision": their_network(bench)}
    if bench.compiled:
        detectors["ours compiled"] = our_detector(bench, "default")
        detectors["ours graph"] = our_detector(bench, "reduce-overhead")  # CUDA graphs
        peers["torchvision compiled"] = their_network(bench, compiled=True)
    for images in bench.sizes(1, 8, 32):
        pixels = random_batch(images, bench).images
        arrays = [image.permute(1, 2, 0).numpy() for image in pixels]
        sides: dict[str, Call] = {side: partial(each.detect_scaled, arrays) for side, each in detectors.items()}
        sides |= {side: partial(their_detections, each, pixels, bench) for side, each in peers.items()}
        if images not in (1, 32):  # compiling takes half a minute for each size
            sides = {side: call for side, call in sides.items() if side in ("ours", "torchvision")}
        found = {side: _count(sides[side]()) for side in ("ours", "torchvision")}
        what = f"detection R-50, {images} images, {bench.side} px, bf16"
        yield bench.compare(what, sides, images, detections=found)


@torch.inference_mode()
def parts(bench: Bench) -> Iterator[Row]:
    """Parts of a detection, and network and selection as one CUDA graph: what remains if launching takes no time."""
    detector = our_detector(bench)
    for images in bench.sizes(1, 16, 32):
        pixels, sizes = random_batch(images, bench).images, [(bench.side, bench.side)] * images
        grid = make_grid(detector.info.config.anchors, sizes[0]).to(bench.device)
        config = detector.info.config.decode
        normalize = partial(normalized_batch, pixels, detector.model.mean, detector.model.std, bench.device)
        batch = normalize()

        def network(batch: Tensor = batch) -> Outputs:
            with autocast(bench.device, torch.bfloat16):
                return detector.network(batch)  # type: ignore[no-any-return]

        def choose(outputs: Outputs, grid: Any = grid, sizes: Any = sizes, config: DecodeConfig = config) -> Candidates:
            return select(outputs, grid, sizes, config.resolved()).candidates

        outputs = network()
        calls: dict[str, Call] = {"normalize": normalize, "network": network, "select": partial(choose, outputs)}
        calls["suppress"] = partial(suppress, choose(outputs), config)
        if bench.device.type == "cuda":
            calls["graph of network and select"] = _graph(lambda n=network, c=choose: c(n()))
        yield bench.compare(f"parts of a detection, {images} images", calls, queued=list(calls)[:3])


def _graph(call: Call) -> Call:
    """Record ``call`` as a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _count(found: Any) -> int:
    return sum(len(each["boxes"] if isinstance(each, dict) else each.boxes) for each in found)


def profile(bench: Bench) -> Iterator[Row]:
    """The kernels that take the most time of a training step and of a detection."""
    (images,) = bench.sizes(16)
    batch, step = random_batch(images, bench), our_step(bench, None)
    detector = our_detector(bench)
    calls: dict[str, Call] = {
        "training step": lambda: step(batch),
        "detection": lambda: detector.detect_scaled([image.permute(1, 2, 0).numpy() for image in batch.images]),
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
    """Whether the event is a kernel: operations and named regions include the times of their kernels."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def _own_time(event: Any, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ceilings": ceilings,
    "losses": losses,
    "tuning": tuning,
    "assignment": assignment,
    "postprocessing": postprocessing,
    "training": training,
    "inference": inference,
    "parts": parts,
    "profile": profile,
}


def main() -> None:
    """Measure, print and write the sections."""
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
        for row in _rows_of_section(name, bench):
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            _save(arguments.out, bench, rows)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    _save(arguments.out, bench, rows)
    if any("error" in row for row in rows):
        raise SystemExit(1)


def _rows_of_section(name: str, bench: Bench) -> Iterator[Row]:
    """The rows of a section; if it fails, the last one holds the error, so that the other sections are measured."""
    torch.compiler.reset()  # code compiled for one section would make sizes symbolic in the next
    try:
        yield from SECTIONS[name](bench)
    except Exception as error:
        traceback.print_exc()
        yield {"what": name, "error": f"{type(error).__name__}: {error}"[:500]}
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def _save(path: Path, bench: Bench, rows: list[Row]) -> None:
    import torchvision

    gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else "none (the script was only tried)"
    content = {"gpu": gpu, "torch": torch.__version__, "torchvision": torchvision.__version__, "rows": rows}
    write_json(path, content, indent=1)


if __name__ == "__main__":
    main()
