from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from retinanet.anchors import AnchorSpec, assign, make_grid
from retinanet.config import AssignConfig, DecodeConfig
from retinanet.errors import ConfigError
from retinanet.model import Outputs, RetinaNet
from retinanet.postprocess import postprocess

SQUARE = AnchorSpec(scales=(1.0,), ratios=(1.0,))


def test_square_anchor_of_the_first_location_is_centred_on_the_origin() -> None:
    boxes = make_grid(SQUARE, (16, 24)).boxes
    assert boxes[0].tolist() == [-16, -16, 16, 16]
    assert boxes[1].tolist() == [-8, -16, 24, 16]  # next column, 8 px to the right
    assert boxes[3].tolist() == [-16, -8, 16, 24]  # next row, 8 px down


def test_scales_and_ratios_of_one_location() -> None:
    boxes = make_grid(AnchorSpec(), (8, 8)).boxes[:9].double()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    sides = [32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    expected = [(side, ratio) for side in sides for ratio in (0.5, 1.0, 2.0)]  # scale by scale, ratio by ratio
    torch.testing.assert_close(height / width, torch.tensor([r for _, r in expected]).double(), rtol=1e-6, atol=0)
    areas = torch.tensor([s**2 for s, _ in expected]).double()
    torch.testing.assert_close(width * height, areas, rtol=1e-6, atol=0)
    # a 1:2 box of area 32² is 32·√2 wide and 32/√2 high
    by_hand = [-16 * math.sqrt(2), -16 / math.sqrt(2), 16 * math.sqrt(2), 16 / math.sqrt(2)]
    assert boxes[0].tolist() == pytest.approx(by_hand, rel=1e-6)


def test_areas_of_the_paper() -> None:
    grid = make_grid(AnchorSpec(), (256, 256))
    for level, boxes in enumerate(grid.split(grid.boxes)):
        sides = (boxes[:, 2:] - boxes[:, :2]).double().prod(dim=1).sqrt()
        expected = [2 ** (5 + level) * 2 ** (k / 3) for k in range(3)]
        assert sorted({round(s, 2) for s in sides.tolist()}) == pytest.approx(expected, abs=0.01)
    assert sides.max().item() == pytest.approx(812.75, abs=0.01)  # "32–813 px"


def test_number_of_anchors_at_800_pixels() -> None:
    # 100² + 50² + 25² + 13² + 7² locations of 9
    grid = make_grid(AnchorSpec(), (800, 800))
    assert grid.boxes.shape == (120_087, 4)
    assert grid.boxes.dtype == torch.float32
    assert grid.level_sizes == [90_000, 22_500, 5_625, 1_521, 441]


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 64), (257, 129), (799, 1333)])
def test_level_shapes_round_up(size: tuple[int, int]) -> None:
    grid = make_grid(AnchorSpec(), size)
    assert grid.shapes == tuple((math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in (8, 16, 32, 64, 128))
    assert sum(grid.level_sizes) == len(grid.boxes)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    level=st.integers(0, 4),
    data=st.data(),
)
def test_order_is_level_row_column_scale_ratio(size: tuple[int, int], level: int, data: st.DataObject) -> None:
    spec = AnchorSpec(scales=(1.0, 1.5), ratios=(0.5, 1.0, 3.0))
    grid = make_grid(spec, size)
    stride = 8 * 2**level
    rows, columns = grid.shapes[level]
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    scale, ratio = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))
    before = sum(r * c * 6 for r, c in grid.shapes[:level])
    box = grid.boxes[before + ((row * columns + column) * 2 + scale) * 3 + ratio].tolist()
    side = 32 * 2**level * (1.0, 1.5)[scale]
    height = side * math.sqrt((0.5, 1.0, 3.0)[ratio])
    width = side**2 / height
    x, y = column * stride, row * stride
    assert box == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("size", [(256, 384), (128, 128)])
def test_agrees_with_torchvision_up_to_its_rounding(size: tuple[int, int]) -> None:
    sides = tuple(tuple(s * 2 ** (k / 3) for k in range(3)) for s in (32.0, 64.0, 128.0, 256.0, 512.0))
    generator = AnchorGenerator(sizes=sides, aspect_ratios=((0.5, 1.0, 2.0),) * 5)
    images = torch.zeros(1, 3, *size)
    features = [torch.zeros(1, 1, size[0] // s, size[1] // s) for s in (8, 16, 32, 64, 128)]
    theirs = generator(ImageList(images, [size]), features)[0]
    theirs = theirs.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)  # theirs: ratio by ratio, scale by scale
    ours = make_grid(AnchorSpec(), size).boxes
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 0.5 + 1e-3  # they round corners to whole pixels
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (ours, theirs)]
    torch.testing.assert_close(*centres, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def small_model() -> RetinaNet:
    return RetinaNet("resnet18", num_classes=2, channels=32, subnet_depth=0).eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (65, 31), (100, 257), (1, 40)])
