"""Device and precision of the network, and the threads of small operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from retinanet.errors import ConfigError
from retinanet.machine import Precision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto", local: int = 0) -> torch.device:
    """Resolve ``auto`` to a GPU if there is one, else to the CPU; other names are those of PyTorch.

    Args:
        name: name of the device.
        local: number of this process on its machine; ``auto`` and ``cuda`` give each process its own GPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"there are {torch.cuda.device_count()} CUDA devices here")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError) as error:
        raise ConfigError(f"device {name!r} cannot be used ({str(error).splitlines()[0][:120]}); try cpu") from error
    return device


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Resolve ``auto`` to bfloat16 if the hardware multiplies bfloat16 numbers, else to float32."""
    if name != "auto":
        if name not in _DTYPES:
            raise ConfigError(f"precision is {name!r}; choose auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Run the network in ``dtype``; losses and post-processing convert to float32 themselves."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run small operations on the CPU in the calling thread only, also as a decorator.

    Parallel threads wait for each other after every operation. If other processes use the cores, such as those that
    decode images, each wait takes milliseconds, and hundreds of small operations take seconds. PyTorch keeps the number
    of threads for each calling thread, so other threads that already use PyTorch are not affected. A switch takes less
    than a microsecond.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _cpu_multiplies_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy ``tensor`` to ``device`` without waiting for unfinished work on a GPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory would wait for the GPU
    return tensor.to(device, non_blocking=True)
