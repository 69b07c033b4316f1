"""Removal on a task whose one relevant patch is known, against loops written out, and where nothing must happen."""

from functools import partial

import pytest
import torch
from torch import nn

from helpers import runtime
from helpers.config import ConfigError
from helpers.metrics.base import correlation
from helpers.self_explaining import removal
from helpers.self_explaining.removal import (
    PERCENTS,
    by_area,
    by_rank,
    by_value,
    decoy_mass,
    faithfulness_correlation,
    falls,
    random_heat,
    ranks,
    score,
)

COUNT, PATCH = 200, (slice(None), slice(10, 14), slice(12, 16))  # 16 of 784 pixels


class Reader(nn.Module):
    """Sure of class 1 where the patch is bright, and looks at nothing else."""

    def forward(self, x):
        brightness = x.mean(1)[PATCH].mean((1, 2))
        return torch.stack([-brightness, brightness], 1).log_softmax(1)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture
def task():
    """Background and noise below 0, a patch at 2 or -2; the median pixel is that of the background."""
    y = torch.arange(COUNT) % 2
    x = -0.4 + 0.01 * torch.rand(COUNT, 1, 28, 28, generator=runtime.generator(0, "x"))
    x[:, 0][PATCH] = (4.0 * y - 2)[:, None, None]
    return Reader().train(), x, y


@pytest.fixture
def oracle(task):
    heat = torch.zeros(COUNT, 28, 28)
    heat[PATCH] = 1
    return heat


def scores(how, net, x, y, heat, **settings):
    return score(how(net, x, y, heat, **settings), how(net, x, y, random_heat(x, 0), **settings))


# ------------------------------------------------------------------------------- what it says of maps that are known


@pytest.mark.parametrize("how", [by_value, by_area])
def test_a_map_of_the_only_patch_that_matters_is_necessary_and_sufficient(task, oracle, how):
    """Property 18: without the patch half the guesses are right, with it alone all of them."""
    table = how(*task, oracle).set_index(["metric", "percent"]).accuracy
    for percent in PERCENTS[1:]:
        assert table["comprehensiveness", percent] == 50 and table["sufficiency", percent] == 100
    found = scores(how, *task, oracle)
    assert found["comprehensiveness"] > 25 and found["sufficiency"] < -5
    upside_down = scores(how, *task, -oracle)
    assert upside_down["comprehensiveness"] <= 0 < upside_down["sufficiency"]


@pytest.mark.parametrize("how", [by_value, by_area])
def test_a_map_of_noise_scores_nothing(task, how):
    """Property 18."""
    for seed in (1, 2):
        found = scores(how, *task, random_heat(task[1], seed))
        assert found == pytest.approx({"comprehensiveness": 0, "sufficiency": 0}, abs=6)


def test_a_map_that_prefers_no_pixel_scores_nothing_either(task):
    """Its ties are drawn: by position, the upper edge would go first."""
    found = scores(by_area, *task, torch.ones(COUNT, 28, 28))
    assert found == pytest.approx({"comprehensiveness": 0, "sufficiency": 0}, abs=6)


@pytest.mark.parametrize("how", [by_value, by_area])
def test_removing_nothing_leaves_the_accuracy(task, how):
    """Property 18, with maps whose maximum is so large that adding 1e-6 to it is lost in float32."""
    net, x, y = task
    y = torch.where(torch.arange(COUNT) < 20, 1 - y, y)
    for heat in (random_heat(x, 3), 1000 * random_heat(x, 3)):
        table = how(net, x, y, heat, percents=[0])
        assert table.accuracy[0] == 90 and table.replaced.tolist() == [0, 100]


# ----------------------------------------------------------------------------------------- the definitions, slowly


def by_hand(net, x, y, where, value):
    hit = 0
    for image, label, pixels in zip(x, y, where, strict=True):
        changed = image.clone()
        changed[:, pixels] = value
        hit += int(net(changed[None]).argmax()) == int(label)
    return 100 * hit / len(x)