def test_as_many_anchors_as_the_network_predicts(small_model: RetinaNet, size: tuple[int, int]) -> None:
    with torch.no_grad():
        features = small_model.fpn(small_model.backbone(torch.zeros(1, 3, *size)))
        outputs = small_model(torch.zeros(1, 3, *size))
    grid = make_grid(AnchorSpec(), size)
    assert grid.shapes == tuple(tuple(f.shape[-2:]) for f in features)
    assert grid.level_sizes == [level.shape[1] for level in outputs.logits]


def test_a_prediction_lands_where_its_location_is(small_model: RetinaNet) -> None:
    """Order of the network's outputs (row, column, anchor) is the order of the grid's boxes."""
    grid = make_grid(AnchorSpec(), (64, 96))
    feature = torch.zeros(1, 32, 8, 12)
    feature[0, :, 5, 7] = 1  # a 1×1 predictor answers at row 5, column 7 only
    subnet = small_model.classification
    before = {name: value.clone() for name, value in subnet.state_dict().items()}
    try:
        with torch.no_grad():
            subnet.predict.weight.zero_()
            subnet.predict.weight[4 * 2 + 1, :, 1, 1] = 1.0  # anchor 4 (scale 1, ratio 1), class 1
            assert subnet.predict.bias is not None
            subnet.predict.bias.fill_(-20.0)
            logits = subnet([feature])[0]
    finally:
        subnet.load_state_dict(before)
    levels = [logits, *(torch.full((1, n, 2), -20.0) for n in grid.level_sizes[1:])]
    deltas = [torch.zeros(1, n, 4) for n in grid.level_sizes]
    (found,) = postprocess(Outputs(levels, deltas), grid, [(64, 96)], DecodeConfig(score=0.5))
    assert found.labels.tolist() == [1]
    half = 16 * 2 ** (1 / 3)
    by_hand = [7 * 8 - half, 5 * 8 - half, 7 * 8 + half, 5 * 8 + half]
    assert found.boxes[0].tolist() == pytest.approx(by_hand, abs=1e-3)


def test_split_cuts_along_levels() -> None:
    grid = make_grid(AnchorSpec(), (40, 72))
    parts = grid.split(torch.arange(len(grid.boxes)).expand(2, -1), dim=1)
    assert [part.shape[1] for part in parts] == grid.level_sizes
    assert torch.cat(parts, dim=1)[1].tolist() == list(range(len(grid.boxes)))


def test_same_size_gives_the_same_grid_object() -> None:
    assert make_grid(AnchorSpec(), (64, 64)) is make_grid(AnchorSpec(), (64, 64))
    assert make_grid(AnchorSpec(), (64, 64)) is not make_grid(AnchorSpec(), (64, 96))


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"sizes": (32.0, 64.0)}, "anchors.sizes"),
        ({"scales": ()}, "anchors.scales"),
        ({"ratios": (1.0, -1.0)}, "anchors.ratios"),
        ({"strides": (8, 16, 32, 64, 0)}, "anchors.strides"),
    ],
)
def test_unusable_specs_are_refused(values: dict[str, tuple[float, ...]], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        AnchorSpec(**values)  # type: ignore[arg-type]


TORCHVISION = AnchorSpec(layout="torchvision")


def torchvision_anchors(size: tuple[int, int], spec: AnchorSpec) -> torch.Tensor:
    """What torchvision's RetinaNet makes of a padded image; its own sizes are those of the defaults."""
    sides = tuple(tuple(int(size * scale) for scale in spec.scales) for size in spec.sizes)
    generator = AnchorGenerator(sizes=sides, aspect_ratios=(spec.ratios,) * len(sides))
    features = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in spec.strides]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, *size), [size]), features)
    assert isinstance(anchors, torch.Tensor)
    return anchors


def test_the_sizes_below_are_those_of_torchvisions_retinanet() -> None:
    with torch.device("meta"):
        generator = retinanet_resnet50_fpn(weights=None, weights_backbone=None).anchor_generator
    expected = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    assert generator.sizes == expected
    assert tuple(tuple(int(size * scale) for scale in TORCHVISION.scales) for size in TORCHVISION.sizes) == expected
    assert generator.aspect_ratios == (TORCHVISION.ratios,) * 5


@pytest.mark.parametrize("size", [(800, 1088), (320, 448), (224, 224), (1344, 800), (1344, 480), (32, 32), (96, 1344)])
def test_torchvision_layout_equals_torchvision(size: tuple[int, int]) -> None:
    ours = make_grid(TORCHVISION, size)
    assert torch.equal(ours.boxes, torchvision_anchors(size, TORCHVISION))
    assert ours.boxes.dtype == torch.float32
    assert ours.shapes == make_grid(AnchorSpec(), size).shapes


