"""Projection against loops over every distance, and what must not matter: order, batches, a second time."""

import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from proto_patches import batches, images, net
from torch.utils.data import DataLoader, TensorDataset

from helpers.attribution.base import evaluating
from helpers.config import ConfigError
from helpers.prototypes.models import prune
from helpers.prototypes.projection import push, source_patches

FILTERS = ("sample", "patch", "none")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def state(model):
    return model.prototypes.detach().clone(), model.source_image.clone(), model.source_cell.clone()


def all_distances(model, data):
    """(distances [N, P, cells], infinite for other classes; features [N, cells, D]; columns of a map)."""
    with torch.no_grad(), evaluating(model):
        z = model.embed(data[0])
        d = model.distances(z).flatten(2).clone()
    if model.class_specific:
        d[model.prototype_class != data[1][:, None]] = torch.inf
    return d, z.flatten(2).transpose(1, 2), z.shape[3]


def turns(d, kind, best=None):
    """The original's loop over the distances of some images [N, P, cells]: {prototype: (distance, image, cell)}."""
    d, found = d.clone(), {}
    while d.isfinite().any():
        n, p, cell = (int(i) for i in np.unravel_index(int(d.argmin()), d.shape))
        least = float(d[n, p, cell])
        d[:, p] = torch.inf
        if best is not None and p in best and best[p][0] <= least:
            continue
        found[p] = (least, n, cell)
        if kind == "sample":
            d[n] = torch.inf
        if kind == "patch":
            d[n, :, cell] = torch.inf
    return found


