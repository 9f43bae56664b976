"""Small exported files: a network of a few convolutions, in the formats that ``retinanet export`` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retinanet.config import Config
from retinanet.data.synthetic import CLASSES
from retinanet.model import Outputs
from retinanet.model_info import ModelInfo
from retinanet.runtime.exported import METADATA_KEY, ExportedModel

INFO = ModelInfo(
    CLASSES, Config.from_dict({"data": {"size": 96, "workers": 0}}), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
LEVELS = 5
NAMES = [f"{kind}_{level}" for kind in ("logits", "deltas") for level in range(LEVELS)]


class TinyNetwork(nn.Module):
    """The contract of an exported network: images in 0–255 and their sizes → logits and deltas of each level."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        per_location = INFO.config.anchors.per_location
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, stride=2, padding=1) for i in range(7))
            self.heads = nn.ModuleList(nn.Conv2d(8, per_location * (len(CLASSES) + 4), 1) for _ in range(LEVELS))
            for layer in [*self.down, *self.heads]:
                nn.init.normal_(layer.weight, std=0.5)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        rows = torch.arange(images.shape[2])[None, :, None] < sizes[:, 0, None, None]
        columns = torch.arange(images.shape[3])[None, None, :] < sizes[:, 1, None, None]
        mean, std = (torch.tensor(values)[:, None, None] for values in (INFO.mean, INFO.std))
        x = torch.where((rows & columns)[:, None], (images.float() / 255 - mean) / std, 0.0)
        logits, deltas = [], []
        for depth, layer in enumerate(self.down):
            x = torch.tanh(layer(x))
            if depth >= 2:
                head = self.heads[depth - 2](x).permute(0, 2, 3, 1)  # (B, rows, columns, A·(K + 4))
                head = head.reshape(head.shape[0], -1, len(CLASSES) + 4)
                logits.append(3 * head[..., :-4] - 4)
                deltas.append(0.3 * head[..., -4:])
        return (*logits, *deltas)


def outputs_of(images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Outputs:
    """The outputs of the network in PyTorch."""
    with torch.inference_mode():
        found = TinyNetwork()(torch.from_numpy(images), torch.from_numpy(sizes))
    return Outputs(list(found[:LEVELS]), list(found[LEVELS:]))


def write_files(folder: Path, model: ExportedModel | None = None) -> None:
    """Write ``model.onnx``, ``model.xml`` with ``model.bin``, and ``model.pt2``."""
    model = model or ExportedModel(INFO)
    height, width = model.size or (224, 288)
    dtype = torch.float32 if model.input_type is np.float32 else torch.uint8
    images, sizes = (
        torch.zeros(model.batch or 2, 3, height, width, dtype=dtype),
        torch.tensor([[50, 60]] * (model.batch or 2)),
    )
    batch = {} if model.batch else {0: torch.export.Dim("batch")}
    sides = {} if model.size else {i: 32 * torch.export.Dim(f"side_{i}", max=1000) for i in (2, 3)}
    program = torch.export.export(
        TinyNetwork().eval(), (images, sizes), dynamic_shapes=({**batch, **sides}, batch), strict=False
    )
    torch.export.save(program, folder / "model.pt2", extra_files={f"{METADATA_KEY}.json": model.to_json()})
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["images", "sizes"], output_names=NAMES, verbose=False
    )
    assert converted is not None
    proto = converted.model_proto
    write_onnx(folder / "model.onnx", proto, model.to_json())
    write_openvino(folder / "model.xml", folder / "model.onnx", model.to_json())


def write_onnx(path: Path, proto: object, metadata: str | None) -> None:
    """Write an ``onnx.ModelProto`` with ``metadata``."""
    del proto.metadata_props[:]  # type: ignore[attr-defined]
    if metadata is not None:
        entry = proto.metadata_props.add()  # type: ignore[attr-defined]
        entry.key, entry.value = METADATA_KEY, metadata
    path.write_bytes(proto.SerializeToString())  # type: ignore[attr-defined]


def write_openvino(path: Path, onnx_file: Path, metadata: str | None) -> None:
    """Convert an ONNX file."""
    from retinanet.runtime.openvino import import_without_telemetry

    openvino = import_without_telemetry("openvino")
    network = openvino.Core().read_model(onnx_file)
    if metadata is not None:
        network.set_rt_info(metadata, METADATA_KEY)
    openvino.save_model(network, path, compress_to_fp16=False)


def with_decode(info: ModelInfo, **values: float) -> ModelInfo:
    """Change settings of the post-processing."""
    return replace(info, config=replace(info.config, decode=replace(info.config.decode, **values)))  # type: ignore[arg-type]
