"""Sample → sample: resizing for the network, and random augmentation for training.

Every random choice comes from a generator seeded with (seed, epoch, image or batch), so that neither the number of
worker processes nor a resumed run changes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from retinanet.config import DataConfig
from retinanet.data.image_sizes import padded_size, scaled_size
from retinanet.data.peer_resize import resize_by_opencv, resize_by_pillow
from retinanet.data.sample import Sample
from retinanet.hardware import one_thread, to_device


def training_view(sample: Sample, config: DataConfig, rng: random.Random, scale: float = 1.0) -> Sample:
    """Augment ``sample`` at ``scale`` times the configured size: crop, colors and flip as set in ``config``."""
    if rng.random() < config.crop:
        uncropped = sample.image.shape[-2:]
        sample = random_crop(sample, rng, visible=config.visible)
        if config.tile is not None:  # otherwise a crop is scaled like an image, which enlarges it
            scale *= min(before / after for before, after in zip(uncropped, sample.image.shape[-2:], strict=True))
    sample = resize(sample, config, scale)
    if config.color > 0:  # done after resizing, because most images then have far fewer pixels
        sample.image = jitter_color(sample.image, config.color, rng)
    if rng.random() < config.flip:
        sample = horizontal_flip(sample)
    return sample.drop_degenerate()


def resize(sample: Sample, config: DataConfig, scale: float = 1.0) -> Sample:
    """Scale an image and its boxes to the size :func:`scaled_size` gives."""
    height, width = sample.image.shape[-2:]
    new_height, new_width = scaled_size(height, width, config, scale)
    sample.image = resize_image(sample.image, (new_height, new_width), config)
    factors = torch.tensor([new_width / width, new_height / height] * 2)
    sample.boxes, sample.ignore = sample.boxes * factors, sample.ignore * factors
    return sample


def resize_image(image: Tensor, shape: tuple[int, int], config: DataConfig) -> Tensor:
    """Resize uint8 ``image`` ``(3, h, w)`` to ``shape``; the result is float32 if ``config.resize`` is bilinear."""
    if config.resize == "bilinear":
        # The result is not rounded to integers. torchvision normalizes before it resizes; the results agree only
        # without rounding. With several threads, PyTorch's last bits depend on their number.
        with one_thread():
            return interpolate(image[None].float(), size=shape, mode="bilinear", align_corners=False)[0]
    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    if config.resize != "antialiased":
        by_peer = resize_by_opencv if config.resize == "opencv" else resize_by_pillow
        return torch.from_numpy(by_peer(image.permute(1, 2, 0).contiguous().numpy(), shape)).permute(2, 0, 1)
    result: Tensor = F.resize(image, list(shape), antialias=True)
    return result


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror the image and its boxes left to right."""
    width = sample.image.shape[-1]
    sample.image = F.horizontal_flip(sample.image)
    sample.boxes, sample.ignore = (
        torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], dim=1) for b in (sample.boxes, sample.ignore)
    )
    return sample


def random_crop(sample: Sample, rng: random.Random, smallest: float = 0.5, visible: float = 0.5) -> Sample:
    """Crop a random window whose sides are ``smallest`` to 1 times those of the image; see :func:`cut_ground_truth`."""
    height, width = sample.image.shape[-2:]
    new_height = max(1, round(height * rng.uniform(smallest, 1)))
    new_width = max(1, round(width * rng.uniform(smallest, 1)))
    top, left = rng.randint(0, height - new_height), rng.randint(0, width - new_width)
    sample.image = sample.image[:, top : top + new_height, left : left + new_width]
    return cut_ground_truth(sample, (top, left), visible)


def cut_ground_truth(sample: Sample, corner: tuple[int, int], visible: float) -> Sample:
    """Move the ground truth of a larger image to the window that ``sample.image`` is.

    An object is kept and clipped if at least the fraction ``visible`` of its area is inside the window. The visible
    part of any other object becomes an ignore region, because it is neither a good example nor background.

    Args:
        sample: its image is the window, and its boxes are in pixels of the larger image.
        corner: top and left of the window.
        visible: a fraction, above 0 and at most 1.
    """
    (height, width), (top, left) = sample.image.shape[-2:], corner
    shift, limit = torch.tensor([left, top] * 2), torch.tensor([width, height] * 2)
    clipped = (sample.boxes - shift).clamp(min=0).minimum(limit)
    remaining = _area(clipped) / _area(sample.boxes)
    stays = remaining >= visible
    cut = clipped[~stays & (remaining > 0)]
    sample.boxes, sample.labels = clipped[stays], sample.labels[stays]
    sample.ignore = torch.cat([(sample.ignore - shift).clamp(min=0).minimum(limit), cut])
    return sample


def jitter_color(image: Tensor, strength: float, rng: random.Random) -> Tensor:
    """Change brightness, contrast and saturation of an image in 0–255, each by a factor of up to 1 ± ``strength``."""
    unit = 255 if image.is_floating_point() else 1  # torchvision takes floating-point values from 0 to 1
    image = F.adjust_brightness(image / unit if unit > 1 else image, rng.uniform(1 - strength, 1 + strength))
    image = F.adjust_contrast(image, rng.uniform(1 - strength, 1 + strength))
    image = F.adjust_saturation(image, rng.uniform(1 - strength, 1 + strength))
    return image * unit if unit > 1 else image


def normalized_batch(
    images: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Make one network input from images of different sizes.

    Args:
        images: ``(3, h, w)`` each, 0–255.
        mean: channel means of RGB in [0, 1].
        std: channel standard deviations.
        device: where the batch is made.
        size: ``(H, W)`` to pad to; if unset, the largest sides, rounded up to a multiple of 32.

    Returns:
        float32 ``(B, 3, H, W)``, channels-last. Images are normalized, placed at the top left and padded with zeros.
    """
    device = torch.device(device)
    shape = (len(images), 3, *(size or padded_size([image.shape[-2:] for image in images])))
    batch = torch.empty(shape, device=device, memory_format=torch.channels_last).zero_()
    scale, offset = _scale_and_offset(tuple(mean), tuple(std), device)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = to_device(image, device).float() * scale + offset
    return batch


@lru_cache(maxsize=16)  # creating these tensors on a GPU would make the CPU wait for it
@torch.inference_mode(False)
def _scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and offset, ``(3, 1, 1)`` each, with which v · scale + offset = (v / 255 − mean) / std."""
    scale, offset = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
    return to_device(scale[:, None, None], device), to_device(offset[:, None, None], device)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
