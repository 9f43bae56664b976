"""Is the loss's kernel limited by an H100's memory or by its arithmetic? Counted from its machine code, without a GPU.

    python benchmarks/kernel_instructions.py [--out FILE]

Triton compiles for a GPU that is not there, and NVIDIA's disassembler comes with it. A logit is read and its gradient
written; while the memory does that, the GPU can issue so many instructions. A kernel that needs more cannot reach the
memory's speed; one that needs fewer may. Counted is the way through the kernel of a block without any foreground
anchor, as nearly all are.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retinanet.files import write_json
from retinanet.losses.kernels import triton as kernels

# An H100 (SXM): multiprocessors × instructions a cycle × threads an instruction is for × cycles a second (boost), and
# bytes a second of a copy, as measured on such cards.
INSTRUCTIONS, BYTES = 132 * 4 * 32 * 1.755e9, 3.0e12
TARGET = GPUTarget("cuda", 90, 32)

BYTES_OF = {"fp32": 4, "bf16": 2}
LOSSES = ("focal", "focal_star", "quality_focal", "varifocal")  # in the order of the kernel's kinds
CASES = [
    *((name, dtype, 80, 2.0) for name in LOSSES for dtype in BYTES_OF),
    *(("focal", "bf16", classes, 2.0) for classes in (1, 1203)),
    ("focal", "bf16", 80, 0.0),
]


def main() -> None:
    """Compile, count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernel_instructions.json"))
    out = parser.parse_args().out
    rows = []
    for name, dtype, classes, gamma in CASES:
        count, registers = instructions(name, dtype, classes, gamma)
        at_memory_speed = INSTRUCTIONS * 2 * BYTES_OF[dtype] / BYTES
        rows.append(
            {
                "what": f"{name}, γ = {gamma:g}, {classes} classes, {dtype}",
                "instructions_per_logit": round(count, 1),
                "while_memory_moves_one": round(at_memory_speed, 1),
                "share_of_floor_at_most": round(min(1.0, at_memory_speed / count), 2),
                "registers": registers,
            }
        )
        print(f"{rows[-1]['what']}: {count:.1f} instructions, {at_memory_speed:.1f} to spend", flush=True)
    compile_kernel(
        kernels.scale_kernel,
        {"gradient": "*bf16", "grad_output": "*fp32", "total": "i64"},
        {"block": kernels.BLOCK_BYTES // 2},
    )
    write_json(out, {"gpu": "H100 (SXM), not run: counted", "triton": triton.__version__, "rows": rows}, indent=1)


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> Any:
    """Compile as for the GPU, with all pointers and sizes divisible by 16, as they nearly always are."""
    names = kernel.arg_names
    whole = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if whole[name].startswith(("*", "i64"))}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=whole, constexprs=constexprs, attrs=aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=TARGET, options={"num_warps": kernels.WARPS})


def instructions(loss: str, dtype: str, classes: int, gamma: float) -> tuple[float, int]:
    """Instructions a logit with gradient, outside of the branch for foreground and ignored anchors; and registers."""
    types = {
        **dict.fromkeys(("logits", "gradient"), f"*{dtype}"),
        **dict.fromkeys(("qualities", "partial"), "*fp32"),
        **dict.fromkeys(("weight", "alpha", "gamma", "beta"), "fp32"),
        "labels": "*i64",
        "total": "i64",
    }
    square = gamma == 2 and loss != "focal_star"
    flags = {"kind": LOSSES.index(loss), "square": square, "requires_grad": True, "fast": True}
    block = kernels.BLOCK_BYTES // BYTES_OF[dtype]
    constants = {**flags, "classes": classes, "block": block, "near": kernels.rows_of_a_block(classes, block)}
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compile_kernel(kernels.loss_kernel, types, constants).asm["cubin"])
        code = _tool("nvdisasm", "-c", str(binary))
        registers = int(_tool("cuobjdump", "-res-usage", str(binary)).split("REG:")[1].split()[0])
    return 32 * kernels.WARPS * _outside_the_branch(code) / block, registers


def _tool(name: str, *words: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *words], capture_output=True, text=True, check=True).stdout


def _outside_the_branch(code: str) -> int:
    """Instructions but for those that the longest jump forward leaves out, and for padding."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: dict[int, str] = {}
    for line in code.splitlines():
        if label := re.match(r"\.?(\.L_\w+):", line.strip()):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*)", line):
            if found[1] == "BRA" and (target := re.search(r"\.L_\w+", found[2])):
                jumps[len(names)] = target[0]
            names.append(found[1])
    start, end = max(((at, labels[to]) for at, to in jumps.items()), key=lambda jump: jump[1] - jump[0])
    kept = Counter(names[: start + 1] + names[end:])
    return sum(kept.values()) - kept["NOP"]


if __name__ == "__main__":
    main()
