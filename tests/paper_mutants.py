"""Mutants of the facts in ``docs/paper-to-code.md``: for each row a change of the source that makes its fact wrong.

``run_mutants.py`` runs them. ``test_paper_map.py`` checks that each row with a test has a mutant, and that each mutant
fits the source.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A wrong fact: the beginning of its row, a file below ``src/retinanet``, and a text that is replaced once."""

    row: str
    file: str
    old: str
    new: str


OPTIM, CONFIG, CPU, LOSS = "training/optim.py", "config.py", "losses/kernels/cpu.py", "losses/classification.py"
DECODE = "decode_config.py"
DETECTION, FPN, SUBNETS = "losses/detection.py", "model/fpn.py", "model/subnets.py"
GRID, ASSIGN, CODING = "anchors/grid.py", "anchors/assign.py", "anchors/coding.py"
BOXES, MINING, BACKBONE = "losses/boxes.py", "losses/mining.py", "model/backbone.py"
TRANSFORMS, POST, DATASET = "data/transforms.py", "postprocess.py", "data/dataset.py"
SIZES = "data/image_sizes.py"
_MOVED = "small = -F.logsigmoid(-(z + z.detach()).clamp(-LARGE_LOGIT, LARGE_LOGIT) / 2) / gamma"
_BACKBONE = "timm.create_model(name, **settings)"

