"""MPRT: maps are compared before and after the weights become random, and the weights come back to the bit."""

from copy import deepcopy

import pytest
import torch
from metric_nets import ask_quantus, images, net, noise_maps, ones
from scipy.stats import spearmanr
from torch import nn

from helpers.attribution import gradient, guided_backprop, input_x_gradient, random_map
from helpers.config import ConfigError
from helpers.metrics import efficient_mprt, mprt, rank_correlation
from helpers.metrics.randomisation import randomise, restored, weighted_layers


@pytest.fixture
def model():
    return net()


@pytest.fixture
def x():
    return images(3)


@pytest.fixture
def target():
    return torch.tensor([2, 0, 1])


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Scaled(nn.Module):
    """Registered in another order than it runs in, with a parameter of its own and a module that never runs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.unused = nn.Linear(2, 3)
        self.stem = nn.Conv2d(1, 2, 3)
        self.gamma = nn.Parameter(torch.randn(2) + 4)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)) * self.gamma)


# ----------------------------------------------------------------------------------------------------- MPRT


def test_one_correlation_a_layer_and_image_from_the_output_down(model, x, target):
    result = mprt(gradient, model, x, target)
    assert result.layers == ("head", "norm", "conv")
    assert result.correlation.shape == (3, 3) and result.correlation.dtype == torch.float64
    assert result.correlation.abs().max() <= 1
    assert torch.equal(result.last, result.correlation[2])
    torch.testing.assert_close(result.average, result.correlation.mean(0))


def test_a_map_that_looks_at_the_model_changes_and_one_that_does_not_stays(model, x, target):
    """Property 17."""
    looking = mprt(input_x_gradient, model, x, target, magnitudes=False)
    assert looking.last.abs().max() < 0.9 and looking.last.abs().mean() < 0.5
    for blind in (random_map, ones):
        assert (mprt(blind, model, x, target).correlation == 1).all()


def test_a_map_that_only_turns_its_sign_keeps_its_magnitudes(model, x, target):
    """Rank correlation is of magnitudes unless asked otherwise: 1, where that of the signed maps is -1."""
    before, noise = bits(model), noise_maps(x)

    def turning(model, x, target):
        return noise if same(model, before) else -noise

    assert mprt(turning, model, x, target).correlation.flatten().tolist() == pytest.approx([1] * 9)
    signed = mprt(turning, model, x, target, magnitudes=False)
    assert signed.correlation.flatten().tolist() == pytest.approx([-1] * 9)


def test_guided_backpropagation_is_not_the_gradient_and_both_depend_on_the_weights(model, x, target):
    """Property 17."""
    assert not torch.allclose(guided_backprop(model, x, target), gradient(model, x, target))
    for explain in (gradient, guided_backprop):
        assert (mprt(explain, model, x, target).last < 0.95).all()


@pytest.mark.parametrize("order", ["cascade", "independent"])
def test_the_weights_come_back_to_the_bit(order, model, x, target):
    model.train()
    before = bits(model)
    mprt(gradient, model, x, target, order=order)
    efficient_mprt(gradient, model, x, target)
    assert same(model, before) and model.training and model.norm.training


@pytest.mark.parametrize("metric", [mprt, efficient_mprt])
def test_the_weights_come_back_after_an_error(metric, model, x, target):
    before, calls = bits(model), []

    def failing(model, x, target):
        calls.append(same(model, before))
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return gradient(model, x, target)

    with pytest.raises(RuntimeError, match="out of memory"):
        metric(failing, model, x, target)
    assert calls == [True, False] and same(model, before)


def test_a_cascade_adds_layers_and_independent_layers_are_alone(model, x, target):
    with torch.no_grad():
        model.norm.weight += 1
    before, seen = bits(model), []

    def spy(model, x, target):
        weights = {name: model.get_submodule(name).weight for name in ("head", "norm", "conv")}
        seen.append([name for name, weight in weights.items() if not torch.equal(weight, before[f"{name}.weight"])])
        return gradient(model, x, target)

    mprt(spy, model, x, target)
    assert seen == [[], ["head"], ["head", "norm"], ["head", "norm", "conv"]]
    seen.clear()
    mprt(spy, model, x, target, order="independent")
    assert seen == [[], ["head"], ["norm"], ["conv"]]


def test_chosen_layers_and_unknown_ones(model, x, target):
    assert mprt(gradient, model, x, target, layers=("conv",)).layers == ("conv",)
    with pytest.raises(ConfigError, match="did you mean conv"):
        mprt(gradient, model, x, target, layers=("conv1",))
    with pytest.raises(ConfigError, match="did you mean independent"):
        mprt(gradient, model, x, target, order="independant")


@pytest.mark.parametrize("metric", [mprt, efficient_mprt])
def test_scores_repeat_with_the_seed_and_the_global_generator_stands_still(metric, model, x, target):
    before = torch.get_rng_state()
    first, again, other = (metric(gradient, model, x, target, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    if metric is mprt:
        first, again, other = (result.correlation for result in (first, again, other))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("metric", [mprt, efficient_mprt])
def test_the_score_of_an_image_does_not_depend_on_its_batch_mates(metric, model, x, target):
    def score(part):
        result = metric(gradient, model, x[part], target[part])
        return result.last if metric is mprt else result

    together = score(slice(None))
    for i in range(3):
        assert score(slice(i, i + 1)).item() == pytest.approx(together[i].item(), abs=1e-3)


def test_mprt_is_quantus_with_the_same_random_weights(model, x, target, monkeypatch):
    """Their generator of random models replaced by ours."""
    import quantus
    from quantus.helpers.model.pytorch_model import PyTorchModel

    def ours(self, order, seed):
        copy = deepcopy(self.model)
        for name in ("head", "norm", "conv"):
            randomise(copy, name, 0)
            yield name, copy

    expected = mprt(gradient, model, x, target)
    monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", ours)
    heat = gradient(model, x, target)
    theirs = ask_quantus(quantus.MPRT(disable_warnings=True), model, x, target, heat, explain=gradient)
    for name, correlation in zip(expected.layers, expected.correlation, strict=True):
        assert theirs[name] == pytest.approx(correlation.tolist(), abs=1e-4)

    rise = efficient_mprt(gradient, model, x, target)
    metric = quantus.EfficientMPRT(complexity_func_kwargs={"n_bins": 100}, disable_warnings=True)
    theirs = ask_quantus(metric, model, x, target, heat, explain=gradient)
    assert theirs == pytest.approx(rise.numpy(), rel=1e-2)


def test_quantus_gives_layers_of_equal_shape_equal_weights():
    """Why the random models are ours."""
    from quantus.helpers.model.pytorch_model import PyTorchModel

    twins = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    *_, (_, theirs) = PyTorchModel(twins).get_random_layer_generator()
    assert torch.equal(theirs[0].weight, theirs[2].weight)
    randomise(twins, "0", 0)
    randomise(twins, "2", 0)
    assert not torch.allclose(twins[0].weight, twins[2].weight)


# ------------------------------------------------------------------------------------------- efficient MPRT


def test_the_complexity_of_a_blind_map_does_not_rise(model, x, target):
    for blind in (random_map, ones):
        assert (efficient_mprt(blind, model, x, target) == 0).all()


def test_a_map_that_said_nothing_has_no_relative_rise(model, x, target):
    before = bits(model)

    def awoken(model, x, target):
        return torch.zeros_like(x[:, 0]) if same(model, before) else noise_maps(x)

    assert efficient_mprt(awoken, model, x, target).isnan().all()


def test_a_map_that_turns_into_noise_rises_in_complexity(model, x, target):
    before = bits(model)

    def structured(model, x, target):
        spot = torch.zeros_like(x[:, 0])
        spot[:, :4, :4] = noise_maps(x)[:, :4, :4]
        return spot if same(model, before) else noise_maps(x)

    assert (efficient_mprt(structured, model, x, target) > 0.5).all()


# ------------------------------------------------------------------------------------------------ the tools


def test_what_is_changed_inside_is_restored_buffers_too(model):
    before = bits(model)
    with pytest.raises(KeyError), restored(model):
        model.conv.weight.data.fill_(7)
        model.norm.running_mean.fill_(7)
        raise KeyError
    assert same(model, before)


def test_layers_are_those_that_run_in_the_order_in_which_they_do():
    assert weighted_layers(Scaled(), torch.rand(1, 1, 5, 5)) == ("stem", "head", "")
    assert weighted_layers(net(), images(1)) == ("conv", "norm", "head")


def test_parameters_outside_the_standard_layers_become_random_too():
    model = Scaled()
    before = bits(model)
    randomise(model, "", 0)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["gamma"] and (model.gamma - before["gamma"].mean()).abs().max() < 5 * before["gamma"].std()


def test_parameters_of_one_module_become_random_each_in_its_own_way():
    module = nn.Module()
    module.scale, module.shift, module.one = (nn.Parameter(torch.randn(n)) for n in (50, 50, 1))
    before = bits(module)
    randomise(module, "", 0)
    standard = [(new - new.mean()) / new.std() for new in (module.scale.detach(), module.shift.detach())]
    assert not torch.allclose(*standard, atol=0.1), "not the same draws"
    assert torch.equal(module.one, before["one"]), "a single number has a standard deviation of 0, not NaN"


def test_batch_norm_forgets_its_statistics():
    model = net()
    randomise(model, "norm", 0)
    assert (model.norm.running_var == 1).all() and (model.norm.weight == 1).all()


def test_rank_correlation_is_scipys():
    a, b = torch.randn(5, 40), torch.randn(5, 40)
    b[2] = b[2].round()  # ties
    expected = [spearmanr(one, other).statistic for one, other in zip(a, b, strict=True)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected)
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(5).double())
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(5).double())


def test_a_flat_row_agrees_with_flat_rows_only():
    flat, other = torch.ones(2, 5), torch.randn(2, 5)
    assert rank_correlation(flat, 3 * flat).tolist() == [1, 1]
    assert rank_correlation(flat, other).tolist() == rank_correlation(other, flat).tolist() == [0, 0]
