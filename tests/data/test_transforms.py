from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from retinanet.config import DataConfig
from retinanet.data.image_sizes import batches_of_one_padded_size, scaled_size
from retinanet.data.sample import Sample
from retinanet.data.transforms import (
    horizontal_flip,
    jitter_color,
    normalized_batch,
    random_crop,
    resize,
    resize_image,
    training_view,
)
from retinanet.hardware import one_thread

Rectangle = tuple[int, int, int, int]


def sample_of(width: int, height: int, *rectangles: Rectangle, ignore: tuple[Rectangle, ...] = ()) -> Sample:
    """White rectangles on black, each an object; the ``ignore`` ones are drawn but not labelled."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in (*rectangles, *ignore):
        image[:, y1:y2, x1:x2] = 255
    return Sample(
        image=image,
        boxes=torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(rectangles)),
        ignore=torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
        image_id=7,
        index=3,
        size=(width, height),
    )


def white(image: Tensor) -> list[int]:
    """Bounding box of the pixels that are rather white than black."""
    rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@st.composite
def scenes(draw: st.DrawFn) -> Sample:
    width, height = draw(st.integers(20, 120)), draw(st.integers(20, 120))
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    return sample_of(width, height, (x1, y1, x2, y2))


def copy(s: Sample) -> Sample:
    """For the transforms, which change their sample in place."""
    return replace(s, image=s.image.clone(), boxes=s.boxes.clone(), labels=s.labels.clone(), ignore=s.ignore.clone())


@given(sample=scenes())
def test_flipping_twice_changes_nothing(sample: Sample) -> None:
    twice = horizontal_flip(horizontal_flip(copy(sample)))
    assert torch.equal(twice.image, sample.image)
    assert torch.equal(twice.boxes, sample.boxes)


@given(sample=scenes())
def test_a_flipped_box_covers_the_flipped_pixels(sample: Sample) -> None:
    flipped = horizontal_flip(copy(sample))
    assert flipped.boxes[0].tolist() == white(flipped.image)


def test_flipping_by_hand() -> None:
    flipped = horizontal_flip(sample_of(100, 50, (10, 5, 30, 20), ignore=((60, 0, 100, 50),)))
    assert flipped.boxes.tolist() == [[70, 5, 90, 20]]
    assert flipped.ignore.tolist() == [[0, 0, 40, 50]]
    assert horizontal_flip(sample_of(100, 50)).boxes.shape == (0, 4)


@settings(max_examples=50)
@given(sample=scenes(), shorter=st.integers(32, 200))
def test_a_resized_box_covers_the_resized_pixels(sample: Sample, shorter: int) -> None:
    before = sample.boxes[0].tolist()
    resized = resize(copy(sample), DataConfig(size=shorter, max_size=10_000))
    height, width = resized.image.shape[-2:]
    assert min(height, width) == shorter
    scale = [width / sample.size[0], height / sample.size[1]] * 2
    assert resized.boxes[0].tolist() == pytest.approx([v * s for v, s in zip(before, scale, strict=True)], rel=1e-5)
    found = white(resized.image)
    assert resized.boxes[0].tolist() == pytest.approx(found, abs=1.01)  # half grey pixels at the edges


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (800, 800, (800, 800)),
        (1600, 1600, (800, 800)),
        (500, 1000, (666, 1333)),  # 800 would make the longer side 1600
        (10, 4000, (3, 1333)),
        (1, 4000, (1, 1333)),  # never less than a pixel
    ],
)
def test_resize_rule(height: int, width: int, expected: tuple[int, int]) -> None:
    found = scaled_size(height, width, DataConfig(size=800))
    assert np.abs(np.subtract(found, expected)).max() <= 1 * (height == 500)  # 666.5 may be rounded either way
    sample = resize(sample_of(width, height), DataConfig(size=800))
    assert tuple(sample.image.shape[-2:]) == found


@given(
    height=st.integers(1, 5000), width=st.integers(1, 5000), shorter=st.integers(32, 1000), extra=st.integers(0, 2000)
)
def test_resizing_keeps_to_the_limits(height: int, width: int, shorter: int, extra: int) -> None:
    longest = shorter + extra
    new = scaled_size(height, width, DataConfig(size=shorter, max_size=longest))
    assert min(new) <= shorter
    assert max(new) <= longest
    assert min(new) == shorter or max(new) == pytest.approx(longest, abs=0.51)  # one of the limits is reached
    exact = new[0] / height
    assert abs(new[1] - width * exact) <= 0.5 * (1 + width / height) + 1 or min(new) == 1


@settings(max_examples=60)
@given(sample=scenes(), seed=st.integers(0, 10**6))
def test_a_crop_keeps_boxes_on_their_pixels(sample: Sample, seed: int) -> None:
    x1, y1, x2, y2 = sample.boxes[0].tolist()
    cropped = random_crop(copy(sample), random.Random(seed))
    height, width = cropped.image.shape[-2:]
    assert sample.size[0] / 2 - 1 <= width <= sample.size[0]
    assert sample.size[1] / 2 - 1 <= height <= sample.size[1]
    visible = int((cropped.image[0] > 0).sum())
    share = visible / ((x2 - x1) * (y2 - y1))
    kept, cut = cropped.boxes.tolist(), cropped.ignore.tolist()
    if visible == 0:
        assert (kept, cut) == ([], [])
    elif share >= 0.5:
        assert (kept, cut) == ([[float(v) for v in white(cropped.image)]], [])
    else:
        assert (kept, cut) == ([], [[float(v) for v in white(cropped.image)]])
    assert len(cropped.labels) == len(kept)


def test_crops_of_every_kind_occur() -> None:
    outcomes = {"kept": 0, "ignored": 0, "gone": 0}
    for seed in range(200):
        sample = random_crop(sample_of(100, 100, (0, 0, 30, 30)), random.Random(seed))
        outcomes["kept" if len(sample.boxes) else "ignored" if len(sample.ignore) else "gone"] += 1
    assert all(count > 10 for count in outcomes.values()), outcomes


def test_a_crop_moves_ignore_regions_along() -> None:
    for seed in range(20):
        sample = random_crop(sample_of(100, 60, ignore=((40, 20, 60, 40),)), random.Random(seed))
        region = sample.ignore[0].tolist()
        if region[2] > region[0] and region[3] > region[1]:
            assert region == white(sample.image)


def test_colours_stay_put_at_strength_zero_and_change_otherwise() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jitter_color(image, 0.0, random.Random(0)), image)
    changed = jitter_color(image, 0.5, random.Random(0))
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    assert not torch.equal(changed, image)


VARIED = DataConfig(size=96, crop=0.5, color=0.3, scale=(0.5, 1.5), workers=0)


@settings(max_examples=50)
@given(sample=scenes(), seed=st.integers(0, 10**6))
def test_training_views_keep_boxes_on_their_pixels(sample: Sample, seed: int) -> None:
    view = training_view(copy(sample), DataConfig(size=96, crop=0.5, scale=(0.5, 1.5)), random.Random(seed))
    height, width = view.image.shape[-2:]
    assert len(view.boxes) == len(view.labels)
    for box in view.boxes.tolist():
        assert box == pytest.approx(white(view.image), abs=1.01)
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
    assert (view.image_id, view.index, view.size) == (7, 3, sample.size)


def test_a_view_depends_on_its_generator_only() -> None:
    sample = sample_of(100, 60, (10, 10, 50, 50), (60, 20, 90, 40))
    torch.manual_seed(0)
    first = training_view(copy(sample), VARIED, random.Random(5))
    torch.manual_seed(1)
    random.seed(1)
    second = training_view(copy(sample), VARIED, random.Random(5))
    other = training_view(copy(sample), VARIED, random.Random(6))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.boxes, second.boxes)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_the_papers_views_are_flips_only() -> None:
    sample = sample_of(120, 80, (10, 10, 50, 50))
    plain = resize(copy(sample), DataConfig(size=64))
    mirrored = horizontal_flip(copy(plain))
    flips = 0
    for seed in range(300):
        view = training_view(copy(sample), DataConfig(size=64), random.Random(seed))
        flipped = torch.equal(view.image, mirrored.image)
        assert flipped or torch.equal(view.image, plain.image)
        flips += flipped
    assert 110 < flips < 190


def test_degenerate_boxes_are_dropped() -> None:
    sample = sample_of(100, 50, (0, 0, 100, 50))
    sample.boxes = torch.tensor([[90.0, 10, 130, 20], [10.0, 10, 10.5, 30], [120.0, 0, 130, 10], [0.0, 0, 1, 1]])
    sample.labels = torch.tensor([0, 1, 2, 3])
    sample.ignore = torch.tensor([[-5.0, -5, 5, 5], [110.0, 0, 120, 10]])
    sample.drop_degenerate()
    assert sample.boxes.tolist() == [[90, 10, 100, 20], [0, 0, 1, 1]]
    assert sample.labels.tolist() == [0, 3]
    assert sample.ignore.tolist() == [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    ("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
)
def test_batch_equals_torchvisions_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 70), (33, 20), (64, 1)]
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]
    batch = normalized_batch(images, mean, std)
    assert batch.shape == (3, 3, 64, 96)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        expected = F.normalize(F.to_dtype(image, torch.float32, scale=True), list(mean), list(std))
        torch.testing.assert_close(row[:, :h, :w], expected, rtol=0, atol=1e-6)
        assert row[:, h:].abs().sum() == 0
        assert row[:, :, w:].abs().sum() == 0


@pytest.mark.parametrize(("size", "padded"), [((32, 32), (32, 32)), ((33, 64), (64, 64)), ((1, 1), (32, 32))])
def test_batches_are_padded_to_multiples_of_32(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image = torch.full((3, *size), 200, dtype=torch.uint8)
    assert normalized_batch([image], (0.5,) * 3, (0.5,) * 3).shape == (1, 3, *padded)


# resize="bilinear" against torchvision's own transform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def torchvision_transform(shorter: int, longest: int) -> GeneralizedRCNNTransform:
    transform = GeneralizedRCNNTransform(shorter, longest, list(IMAGENET[0]), list(IMAGENET[1]))
    return transform.eval()


def noise(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@settings(max_examples=200)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    limits=st.sampled_from([(800, 1333), (640, 640), (33, 55), (600, 1000), (1333, 2000)]),
)
@example(height=480, width=640, limits=(800, 1333))
@example(height=427, width=641, limits=(800, 1333))  # 1200.94 becomes 1200
@example(height=500, width=375, limits=(800, 1333))
@example(height=800, width=800, limits=(800, 1333))
def test_bilinear_sides_are_torchvisions(height: int, width: int, limits: tuple[int, int]) -> None:
    factor = min(limits[0] / min(height, width), limits[1] / max(height, width))
    assume(min(height, width) * factor >= 1.01)  # torchvision fails below a pixel
    image = torch.empty(3, height, width, device="meta")
    expected = tuple(torchvision_transform(*limits).resize(image)[0].shape[-2:])
    assert scaled_size(height, width, DataConfig(size=limits[0], max_size=limits[1], resize="bilinear")) == expected


@settings(max_examples=60)
@given(
    height=st.integers(2, 150),
    width=st.integers(2, 150),
    shorter=st.integers(32, 120),
    extra=st.integers(0, 100),
    seed=st.integers(0, 1000),
)
def test_bilinear_pixels_and_boxes_are_torchvisions(
    height: int, width: int, shorter: int, extra: int, seed: int
) -> None:
    assume(min(height, width) * (shorter + extra) / max(height, width) >= 1.01)
    config = DataConfig(size=shorter, max_size=shorter + extra, resize="bilinear")
    image = noise(height, width, seed)
    boxes = torch.tensor([[0.0, 0.0, width, height], [width / 3, height / 7, width / 2, height / 2]])
    sample = replace(sample_of(width, height), image=image, boxes=boxes.clone(), ignore=boxes[1:].clone())
    with one_thread():  # its last bits depend on the number of threads
        images, targets = torchvision_transform(shorter, shorter + extra)([image / 255], [{"boxes": boxes.clone()}])
    resized = resize(sample, config)
    assert tuple(resized.image.shape[-2:]) == images.image_sizes[0]
    assert resized.image.dtype == torch.float32
    batch = normalized_batch([resized.image], *IMAGENET)
    torch.testing.assert_close(batch, images.tensors, rtol=0, atol=1e-5)
    torch.testing.assert_close(resized.boxes, targets[0]["boxes"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(resized.ignore, targets[0]["boxes"][1:], rtol=1e-5, atol=1e-4)


def test_bilinear_pixels_do_not_depend_on_the_number_of_threads() -> None:
    image = torch.randint(0, 256, (3, 480, 640), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(resize_image(image, (320, 427), DataConfig(resize="bilinear")))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_bilinear_batches_are_torchvisions() -> None:
    config = DataConfig(size=64, max_size=100, resize="bilinear")
    images = [noise(90, 120, 0), noise(70, 33, 1), noise(30, 90, 2)]
    resized = [resize(replace(sample_of(i.shape[2], i.shape[1]), image=i), config).image for i in images]
    with one_thread():
        expected, _ = torchvision_transform(64, 100)([image / 255 for image in images])
    batch = normalized_batch(resized, *IMAGENET)
    assert batch.shape == (3, 3, 128, 128)
    torch.testing.assert_close(batch, expected.tensors, rtol=0, atol=1e-5)


def test_antialiasing_and_rounding_are_the_default() -> None:
    assert scaled_size(427, 641, DataConfig(size=800, max_size=1333)) == (800, 1201)  # 1200.94
    assert scaled_size(427, 641, DataConfig(size=800, max_size=1333, resize="bilinear")) == (800, 1200)
    image = noise(90, 120, 0)
    plain = resize(replace(sample_of(120, 90), image=image), DataConfig(size=32)).image
    assert plain.dtype == torch.uint8
    bilinear = resize(replace(sample_of(120, 90), image=image), DataConfig(size=32, resize="bilinear")).image
    assert bilinear.std() > 1.5 * plain.float().std()  # which antialiasing evens out


def test_training_views_may_be_bilinear() -> None:
    config = DataConfig(size=96, crop=0.5, color=0.3, scale=(0.5, 1.5), resize="bilinear")
    for seed in range(10):
        view = training_view(sample_of(120, 80, (10, 10, 60, 70)), config, random.Random(seed), scale=0.5 + seed / 10)
        assert view.image.dtype == torch.float32
        for box in view.boxes.tolist():
            assert box == pytest.approx(white(view.image), abs=1.01)


def test_colours_of_floating_point_pictures_vary_the_same_way() -> None:
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    for seed in range(20):
        expected = jitter_color(image, 0.5, random.Random(seed))
        found = jitter_color(image.float(), 0.5, random.Random(seed))
        assert expected.dtype == torch.uint8
        assert (found - expected.float()).abs().max() <= 4  # uint8 is rounded after each of the three
    assert (expected.float() - image).abs().max() > 10


def test_batches_hold_images_of_one_padded_size_in_order() -> None:
    sizes = [(20, 60), (60, 20), (32, 64), (10, 40), (64, 32), (32, 96)]
    assert batches_of_one_padded_size(sizes, 2) == [[0, 2], [3], [1, 4], [5]]
    assert batches_of_one_padded_size([], 8) == []
