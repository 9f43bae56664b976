"""Quantize an OpenVINO model to INT8, with a limit on the loss of AP."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.errors import DataError
from retinanet.exporting.int8_measurement import Measurement, NetworkInputs
from retinanet.runtime.exported import ExportedModel
from retinanet.runtime.openvino import import_without_telemetry

# Largest and smallest number of images that the value ranges are taken from.
_CALIBRATION, _FEWEST = 300, 10

# On fewer images, AP varies by more than the accepted loss.
_ENOUGH = 500

# Layers are ranked on the images that INT8 changes most, this many of them.
_RANKING = 30


def require_images(calibration: Dataset, validation: Dataset) -> None:
    """Check that the images suffice for a quantization.

    Raises:
        DataError: there are too few images, or no object to measure AP with.
    """
    if min(len(calibration), len(validation)) < _FEWEST:
        few = calibration if len(calibration) < len(validation) else validation
        raise DataError(
            f"{few.name}: {len(few)} images are too few for INT8; give at least {_FEWEST}, better {_CALIBRATION}"
        )
    if validation.ignore.all():
        raise DataError(f"{validation.name}: no objects, so the loss of AP through INT8 cannot be measured")


def quantized(
    model: Any,
    description: ExportedModel,
    original: PyTorchDetector,
    calibration: Dataset,
    validation: Dataset,
    max_drop: float,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[Any, list[str]]:
    """Quantize ``model`` to INT8. If AP falls by more than ``max_drop`` points, the layers that cost most stay float.

    Args:
        model: ``openvino.Model`` with the network.
        description: its metadata.
        original: the detector that it comes from; it resizes the images.
        calibration: images that the value ranges of the activations are taken from.
        validation: images that AP is measured on.
        max_drop: largest loss of AP, in points.
        say: called with a line for each measured AP.

    Returns:
        The quantized model, and sentences for the user, which name the layers that are not quantized.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # NNCF imports it; it looks for CUDA
    nncf = import_without_telemetry("nncf")
    nncf.set_log_level(logging.ERROR)
    images = NetworkInputs(description, original)
    chosen = np.random.default_rng(0).permutation(len(calibration))[:_CALIBRATION].tolist()
    inputs = nncf.Dataset(chosen, lambda index: images.inputs(calibration, index))
    measure = Measurement(images, validation)
    before = measure.of_float_model(model)
    say(f"float32: AP {100 * before:.2f}")
    sensitive = [node.get_friendly_name() for node in _sensitive(model)]
    result = nncf.quantize(
        model,
        inputs,
        # Asymmetric ranges fit activations that are not symmetric, as after SiLU.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(chosen),
        ignored_scope=nncf.IgnoredScope(names=sensitive),
        # Weights stay float until the end, because layers that lose too much get theirs back.
        advanced_parameters=nncf.AdvancedQuantizationParameters(backend_params={"compress_weights": False}),
    )
    ap, values = measure.of_file(result)
    say(f"INT8: AP {100 * ap:.2f}")
    if ap < before - max_drop / 100:
        say(f"INT8 costs {100 * (before - ap):.2f} points of AP; measuring what each layer costs")
        aim = max_drop - min(0.02, max_drop / 2)  # the export compares with PyTorch, whose AP can be a little higher
        result = _restored(model, result, before, (ap, values), measure, aim, say)
    restored = _restored_layers(result, model, sensitive)
    import_module("openvino._offline_transformations").compress_quantize_weights_transformation(result)
    total = len(_convolutions(model))
    layers = [name if number == 1 else f"{name} (on {number} levels)" for name, number in restored.items()]
    always = "the first and all depthwise convolutions" if len(sensitive) > 1 else "the first convolution"
    float_layers = ", ".join([always, *layers])
    count = total - len(sensitive) - sum(restored.values())
    notes = [f"{count} of {total} convolutions are INT8; in higher precision: {float_layers}"]
    if len(validation) < _ENOUGH:
        notes.append(
            f"AP was measured on {len(validation)} images; on other images INT8 may cost more, so measure it there too"
        )
    return result, notes


def _restored(
    model: Any,
    quantized: Any,
    before: float,
    measured: tuple[float, list[float]],
    measure: Measurement,
    max_drop: float,
    say: Callable[[str], object],
) -> Any:
    """Return a copy of the ``quantized`` model whose most expensive layers are float again.

    ``nncf.quantize_with_accuracy_control`` would calibrate again, measure AP with float32 between the INT8 layers, and
    compile models for images of all sizes at once, which are several times slower. So its parts are used.
    """
    nncf, images = import_without_telemetry("nncf"), len(measure)
    parts = "nncf.quantization.algorithms.accuracy_control"
    evaluators, restorers = import_module(f"{parts}.evaluator"), import_module(f"{parts}.algorithm")

    class Evaluator(evaluators.Evaluator):  # type: ignore[misc, name-defined]
        """Hands models to the measurement as they are."""

        def prepare_model(self, model: Any) -> Any:
            return SimpleNamespace(model_for_inference=model)

        def is_metric_mode(self) -> bool:
            return True

    def validation(candidate: Any, rows: Iterable[int]) -> tuple[float, list[float]]:
        chosen = list(rows)
        if len(chosen) < images:
            values = measure.of_images(candidate, chosen)
            return sum(values) / len(values), values
        ap, values = measure.of_file(candidate)
        say(f"with more layers in higher precision: AP {100 * ap:.2f}")
        return ap, values

    # Times only decide about the number of threads that compile models.
    initial, current = (
        evaluators.MetricResults(ap, values, preparation_time=0.0, validation_time=1.0)
        for ap, values in ((before, [0.0] * images), measured)
    )
    restorer = restorers.QuantizationAccuracyRestorer(
        ranking_subset_size=min(_RANKING, images - 1), max_drop=max_drop / 100, drop_type=nncf.DropType.ABSOLUTE
    )
    rows = nncf.Dataset(list(range(images)))
    return restorer.apply(model, initial, quantized, current, rows, images, Evaluator(validation))


def _weights(convolution: Any) -> Iterator[Any]:
    """The nodes from a convolution's weights back to their constant."""
    node = convolution.input_value(1).get_node()
    yield node
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
        yield node


def _convolutions(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name().endswith("Convolution")]


def _sensitive(model: Any) -> list[Any]:
    """The convolutions that lose most in INT8 and gain least: the first one and depthwise ones."""
    first, *others = _convolutions(model)
    # The weights of a grouped convolution are (groups, outputs of a group, inputs of a group, height, width).
    grouped = [node for node in others if node.get_type_name() == "GroupConvolution"]
    return [first, *(node for node in grouped if list(node.input_value(1).get_shape())[1:3] == [1, 1])]


def _restored_layers(quantized: Any, model: Any, sensitive: Collection[str]) -> Counter[str]:
    """The layers of the float ``model`` whose weights are not quantized, without the ``sensitive`` convolutions.

    A layer is the name of its weight. One of a subnet has a convolution for each pyramid level.
    """
    # The quantization changes weights and their names, but keeps the names of convolutions.
    names = {node.get_friendly_name(): [*_weights(node)][-1].get_friendly_name() for node in _convolutions(model)}
    return Counter(
        str(names[each.get_friendly_name()]).removeprefix("network.").removesuffix(".weight")
        for each in _convolutions(quantized)
        if each.get_friendly_name() not in sensitive
        and not any(node.get_type_name() == "FakeQuantize" for node in _weights(each))
    )
