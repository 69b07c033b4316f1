"""The recipe of random changes: its probabilities and ranges, its order, and that only names decide what is drawn."""

import math
from collections import Counter

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from helpers import runtime
from helpers.prototypes import augmentation
from helpers.prototypes.augmentation import Draws, augment, draw
from helpers.prototypes.pipelines import pipelines

N, HEIGHT, WIDTH = 4000, 60, 80
CUB, CARS, CIFAR = (pipelines()[name] for name in ("CUB200224", "CARS224", "CIFAR10"))
BILINEAR = InterpolationMode.BILINEAR


@pytest.fixture(scope="module")
def many():
    return [draw(HEIGHT, WIDTH, CUB, 0, 1, 0, i) for i in range(N)]


def noise(height=HEIGHT, width=WIDTH, seed=0):
    shape = (3, height, width)
    return torch.randint(0, 256, shape, generator=runtime.generator(seed, "image"), dtype=torch.uint8)


def near(found, expected, levels=1):
    return int((found.int() - expected.int()).abs().max()) <= levels


@pytest.mark.parametrize(
    "field, probability",
    [("sigma", 0.1), ("sharpen", 0.1), ("angle", 1 / 3), ("corners", 1 / 3), ("shear", 1 / 3), ("flip", 0.5)],
)
def test_each_change_is_made_with_its_probability(many, field, probability):
    share = sum(getattr(one, field) not in (None, False) for one in many) / N
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / N)


def test_changes_are_independent_of_each_other(many):
    made = torch.tensor([[d.sigma is not None, d.sharpen, d.angle is not None, d.corners is not None,
                          d.shear is not None, d.flip] for d in many]).double()  # fmt: skip
    correlations = torch.corrcoef(made.T) - torch.eye(6)
    assert correlations.abs().max() < 4 / math.sqrt(N)


@pytest.mark.parametrize("field, low, high", [("sigma", 0.1, 5.0), ("angle", -15, 15), ("shear", -10, 10)])
def test_strengths_fill_their_ranges_evenly(many, field, low, high):
    values = torch.tensor([getattr(one, field) for one in many if getattr(one, field) is not None])
    assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    counts = torch.histc(values, 4, low, high) / len(values)
    assert (counts - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / len(values))


def test_corners_move_inwards_by_a_fifth_of_half_a_side_at_most(many):
    corners = torch.tensor([one.corners for one in many if one.corners]).double()
    ends = torch.tensor([[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]])
    moves = (corners - ends).abs()
    assert moves[..., 0].unique().tolist() == list(range(9)) and moves[..., 1].unique().tolist() == list(range(7))
    middle = torch.tensor([WIDTH - 1, HEIGHT - 1]) / 2
    assert ((corners - middle).abs() <= (ends - middle).abs()).all()


def test_crops_are_those_of_torchvision(many):
    """In their share of the area, their aspect and their place."""
    with runtime.seeded(0, "crops"):
        image = noise()
        theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(N)]
    theirs = torch.tensor([[left, top, left + width, top + height] for top, left, height, width in theirs])
    ours = torch.tensor([one.crop for one in many])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= WIDTH).all() and (ours[:, 3] <= HEIGHT).all()
    for statistic in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (HEIGHT * WIDTH),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0] / WIDTH,
        lambda box: box[:, 1] / HEIGHT,
    ):
        quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        a, b = (statistic(boxes.double()).quantile(quantiles) for boxes in (ours, theirs))
        assert (a - b).abs().max() < 0.04


def test_where_no_crop_fits_the_middle_is_taken():
    for height, width, expected in ((10, 500, (243, 0, 256, 10)), (500, 10, (0, 243, 10, 256))):
        crops = {draw(height, width, CUB, 0, 0, 0, i).crop for i in range(200)}
        assert expected in crops, "4 to 3 of the short side"


def test_cifar_is_cropped_anywhere_in_its_padded_image():
    crops = [draw(32, 32, CIFAR, 0, 0, 0, i).crop for i in range(2000)]
    assert {right - left for left, _, right, _ in crops} == {32} == {bottom - top for _, top, _, bottom in crops}
    counts = Counter(left for left, *_ in crops)
    assert sorted(counts) == list(range(9)) and min(counts.values()) > 140
    assert {top for _, top, *_ in crops} == set(range(9))
    pixels = noise(32, 32)
    corner = augment(pixels, Draws(crop=(8, 0, 40, 32)), CIFAR)
    expected = torch.zeros_like(pixels)
    expected[:, 4:, :28] = pixels[:, :28, 4:]
    assert torch.equal(corner, expected)