def assert_took(model, pushed, found, data, z, columns):
    assert sorted(found) == [p for p in range(len(model.prototypes)) if p not in pushed.unassigned]
    for p, (distance, n, cell) in found.items():
        assert pushed.image[p] == model.source_image[p] == data[2][n]
        assert pushed.cell[p].tolist() == model.source_cell[p].tolist() == list(divmod(cell, columns))
        assert pushed.distance[p] == pytest.approx(distance, abs=1e-6)
        assert torch.allclose(model.prototypes[p, :, 0, 0], z[n, cell], rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("kind", FILTERS)
def test_greedy_is_the_loop_over_all_distances(kind, class_specific, distance):
    settings = {} if class_specific else {"readout_type": "linear"}
    model, data = net(class_specific=class_specific, distance=distance, **settings), images()
    d, z, columns = all_distances(model, data)
    assert_took(model, push(model, batches(data), duplicate_filter=kind), turns(d, kind), data, z, columns)


@pytest.mark.parametrize("kind", FILTERS)
def test_legacy_is_the_loop_over_the_distances_of_each_batch(kind):
    model, data = net(), images()
    d, z, columns = all_distances(model, data)
    best = {}
    for start in range(0, 24, 8):
        for p, (distance, n, cell) in turns(d[start : start + 8], kind, best).items():
            best[p] = (distance, start + n, cell)
    pushed = push(model, batches(data), assignment="legacy", duplicate_filter=kind)
    assert_took(model, pushed, best, data, z, columns)


@pytest.mark.parametrize("kind", FILTERS)
def test_hungarian_has_the_smallest_sum_of_all_assignments(kind):
    model, data = net(each=3), images(15)
    d, *_ = all_distances(model, data)
    sources = {"sample": d.amin(2), "patch": d.transpose(1, 2).flatten(0, 1), "none": None}[kind]
    least = 0.0
    for own in model.own:
        if kind == "none":
            least += float(d[:, own].amin((0, 2)).sum())
            continue
        costs = sources[:, own]
        costs = costs[costs.isfinite().all(1)]
        costs = costs[costs.argsort(0)[:4].unique()]  # beyond their 3 best no prototype has to go
        least += min(
            float(sum(costs[n, p] for p, n in enumerate(chosen)))
            for chosen in itertools.permutations(range(len(costs)), 3)
        )
    greedy = push(net(each=3), batches(data), duplicate_filter=kind).distance.sum()
    pushed = push(model, batches(data), assignment="hungarian", duplicate_filter=kind)
    assert float(pushed.distance.sum()) == pytest.approx(least, abs=1e-4)
    assert float(pushed.distance.sum()) <= float(greedy) + 1e-4


@pytest.mark.parametrize("assignment", ["greedy", "hungarian", "legacy"])
def test_a_prototype_is_the_patch_that_it_names(assignment):
    """Property 12."""
    model, data = net(), images()
    pushed = push(model, batches(data, 24), assignment=assignment)
    d, z, columns = all_distances(model, data)
    for p in set(range(12)) - set(pushed.unassigned):
        n, (row, column) = int((data[2] == model.source_image[p]).nonzero()), model.source_cell[p].tolist()
        assert torch.equal(model.prototypes[p, :, 0, 0], z[n, row * columns + column])  # to the bit
        assert d[n, p, row * columns + column] <= 1e-5
        assert data[1][n] == model.prototype_class[p]


@pytest.mark.parametrize("assignment", ["greedy", "hungarian"])
def test_what_two_prototypes_do_not_share(assignment):
    """Property 13."""
    data = images()
    for kind in ("sample", "patch"):
        model = net()
        model.prototypes.data[:] = model.prototypes.data[:1]  # all want the same
        pushed = push(model, batches(data), assignment=assignment, duplicate_filter=kind)
        sources = torch.column_stack((pushed.image, pushed.cell))
        assert not pushed.unassigned
        assert len(sources[:, :1].unique() if kind == "sample" else sources.unique(dim=0)) == 12
    model = net()
    model.prototypes.data[:] = model.prototypes.data[:1]
    pushed = push(model, batches(data), assignment=assignment, duplicate_filter="none")
    assert len(torch.column_stack((pushed.image, pushed.cell)).unique(dim=0)) == 3  # one a class


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("assignment", ["greedy", "hungarian"])
@pytest.mark.parametrize("flat", [False, True])
def test_a_second_projection_changes_nothing(assignment, kind, flat):
    """Property 13; also of images that are the same all over, where everything is equally near."""
    model, data = net(), images()
    if flat:
        data[0][:] = data[0][0, :, :1, :1]
    push(model, batches(data), assignment=assignment, duplicate_filter=kind)
    before = state(model)
    again = push(model, batches(data, 5), assignment=assignment, duplicate_filter=kind)
    after = state(model)
    assert torch.allclose(before[0], after[0], rtol=0, atol=1e-6)
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
    assert again.distance.max() <= 1e-5 and again.moved <= 1e-5


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("assignment", ["greedy", "hungarian"])
def test_neither_order_nor_batches_matter(assignment, kind):
    """Property 14; images that come twice under two indices are ties."""
    data = images()
    data[0][12:] = data[0][:12]
    results = []
    for size, shuffle in [(8, 0), (24, 1), (1, 2), (7, 3)]:
        model, order = net(), torch.randperm(24, generator=torch.Generator().manual_seed(shuffle))
        push(model, batches(data, size, order), assignment=assignment, duplicate_filter=kind)
        results.append(state(model))
    for vectors, source, cell in results[1:]:
        assert torch.equal(source, results[0][1]) and torch.equal(cell, results[0][2])
        assert torch.allclose(vectors, results[0][0], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_workers_do_not_matter():
    """Property 14."""
    data, results = images(), []
    for workers in (0, 2):
        model = net()
        push(model, DataLoader(TensorDataset(*data), batch_size=5, num_workers=workers))
        results.append(state(model))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_legacy_depends_on_the_batches():
    data = images()
    greedy, whole, few = (
        push(net(), batches(data, size), assignment=assignment)
        for size, assignment in [(8, "greedy"), (24, "legacy"), (3, "legacy")]
    )
    assert torch.equal(whole.image, greedy.image) and torch.equal(whole.cell, greedy.cell)
    assert not torch.equal(few.image, greedy.image)


def test_equals_are_taken_in_the_order_of_images_and_cells():
    model, data = net(), images()
    data[0][:] = data[0][0, :, :1, :1]
    model.prototypes.data[:] = model.prototypes.data[:1]
    pushed = push(model, batches(data))
    for c in range(3):
        assert pushed.image[4 * c : 4 * c + 4].tolist() == sorted(data[2][data[1] == c].tolist())[:4]


def test_a_class_without_images_keeps_its_prototypes(caplog):
    """Property 14."""
    model, (x, labels, indices) = net(), images()
    model.source_image[4:8] = 77
    model.source_cell[4:8] = 3
    before, some = state(model), labels != 1
    with caplog.at_level(logging.WARNING):
        pushed = push(model, batches((x[some], labels[some], indices[some])))
    assert pushed.unassigned == (4, 5, 6, 7) and "4 prototypes found no patch" in caplog.text
    assert torch.equal(model.prototypes[4:8], before[0][4:8]) and model.prototypes.abs().sum((1, 2, 3)).min() > 0
    assert model.source_image[4:8].eq(77).all() and model.source_cell[4:8].eq(3).all()
    assert pushed.distance[4:8].isnan().all() and pushed.distance[:4].isfinite().all()
    assert all(value == value for value in pushed.quartiles)


@pytest.mark.parametrize("assignment", ["greedy", "hungarian"])
def test_where_images_are_few_the_nearest_prototypes_get_them(assignment):
    model, data = net(), images(6)  # two of each class for four prototypes
    pushed = push(model, batches(data), assignment=assignment)
    assert len(pushed.unassigned) == 6
    for c in range(3):
        assert pushed.distance[4 * c : 4 * c + 4].isfinite().sum() == 2


def test_features_are_as_good_as_images():
    data, one, other = images(), net(), net()
    with torch.no_grad(), evaluating(other):
        stored = (other.features(data[0]), *data[1:])
    push(one, batches(data))
    push(other, batches(stored), features=True)
    assert torch.equal(one.source_image, other.source_image) and torch.equal(one.source_cell, other.source_cell)
    assert torch.allclose(one.prototypes, other.prototypes, rtol=0, atol=1e-6)


def test_pruned_classes_have_fewer_prototypes():
    model, data = net(), images()
    prune(model, [0, 1, 6])
    d, z, columns = all_distances(model, data)
    assert_took(model, push(model, batches(data)), turns(d, "sample"), data, z, columns)


def test_what_a_push_tells():
    model, data = net(), images()
    before = model.prototypes.detach().clone()
    pushed = push(model, batches(data))
    after = model.prototypes.detach()
    assert model.training and model.prototypes.requires_grad and model.prototypes.is_leaf
    assert pushed.norm_before == pytest.approx(before.norm().item())
    assert pushed.norm_after == pytest.approx(after.norm().item())
    assert pushed.moved == pytest.approx((after - before).norm().item())
    assert list(pushed.quartiles) == sorted(pushed.quartiles)
    assert pushed.quartiles[0] == pushed.distance.min() and pushed.quartiles[4] == pushed.distance.max()


def test_cells_that_are_not_finite_are_no_patches():
    model, data = net(), images()
    data[0][data[1] == 0] = torch.nan
    data[0][data[1] == 1, :, :8] = torch.nan
    pushed = push(model, batches(data))
    assert pushed.unassigned == (0, 1, 2, 3)
    assert model.prototypes.isfinite().all() and (pushed.cell[4:8, 0] >= 1).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"assignment": "hungarain"}, "did you mean hungarian?"),
        ({"duplicate_filter": "samples"}, "did you mean sample?"),
    ],
)
def test_unknown_options_are_named(options, says):
    with pytest.raises(ConfigError, match=says):
        push(net(), batches(images()), **options)