@pytest.mark.parametrize("fill", ["median", "mean", "min", "zero"])
def test_by_value_is_its_definition(task, fill):
    net, x, y = task
    heat = random_heat(x, 5) ** 2 * 3 - 1
    heat[PATCH] += 0.5
    value = {"median": x.median(), "mean": x.mean(), "min": x.min(), "zero": 0.0}[fill]
    table = by_value(net, x, y, heat, percents=(10, 50), fill=fill)
    s = torch.stack([(h - h.min()) / ((h - h.min()).max() + 1e-6) for h in heat.double()])
    removed = [s >= 0.9, s >= 0.5, s <= 0.9, s <= 0.5]
    assert table.metric.tolist() == ["comprehensiveness"] * 2 + ["sufficiency"] * 2
    assert table.percent.tolist() == [10, 50] * 2
    assert table.replaced.tolist() == pytest.approx([100 * float(where.double().mean()) for where in removed])
    assert table.accuracy.tolist() == pytest.approx([by_hand(net, x, y, where, value) for where in removed])


def test_by_area_replaces_as_many_pixels_of_a_peaked_map_as_of_any(task):
    net, x, y = task
    for heat in (random_heat(x, 5), random_heat(x, 5) ** 9):
        table = by_area(net, x, y, heat)
        pixels = (table.replaced * 7.84).round(6).tolist()
        assert pixels == [7, 39, 78, 156, 392, 777, 745, 706, 628, 392]
    assert by_value(net, x, y, random_heat(x, 5) ** 9).replaced[4] < 20


def test_ranks_are_those_of_the_values_and_random_among_equals(task):
    _, x, _ = task
    heat = random_heat(x, 5)
    in_order = heat.flatten(1).gather(1, ranks(x, heat, 0).flatten(1).argsort(1))
    assert torch.equal(in_order, heat.flatten(1).sort(1, descending=True).values)
    clipped = (heat - 0.5).relu()
    place = ranks(x, clipped, 0)
    positive = (clipped > 0).sum((1, 2), keepdim=True)
    assert torch.equal(place < positive, clipped > 0)
    among_zeros = place.double().masked_fill(clipped > 0, torch.nan)
    upper, lower = among_zeros[:, :14].nanmean(), among_zeros[:, 14:].nanmean()
    assert upper == pytest.approx(float(lower), rel=0.02)
    assert torch.equal(ranks(x, clipped, 0), place) and not torch.equal(ranks(x, clipped, 1), place)


def test_by_rank_is_its_definition(task):
    net, x, _ = task
    heat = random_heat(x, 5)
    heat[PATCH] += 0.3
    table = by_rank(net, x, heat)
    guess = net(x).argmax(1)
    expected = {"comprehensiveness": [], "sufficiency": []}
    for count in (7, 39, 78, 156, 392):
        without, alone = 0.0, 0.0
        for image, label, values in zip(x, guess, heat, strict=True):
            top = torch.zeros(784, dtype=torch.bool)
            top[values.flatten().topk(count).indices] = True
            top = top.view(28, 28)
            p = net(image[None]).exp()[0, label]
            without += float(p - net(image.masked_fill(top, 0)[None]).exp()[0, label])
            alone += float(p - net(image.masked_fill(~top, 0)[None]).exp()[0, label])
        expected["comprehensiveness"].append(without / COUNT)
        expected["sufficiency"].append(alone / COUNT)
    assert table.fall.tolist() == pytest.approx(expected["comprehensiveness"] + expected["sufficiency"], abs=1e-6)
    found = falls(table)
    assert found == pytest.approx({metric: sum(values) / 5 for metric, values in expected.items()}, abs=1e-4)
    assert all(value == round(value, 4) for value in found.values())