MUTANTS = (
    # The problem: class imbalance
    Mutant("A one-stage detector scores", GRID, "(-(-height // stride),", "(height // stride,"),
    Mutant("Nearly all are background", CONFIG, "(32.0, 64.0, 128.0, 256.0, 512.0)", "(256.0,) * 5"),
    Mutant("The loss of one easy negative", CPU, "        s.mul_(p)\n        total", "        total"),
    Mutant("Two-stage detectors filter", MINING, "return left[:batch],", "return left[: 2 * batch],"),
    Mutant("RetinaNet needs one stage", CPU, "if len(left_out):", "if False:"),
    # The focal loss
    Mutant("p = sigmoid(x); p_t", LOSS, "coefficients.foreground * focal(x,", "coefficients.foreground * focal(-x,"),
    Mutant("α_t is α for the true class", LOSS, "else (1 - alpha, alpha)", "else (alpha, 1 - alpha)"),
    Mutant("CE(p_t) = −log p_t", DETECTION, "Focal(None, 0.0)", "Focal(None, 1.0)"),
    Mutant("α-CE = −α_t log p_t", DETECTION, "Focal(config.alpha, 0.0)", "Focal(config.alpha, 1.0)"),
    Mutant("FL(p_t) = ", LOSS, "-torch.exp(gamma * F", "-torch.exp(gamma / 2 * F"),
    Mutant("The sigmoid is part of the loss layer", LOSS, "-x_t.clamp(min=-LARGE_LOGIT)", "-x_t"),
    Mutant(
        "(Not in the paper: mixed precision)",
        CPU,
        "torch.float64 if logits.dtype == torch.float64 else torch.float32\n",
        "logits.dtype\n",
    ),
    Mutant("With γ = 0, FL is α-CE", LOSS, "        return -log_p\n", "        return -2 * log_p\n"),
    Mutant(
        "With γ = 0 and without α", LOSS, "return (1.0, 1.0) if alpha is None", "return (0.5, 0.5) if alpha is None"
    ),
    Mutant("γ = 2 and α = 0.25 work best", CONFIG, "default=2.0, metadata", "default=1.5, metadata"),
    Mutant("α = 0.75 is the best α", CONFIG, '"ce", "alpha_ce", "ohem",', '"ce", "ohem",'),
    Mutant("The loss is the sum over all anchors", CPU, "if len(left_out):", "if False:"),
    Mutant(
        "The loss is divided by the number of anchors",
        DETECTION,
        "count.clamp(min=1) / processes",
        "count + 1 / processes",
    ),
    Mutant("(An image without objects", DETECTION, "count.clamp(min=1) / processes", "count / processes"),
    Mutant("FL*: x_t = ±x", LOSS, "z = gamma * x - beta", "z = gamma * x + beta"),
    Mutant("Good settings of FL*", LOSS, "beta: float = 1.0\n", "beta: float = 0.5\n"),
    Mutant("Derivative of CE", CPU, "target.copy_(p)", "target.copy_(s)"),
    Mutant("Derivative of FL:", CPU, "value=0.5", "value=0.4"),
    Mutant("Derivative of FL*", LOSS, "small = -F.logsigmoid(-z.clamp(-LARGE_LOGIT, LARGE_LOGIT)) / gamma", _MOVED),
    # The network
    Mutant("Backbone: ResNet-50-FPN", BACKBONE, _BACKBONE, 'timm.create_model("resnet18", **settings)'),
    Mutant(
        "ResNeXt-101-32x8d-FPN",
        BACKBONE,
        _BACKBONE,
        _BACKBONE.replace("name", 'name.replace("resnext101_32x8d", "resnet101")'),
    ),
    Mutant("Pre-trained on ImageNet", BACKBONE, "body.load_state_dict(found, strict=False)", "pass"),
    Mutant("Batch norm is frozen", BACKBONE, "                module.eval()\n", "                module.train(mode)\n"),
    Mutant("Levels P3–P7, 256 channels", "model/retinanet.py", "(256 if self", "(192 if self"),
    Mutant("P3–P5 are made of C3–C5", FPN, "merged = lateral + _enlarged(merged, lateral)", "merged = lateral"),
    Mutant(
        "P6 is a 3×3 stride-2",
        FPN,
        'self.p6(features[-1] if self.p6_from == "c5" else pyramid[-1])',
        "self.p6(features[-1] if features[-1].shape[1] != pyramid[-1].shape[1] else pyramid[-1])",
    ),
    Mutant("P7 is a 3×3 stride-2", FPN, "F.relu(p6) if self.relu_before_p7 else p6", "p6"),
    Mutant("No P2, unlike FPN", BACKBONE, '"out_indices": (-3, -2, -1)', '"out_indices": (-4, -3, -2)'),
    Mutant("Classification subnet", SUBNETS, "for _ in range(depth):", "for _ in range(depth - 1):"),
    Mutant("Sigmoids turn the outputs", POST, "logit.sigmoid()", "logit.softmax(dim=1)"),
    Mutant(
        "All levels share the parameters",
        SUBNETS,
        "[self.predict(x) for x in hidden]",
        "[self.predict(x) * (1 + i) for i, x in enumerate(hidden)]",
    ),
    Mutant(
        "Box subnet: the same shape",
        "model/retinanet.py",
        "anchors_per_location, 4, depth,",
        "anchors_per_location, 4, depth + 1,",
    ),
    Mutant(
        "The two subnets share no parameters",
        "model/retinanet.py",
        "        for part in (self.classification, self.regression):\n",
        "        self.regression.tower = self.classification.tower\n"
        "        for part in (self.classification, self.regression):\n",
    ),
    Mutant("New convolutions of the subnets", SUBNETS, "std=0.01)", "std=0.02)"),
    Mutant("New layers of the FPN", FPN, "layer.weight, a=1)", "layer.weight, a=0)"),
    Mutant("The last classification convolution", SUBNETS, "-math.log((1 - prior)", "math.log((1 - prior)"),
    Mutant("Without this start", SUBNETS, "-math.log((1 - prior) / prior)", "0.0"),
    # Anchors and assignment
    Mutant("Anchors have areas of", CONFIG, "128.0, 256.0, 512.0)", "128.0, 256.0, 448.0)"),
    Mutant("Aspect ratios 1:2, 1:1 and 2:1", CONFIG, "(0.5, 1.0, 2.0)", "(0.5, 1.0, 3.0)"),
    Mutant("Scales 2⁰", CONFIG, "(1.0, 2 ** (1 / 3), 2 ** (2 / 3))", "(1.0, 2 ** (1 / 4), 2 ** (2 / 4))"),
    Mutant("A = 9 anchors", CONFIG, "(1.0, 2 ** (1 / 3), 2 ** (2 / 3))", "(1.0, 2 ** (1 / 3))"),
    Mutant(
        "Anchors are real numbers",
        GRID,
        "return torch.cat([center - half, center + half +",
        "half = half.round()\n    return torch.cat([center - half, center + half +",
    ),
    Mutant(
        "Each anchor has a one-hot target", CPU, "* classes + labels[foreground]", "* classes + 0 * labels[foreground]"
    ),
    Mutant(
        "Each anchor has a target of four",
        BOXES,
        "targets = encode(boxes, anchors)",
        "targets = encode(anchors, boxes)",
    ),
    Mutant(
        "IoU ≥ 0.5", ASSIGN, "is_positive = (best >= config.foreground)", "is_positive = (best > config.foreground)"
    ),
    Mutant(
        "IoU < 0.4", ASSIGN, "is_positive & (best >= config.background)", "is_positive & (best > config.background)"
    ),
    Mutant(
        "IoU from 0.4 to 0.5", ASSIGN, "is_ignored = ~is_positive & (best >=", "is_ignored = ~is_positive & (best <"
    ),
    Mutant("Each anchor has at most one object", ASSIGN, "torch.where(overlap == best[inverse], box, no_box)", "box"),
    Mutant(
        "Objects may have no anchor",
        ASSIGN,
        "    if config.force_best:\n        highest",
        "    if True:\n        highest",
    ),
    Mutant("Box targets are R-CNN's", CODING, "torch.log(box_size / anchor_size)", "box_size / anchor_size - 1"),
    Mutant(
        "Box loss: smooth L1", BOXES, "F.smooth_l1_loss(deltas, targets, beta=", "F.huber_loss(deltas, targets, delta="
    ),
    Mutant(
        "The box loss is also divided", DETECTION, "targets.boxes, config) / divisor)", "targets.boxes, config) / 7)"
    ),
    Mutant("The training loss is", DETECTION, "return self.classification + self.box", "return self.classification"),
    # Training and inference
    Mutant("SGD, momentum 0.9", OPTIM, "momentum=config.momentum, fused", "momentum=0.8, fused"),
    Mutant("Initial learning rate 0.01", CONFIG, "lr: float = 0.01", "lr: float = 0.02"),
    Mutant("16 images per step", OPTIM, "config.lr * config.batch / REFERENCE_BATCH", "config.lr"),
    Mutant("The 16 images of a step", "training/step.py", "None if each else normalizer(positives)", "None"),
    Mutant("90,000 iterations", "recipes/paper.yaml", "epochs: 12", "epochs: 10"),
    Mutant("Learning rate ÷ 10", OPTIM, "(done >= 2 / 3)", "(done >= 1 / 2)"),
    Mutant("Horizontal flips are the only", CONFIG, "crop: float = 0.0", "crop: float = 0.5"),
    Mutant("Shorter side 400 to 800", SIZES, "config.size / min(height, width)", "config.size / max(height, width)"),
    Mutant("Longer side at most 1333", CONFIG, "self.size * 1333 / 800", "self.size * 1300 / 800"),
    Mutant("Inference: on each level only", POST, "logit.float() > lowest", "logit.float() >= lowest"),
    Mutant(
        "At most the 1000 highest",
        POST,
        "_above(scores, lowest, config.top_k)",
        "_above(scores, lowest, 2 * config.top_k)",
    ),
    Mutant("The boxes are decoded", CODING, "center + deltas[..., :2] * size", "center - deltas[..., :2] * size"),
    Mutant(
        "All levels are merged",
        DECODE,
        'nms: float = 0.5\n    """IoU above which the box',
        'nms: float = 0.7\n    """IoU above which the box',
    ),
    # The comparisons
    Mutant("Table 1a", DETECTION, "Focal(config.alpha, 0.0)", "Focal(0.5, 0.0)"),
    Mutant("Table 1b", LOSS, "-torch.exp(gamma * F", "-torch.exp(2 * F"),
    Mutant("Table 1c", GRID, "half = torch.stack([width, height], dim", "half = torch.stack([width.T, height.T], dim"),
    Mutant("Table 1d: OHEM, R-101", MINING, "batch: int = 128", "batch: int = 64"),
    Mutant("Table 1d: OHEM with 1:3", MINING, "most = batch // (1 + ratio)", "most = batch // ratio"),
    Mutant("Table 1d: FL, R-101", CONFIG, "require(32 <= self.size", "require(650 <= self.size"),
    Mutant("Table 1e: R-50", CONFIG, "self.size * 1333 / 800", "1333"),
    Mutant("Table 1e: R-101", BACKBONE, _BACKBONE, 'timm.create_model("resnet50", **settings)'),
    Mutant("Table 2: R-101-FPN", SIZES, "min(scale * config.size /", "min(config.size /"),
    Mutant("Table 3: FL*", LOSS, "z = gamma * x - beta", "z = gamma * x + beta"),
    Mutant("Figure 1", "reproduce/measure.py", "for gamma in (0, 0.5, 1, 2, 5)}", "for gamma in (0, 0.5, 1, 2, 4)}"),
    Mutant("Figure 2", "reproduce/measure.py", '"images": len(paths)', '"images": 0'),
    Mutant("Figure 4", "losses/distribution.py", "losses.double().sort().values", "losses.double()"),
    # Where public implementations differ
    Mutant(
        "P6 comes from C5. torchvision",
        FPN,
        'if self.p6_from == "c5" else pyramid[-1])',
        'if self.p6_from == "c5" else pyramid[-2])',
    ),
    Mutant("ReLU before P7. mmdetection", FPN, "F.relu(p6) if self.relu_before_p7 else p6", "F.relu(p6)"),
    Mutant("Real-valued anchors. torchvision", GRID, ".round().double()", ".double()"),
    Mutant(
        "The loss is divided by the foreground of the batch. torchvision",
        DETECTION,
        "torch.stack(values).mean() for",
        "torch.stack(values).sum() for",
    ),
    Mutant(
        "The loss is divided by the foreground of the batch. detectron2",
        DETECTION,
        "_MOVING_KEEP = 100.0, 0.9",
        "_MOVING_KEEP = 100.0, 0.8",
    ),
    Mutant(
        "The loss is divided by the foreground of the batch. mmdetection",
        DETECTION,
        'if self.kind == "batch" and distributed',
        "if distributed",
    ),
    Mutant("Smooth L1. torchvision", BOXES, "F.l1_loss(deltas", "F.mse_loss(deltas"),
    Mutant("No forced match. torchvision", ASSIGN, "forced = anchor[overlap == highest[box]]", "forced = anchor[:0]"),
    Mutant(
        "(Not in the paper.) Crowd boxes",
        ASSIGN,
        "        covered[positive] = False\n        covered",
        "        covered",
    ),
    Mutant(
        "torchvision, detectron2 and keras-retinanet drop",
        DATASET,
        "return self.with_boxes(~self.ignore)",
        "return self",
    ),
    Mutant(
        "odtk trains on crowd boxes", DATASET, "ignore=self.ignore & (self.labels == NO_CLASS)", "ignore=self.ignore"
    ),
    Mutant("Strides of a bottleneck", BACKBONE, 'if structure.stride_in == "1x1":', "if False:"),
    Mutant("The first anchor of a level", GRID, "spec.offset * spec.strides[level]", "0.0"),
    Mutant("Sides of a box are x2", GRID, ' + (spec.layout == "inclusive")', ""),
    Mutant("Images are resized with antialiasing", "data/peer_resize.py", ">> 16) + 2) >> 2", ">> 16)) >> 2"),
    Mutant("Sides of resized images", SIZES, 'case "bilinear" | "pillow_floor":', 'case "bilinear":'),
    Mutant("Inputs are padded to multiples", SIZES, "// multiple) * multiple", "// PAD_TO) * PAD_TO"),
    Mutant("Boxes are clipped to the image before", POST, 'config.clip == "padded"', "False"),
    Mutant("Sides of a box are at most", CODING, 'if limit == "both" else None', "if False else None"),
    # What the paper leaves open
    Mutant("Nothing about a warm-up", OPTIM, "base * (0.001 + 0.999 * seen / warmup)", "base"),
    Mutant(
        "Nothing about biases",
        CONFIG,
        "bias_decay: bool = field(default=True",
        "bias_decay: bool = field(default=False",
    ),
    Mutant("Nothing about clipping", CONFIG, "clip: float | None = None", "clip: float | None = 10.0"),
    Mutant(
        "Nothing about the number of detections",
        DECODE,
        "max_detections: int | None = None",
        "max_detections: int | None = 300",
    ),
    Mutant("Nothing about a limit on decoded", CODING, "math.log(1000 / 16)", "math.log(1000 / 8)"),
    Mutant("Nothing about how images are scaled", TRANSFORMS, "antialias=True", "antialias=False"),
    Mutant("Nothing about padding", SIZES, "PAD_TO = 32", "PAD_TO = 64"),
    Mutant(
        "Nothing about precision",
        CPU,
        "torch.float64 if logits.dtype == torch.float64 else torch.float32\n",
        "logits.dtype\n",
    ),
    Mutant("Nothing about first layers", BACKBONE, "parameters[: last + 1]", "parameters[:last]"),
    Mutant('Smooth L1 "as in Fast R-CNN"', BOXES, "beta=config.beta", "beta=1.0"),
    Mutant("Nothing about the epsilon", "zoo/importers/torchvision.py", "norm_eps = 0.0", "norm_eps = 1e-5"),
    Mutant("The last weights are tested", "training/job.py", '"last.safetensors"', '"newest.safetensors"'),
    Mutant(
        "Nothing about the fraction of an anchor", ASSIGN, "regions[region]) >= fraction", "regions[region]) > fraction"
    ),
)