def test_bad_batches_are_refused():
    x, labels, indices = images()
    model = net()
    before = state(model)
    for bad, says in [
        ([], "no images"),
        ([(x, labels, indices), (x[:1], labels[:1], indices[:1])], "came again"),
        ([(x, labels + 1, indices)], r"labels of 0\.\.2"),
        ([(x, labels[:3], indices)], "expected batches"),
        ([(x[0], labels, indices)], "expected batches"),
    ]:
        with pytest.raises(ValueError, match=says):
            push(model, bad)
    assert all(torch.equal(one, other) for one, other in zip(before, state(model), strict=True))


def test_legacy_moves_on_only_to_what_is_nearer():
    """Of images that are all the same, later ones are as near: a prototype keeps the patch of the first batch."""
    model, data = net(), images()
    data[0][:] = data[0][0].clone()
    pushed = push(model, batches(data), assignment="legacy", duplicate_filter="none")
    assert set(pushed.image.tolist()) <= set(data[2][:8].tolist())


def test_a_net_in_training_sees_its_patches_in_eval_mode():
    model, data = net(), images()
    push(model, batches(data))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part = SimpleNamespace(indices=data[2], inputs=lambda rows: data[0][rows])
    known, patches = source_patches(model.train(), part)
    assert known.tolist() == list(range(12)) and model.training
    torch.testing.assert_close(patches, model.prototypes[..., 0, 0].detach())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
