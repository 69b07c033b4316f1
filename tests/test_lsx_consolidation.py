"""The ridge classifier against scikit-learn's, and the similarity against its definition and by its invariances."""

import math

import pytest
import torch

from helpers import runtime
from helpers.self_explaining.consolidation import ridge_accuracy, similarity


def noise(*shape, name="noise"):
    return torch.randn(*shape, generator=runtime.generator(0, name))


@pytest.fixture
def labels():
    return torch.arange(60) % 3


@pytest.fixture
def encodings(labels):
    return noise(60, 7) + noise(3, 7, name="means")[labels]


# ------------------------------------------------------------------------------------------------ ridge classifier


def test_maps_that_hold_the_class_are_told_apart_and_noise_is_not():
    """Property 17."""
    labels = torch.randint(10, (2000,), generator=runtime.generator(0, "labels"))
    coded = torch.zeros(2000, 1, 6, 6)
    coded.flatten(1)[torch.arange(2000), 3 * labels] = 1
    assert ridge_accuracy(coded, labels) == 100
    assert ridge_accuracy(noise(2000, 1, 6, 6), labels) == pytest.approx(10, abs=5)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_the_ridge_classifier_is_scikit_learns(classes, scale):
    from sklearn.linear_model import RidgeClassifier

    labels = torch.randint(classes, (150,), generator=runtime.generator(0, "labels"))
    maps = scale * (noise(150, 1, 4, 5) + 2 * noise(classes, 1, 4, 5, name="means")[labels] / classes)
    flat, y = maps.flatten(1).double().numpy(), labels.numpy()
    theirs = RidgeClassifier(alpha=1.0).fit(flat[:120], y[:120]).score(flat[120:], y[120:])
    assert ridge_accuracy(maps, labels) == pytest.approx(100 * theirs)


def test_the_ridge_classifier_sees_scale():
    """Why both norms are reported: the same maps, all ten thousand times smaller."""
    labels = torch.cat([torch.zeros(70), torch.ones(30)]).long()[torch.randperm(100, generator=runtime.generator(0))]
    maps = torch.stack([labels, 1 - labels], 1) + 0.1 * noise(100, 2)
    assert ridge_accuracy(maps, labels) == 100 > ridge_accuracy(maps / 10_000, labels)


# ---------------------------------------------------------------------------------------------------- similarity


def test_similarity_is_its_definition(encodings, labels):
    z = encodings.double()
    means = [z[labels == k].mean(0) for k in range(3)]
    expected = [0.0] * 4
    for k in range(3):
        intra = [float((row - means[k]).norm()) for row in z[labels == k]]
        inter = [float((means[j] - means[k]).norm()) for j in range(3) if j != k]
        foreign = min(float((row - means[k]).norm()) for row in z[labels != k])
        a, b = sum(intra) / len(intra), sum(inter) / len(inter)
        ratios = a / b, max(intra) / min(inter), max(intra) / b, max(intra) / foreign
        expected = [total + ratio / 3 for total, ratio in zip(expected, ratios, strict=True)]
    assert similarity(encodings, labels) == pytest.approx(tuple(expected))


def test_similarity_does_not_see_scale_nor_place_nor_the_classes_names(encodings, labels):
    """Property 17."""
    before = similarity(encodings, labels)
    assert similarity(100 * encodings, labels) == pytest.approx(before, rel=1e-5)
    assert similarity(encodings + 5, labels) == pytest.approx(before, rel=1e-5)
    assert similarity(encodings, 7 - 2 * labels) == pytest.approx(before)


def test_classes_that_are_points_are_perfectly_alike(labels):
    """Property 17."""
    assert similarity(noise(3, 7)[labels], labels) == (0, 0, 0, 0)


def test_similarity_falls_as_classes_move_apart(labels):
    """Property 17."""
    inside, means = noise(60, 7), noise(3, 7, name="means")
    near, far, farther = (similarity(inside + distance * means[labels], labels).iies for distance in (1, 2, 4))
    assert near > far > farther > 0


def test_large_sets_are_taken_in_parts(encodings, labels, monkeypatch):
    before = similarity(encodings, labels)
    monkeypatch.setattr("helpers.self_explaining.consolidation.ROWS", 7)
    assert similarity(encodings, labels) == pytest.approx(before, rel=1e-12)


def test_what_cannot_be_compared_is_undefined(encodings, labels):
    assert all(map(math.isnan, similarity(encodings, torch.zeros_like(labels))))  # one class
    assert math.isnan(similarity(torch.zeros_like(encodings), labels).iies)  # maps that vanished
    assert ridge_accuracy(encodings, torch.zeros_like(labels)) == 100


def test_explanations_that_are_none_are_refused(encodings, labels):
    for metric in (similarity, ridge_accuracy):
        with pytest.raises(ValueError, match="each with a label"):
            metric(encodings, labels[:5])
        with pytest.raises(ValueError, match="NaN"):
            metric(encodings.index_fill(0, torch.tensor([3]), torch.nan), labels)