def test_the_faithfulness_correlation_is_its_definition(task):
    net, x, _ = task
    x = x[:6] + 0.5 * torch.rand(6, 1, 28, 28, generator=runtime.generator(0, "more"))
    heat = random_heat(x, 5)
    heat[PATCH] += 1
    expected = []
    for image, values in zip(x, heat.double(), strict=True):
        p, label = net(image[None]).exp()[0].max(0)
        top = values.flatten().topk(10)
        drops = []
        for place in top.indices:
            changed = image.clone()
            changed.view(-1)[place] = image.mean()
            drops.append(float(p - net(changed[None]).exp()[0, label]))
        expected.append(float(correlation(top.values, torch.tensor(drops).double())))
    assert faithfulness_correlation(net, x, heat).tolist() == pytest.approx(expected, abs=1e-3)
    assert faithfulness_correlation(net, x, torch.ones_like(heat)).isnan().all()


def test_attributions_that_are_the_drops_correlate_perfectly(task):
    """Of a linear net: pixels that count 1, 2, 3, ... and maps that say so."""

    class Weighing(nn.Module):
        weight = torch.arange(784.0).view(28, 28) / 784

        def forward(self, x):
            chosen = torch.sigmoid((x[:, 0] * self.weight).mean((1, 2)))
            return torch.stack([chosen, 1 - chosen], 1).log()

    x = torch.ones(2, 1, 28, 28)
    x[:, :, :14] = 0
    heat = Weighing.weight.expand(2, -1, -1)
    assert faithfulness_correlation(Weighing(), x, heat) == pytest.approx(torch.ones(2), abs=1e-3)


# ------------------------------------------------------------------------------------------------- decoys, and care


def test_the_mass_on_a_decoy_is_its_share_of_the_map():
    """Property 15 gives the masks."""
    mask = torch.zeros(4, 28, 28, dtype=torch.bool)
    mask[:3, :4, :4] = True
    heat = torch.ones(4, 28, 28)
    assert decoy_mass(heat, mask) == pytest.approx(16 / 784)
    assert decoy_mass(mask.float(), mask) == 1 and decoy_mass((~mask).float(), mask) == 0
    assert decoy_mass(torch.zeros_like(heat), mask) == 0


def test_no_result_depends_on_batches_nor_on_what_was_drawn_before(task, monkeypatch):
    net, x, y = task
    heat = (random_heat(x, 5) - 0.4).relu()
    before = [how(net, x, y, heat) for how in (by_value, by_area)], by_rank(net, x, heat).fall.tolist()
    monkeypatch.setattr(removal, "at_once", lambda where: 7)
    for how, table in zip((by_value, by_area), before[0], strict=True):
        assert how(net, x, y, heat).equals(table)
    assert by_rank(net, x, heat).fall.tolist() == pytest.approx(before[1])
    torch.rand(1)
    assert torch.equal(random_heat(x, 0), random_heat(x, 0))
    assert net.training  # as it was


def test_colour_images_lose_a_pixel_in_all_channels(task, oracle):
    net, x, y = task
    coloured = x.repeat(1, 3, 1, 1)
    assert by_area(net, coloured, y, oracle).equals(by_area(net, x, y, oracle))


def test_maps_that_are_none_are_refused(task, oracle):
    net, x, y = task
    for call in (lambda h: by_value(net, x, y, h), lambda h: by_area(net, x, y, h), lambda h: by_rank(net, x, h)):
        with pytest.raises(ValueError, match="NaN"):
            call(oracle.index_fill(0, torch.tensor([3]), torch.nan))
        with pytest.raises(ValueError, match="expected x"):
            call(oracle[:5])
    for call in (partial(by_value, net, x, y), partial(by_area, net, x, y), partial(by_rank, net, x)):
        for percents in ((200,), (10, -5)):
            with pytest.raises(ConfigError, match="percents must be between 0 and 100"):
                call(oracle, percents=percents)
    with pytest.raises(ConfigError, match="unknown fill 'medium': did you mean median"):
        by_area(net, x, y, oracle, fill="medium")
    for call in (by_value, by_area):
        with pytest.raises(ValueError, match="a label for each of"):
            call(net, x, y[:1], oracle)
    assert set(removal.FILLS) == {"median", "mean", "min", "zero"}