@settings(max_examples=40)
@given(rows=st.integers(1, 42), columns=st.integers(1, 42))
def test_torchvision_layout_equals_torchvision_on_any_padded_size(rows: int, columns: int) -> None:
    size = (32 * rows, 32 * columns)
    assert torch.equal(make_grid(TORCHVISION, size).boxes, torchvision_anchors(size, TORCHVISION))


@settings(max_examples=60)
@given(
    sizes=st.lists(st.floats(4, 900), min_size=1, max_size=3),
    scales=st.lists(st.floats(0.3, 3), min_size=1, max_size=4),
    ratios=st.lists(st.floats(0.2, 5), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_torchvision_layout_with_other_anchors(
    sizes: list[float], scales: list[float], ratios: list[float], size: tuple[int, int]
) -> None:
    spec = AnchorSpec(tuple(sizes), tuple(scales), tuple(ratios), (8, 16, 32)[: len(sizes)], "torchvision")
    assert torch.equal(make_grid(spec, size).boxes, torchvision_anchors(size, spec))


def test_torchvision_layout_has_whole_pixels_and_its_own_steps() -> None:
    grid = make_grid(TORCHVISION, (800, 1088))
    assert torch.equal(grid.boxes, grid.boxes.round())
    assert grid.strides == ((8, 8), (16, 16), (32, 32), (61, 64), (114, 120))  # 800 / 13, 800 / 7, 1088 / 9
    assert grid.boxes[:9, 2].tolist() == [23, 28, 35, 16, 20, 25, 11, 14, 18]  # ratio by ratio, scale by scale


def test_papers_layout_is_real_valued() -> None:
    ours, theirs = make_grid(AnchorSpec(), (800, 1088)), make_grid(TORCHVISION, (800, 1088))
    assert AnchorSpec().layout == "paper"
    assert (ours.boxes != ours.boxes.round()).any(dim=1).float().mean() > 0.8
    assert ours.strides == tuple((s, s) for s in (8, 16, 32, 64, 128))
    assert ours.boxes.shape == theirs.boxes.shape
    # the same anchors up to rounding and order, except where torchvision's coarse steps drift away
    first = ours.split(ours.boxes)[0].view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)
    assert 0.3 < (first - theirs.split(theirs.boxes)[0]).abs().max() < 1.5
    last = ours.split(ours.boxes)[-1].view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)
    assert (last - theirs.split(theirs.boxes)[-1]).abs().max() > 6 * 14 - 2


def test_layouts_do_not_share_a_cached_grid() -> None:
    assert make_grid(AnchorSpec(), (64, 64)) is not make_grid(TORCHVISION, (64, 64))
    assert make_grid(TORCHVISION, (64, 64)) is make_grid(AnchorSpec(layout="torchvision"), (64, 64))


def test_a_grid_first_made_in_inference_serves_training() -> None:
    spec = AnchorSpec(sizes=(17.0,), scales=(1.0,), ratios=(1.0,), strides=(8,))
    with torch.inference_mode():
        grid = make_grid(spec, (40, 40))
    weight = torch.ones(4, requires_grad=True)
    (grid.boxes * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


def test_inclusive_anchors_in_the_middle_of_a_cell_by_hand() -> None:
    """As odtk computes them: corners around the middle of a cell, and the last pixel counts."""
    spec = AnchorSpec((32.0,), (1.0,), (1.0,), (8,), "inclusive", 0.5)
    boxes = make_grid(spec, (16, 16)).boxes
    assert boxes[0].tolist() == [4 - 16, 4 - 16, 4 + 16 + 1, 4 + 16 + 1]
    assert boxes[3].tolist() == [12 - 16, 12 - 16, 12 + 17, 12 + 17]


@pytest.mark.parametrize("method", ["iou", "atss"])
def test_anchors_with_an_offset_are_matched_as_the_same_boxes_moved(method: str) -> None:
    """Moving anchors and boxes by the same distance changes no match, away from the border."""
    sizes, strides = (16.0, 32.0), (8, 16)
    config = AssignConfig(method=method)  # type: ignore[arg-type]
    plain = AnchorSpec(sizes, (1.0,), (0.5, 1.0), strides)
    moved = AnchorSpec(sizes[:1], (1.0,), (0.5, 1.0), strides[:1], offset=0.5)
    one_level = AnchorSpec(sizes[:1], (1.0,), (0.5, 1.0), strides[:1])
    boxes = torch.tensor([[40.0, 40, 56, 57], [70, 33, 90, 60], [64, 64, 80, 80]])
    before = assign(make_grid(one_level, (128, 128)), boxes, config=config)
    after = assign(make_grid(moved, (128, 128)), boxes + 4, config=config)
    assert (before >= 0).any()
    assert torch.equal(before, after)
    assert len(make_grid(plain, (128, 128)).boxes) > len(before)