def test_cars_are_not_cropped():
    assert all(draw(224, 224, CARS, 0, 0, 0, i).crop is None for i in range(50))


def test_draws_are_a_function_of_names_alone(many):
    assert draw(HEIGHT, WIDTH, CUB, 0, 1, 0, 7) == many[7]
    others = [draw(HEIGHT, WIDTH, CUB, *names) for names in ((1, 1, 0, 7), (0, 2, 0, 7), (0, 1, 1, 7), (0, 1, 0, 8))]
    assert many[7] not in others and len({one.crop for one in others}) == 4
    with runtime.seeded(5, "anything"):
        assert draw(HEIGHT, WIDTH, CUB, 0, 1, 0, 7) == many[7], "the global generator has no part in it"


def test_nothing_drawn_changes_nothing():
    pixels = noise(224, 224)
    assert torch.equal(augment(pixels, Draws(), CARS), pixels)


@pytest.mark.parametrize(
    "draws, expected",
    [
        (Draws(sigma=0.1), lambda x: F.gaussian_blur(x, [5, 5], [0.1, 0.1])),
        (Draws(sigma=3.3), lambda x: F.gaussian_blur(x, [5, 5], [3.3, 3.3])),
        (Draws(sharpen=True), lambda x: F.adjust_sharpness(x, 1.5)),
        (Draws(angle=-12.0), lambda x: F.rotate(x, -12.0, BILINEAR)),
        (Draws(shear=8.0), lambda x: F.affine(x, 0.0, [0, 0], 1.0, [8.0, 0.0], BILINEAR)),
        (Draws(flip=True), lambda x: x.flip(2)),
        (
            Draws(1.0, True, 10.0, ((5, 3), (210, 8), (223, 223), (0, 215)), -5.0, True),
            lambda x: F.affine(
                F.perspective(
                    F.rotate(F.adjust_sharpness(F.gaussian_blur(x, [5, 5], [1.0, 1.0]), 1.5), 10.0, BILINEAR),
                    [[0, 0], [223, 0], [223, 223], [0, 223]], [[5, 3], [210, 8], [223, 223], [0, 215]], BILINEAR,
                ), 0.0, [0, 0], 1.0, [-5.0, 0.0], BILINEAR).flip(2),
        ),
    ],
)  # fmt: skip
def test_each_change_and_their_order_are_those_of_the_recipe(draws, expected):
    smooth = F.gaussian_blur(noise(224, 224), [9, 9], [4.0, 4.0])
    assert near(augment(smooth, draws, CARS), expected(smooth), levels=2)


def test_a_crop_is_brought_to_the_crop_size_and_then_to_the_input_size():
    pixels = F.gaussian_blur(noise(510, 640), [9, 9], [4.0, 4.0])
    found = augment(pixels, Draws(crop=(100, 50, 400, 450)), CUB)
    expected = F.resize(F.resize(pixels[:, 50:450, 100:400], [384, 384]), [224, 224])
    assert found.shape == (3, 224, 224) and found.dtype == torch.uint8 and near(found, expected, levels=0)


def test_a_warped_image_is_black_where_nothing_was():
    white = torch.full((3, 224, 224), 255, dtype=torch.uint8)
    for draws in (Draws(angle=15.0), Draws(shear=10.0), Draws(corners=((20, 20), (200, 20), (200, 200), (20, 200)))):
        warped = augment(white, draws, CARS)
        assert warped[:, 112, 112].tolist() == [255] * 3 and int(warped[:, 0, 0].sum()) == 0


def test_enough_numbers_are_drawn_for_any_image(monkeypatch):
    used = []
    real = torch.rand
    monkeypatch.setattr(augmentation.torch, "rand", lambda n, **options: used.append(n) or real(n, **options))
    draw(10, 500, CUB, 0, 0, 0, 1)
    assert used == [augmentation.NUMBERS] and 3 + 8 + 6 + 2 * augmentation.ATTEMPTS + 2 <= augmentation.NUMBERS
