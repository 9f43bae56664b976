"""Non-maximum suppression as one operator that exports to ONNX's ``NonMaxSuppression``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

# Logit of a prediction that is left out. Finite, because runtimes differ in how they compare infinities.
LEFT_OUT = -3e38

# Largest limit that runtimes accept.
_MOST = 2**31 - 1


@torch.library.custom_op("retinanet::suppress_by_class", mutates_args=())
def suppress_by_class(
    boxes: Tensor, logits: Tensor, labels: Tensor, classes: int, threshold: float, limit: int
) -> Tensor:
    """Mark the boxes that greedy suppression keeps in each image and class.

    Args:
        boxes: ``(B, N, 4)`` ``xyxy``.
        logits: ``(B, N)``; ``LEFT_OUT`` marks boxes that do not take part.
        labels: int64 ``(B, N)``.
        classes: number of classes.
        threshold: IoU above which the worse of two boxes of a class is dropped.
        limit: largest number of boxes kept in each class of an image.

    Returns:
        bool ``(B, N)``.
    """
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for image in range(len(boxes)):
        for label in range(classes):
            of_class = torch.nonzero((labels[image] == label) & (logits[image] > LEFT_OUT)).flatten()
            kept = nms(boxes[image, of_class], logits[image, of_class], threshold)[:limit]
            keep[image, of_class[kept]] = True
    return keep


@suppress_by_class.register_fake
def _(boxes: Tensor, logits: Tensor, labels: Tensor, classes: int, threshold: float, limit: int) -> Tensor:
    return torch.empty_like(logits, dtype=torch.bool)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operator's translation for ``torch.onnx.export(custom_translation_table=…)``.

    Raises:
        ImportError: onnxscript is not installed.
    """
    from onnx import TensorProto, helper
    from onnxscript import opset20

    op: Any = opset20  # its stubs are too narrow for constants

    def suppressed(boxes: Any, logits: Any, labels: Any, classes: int, threshold: float, limit: int) -> Any:
        names = op.Constant(value=helper.make_tensor("classes", TensorProto.INT64, (1, classes, 1), range(classes)))
        ones = op.Constant(value_ints=[1])
        of_class = op.Equal(op.Unsqueeze(labels, ones), names)  # (B, K, N)
        least = op.Constant(value_float=LEFT_OUT)
        scores = op.Where(of_class, op.Unsqueeze(logits, ones), least)
        selected = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[min(limit, _MOST)]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[LEFT_OUT]),
        )  # (n, 3): image, class, box
        places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        marked = op.ConstantOfShape(op.Shape(logits))  # float32 zeros
        count = op.Gather(op.Shape(places), op.Constant(value_ints=[0]))
        ones_of_selected = op.ConstantOfShape(count, value=helper.make_tensor("one", TensorProto.FLOAT, (1,), [1.0]))
        marked = op.ScatterND(marked, places, ones_of_selected)
        return op.Greater(marked, op.Constant(value_float=0.0))

    return {torch.ops.retinanet.suppress_by_class.default: suppressed}
