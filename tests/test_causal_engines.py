"""The engines of `causal_graphs` agree with the literal loop, on every kind of layer (spec explainnn, 9.6 and 13)."""

import pytest
import torch
from causal_nets import Depthwise, Fire, Plain, Residual, images, make, naive_logits
from torch import nn

from helpers.causal_graphs import engines
from helpers.causal_graphs.engines import Cut, Samples, cut_logits, single_cuts
from helpers.causal_graphs.interventions import Intervention, derangement
from helpers.causal_graphs.network import Chain, Network
from helpers.config import ConfigError

KINDS = {Plain: 2, Residual: 3, Depthwise: 3, Fire: 3}
HARD, SOFT = Intervention(), Intervention(amount=0.1)


def setup(kind, n=4, **options):
    model, x = make(kind), images(n, KINDS[kind])
    network = Network(model, x[:1])
    return model, network, Samples(network, x, **options)


def cases(link, seed=0):
    """Every lower node into random effects, one edge at a time, and a group."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randperm(link.outputs, generator=generator)[: max(2, link.outputs // 2)] + link.offset
    effects = tuple(sorted(effects.tolist()))
    edges = [Cut((i,), (e,)) for i in range(link.inputs) for e in effects[:2]]
    return [single_cuts(range(link.inputs), effects), edges, [Cut((0, link.inputs - 1), effects)]]


@pytest.mark.parametrize("kind", KINDS)
def test_delta_engine_equals_the_naive_loop(kind):
    """For u = 0 and u = 0.1, every layer and skip connection, random effects, single edges and groups."""
    model, network, samples = setup(kind)
    for link in network.links.values():
        if link.kind == "identity" and kind is Fire:
            continue  # its skip has no weight to edit; see below
        for cuts in cases(link):
            for intervention in (HARD, SOFT):
                ours = cut_logits(samples, link, cuts, intervention)
                naive = naive_logits(model, link, cuts, intervention.amount, samples.x)
                assert (ours - naive).abs().max() <= 1e-10 * naive.abs().clamp(min=1).max(), (link.name, intervention)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_engine_equals_the_delta_engine(kind):
    _, network, samples = setup(kind)
    for link in network.links.values():
        if link.kind == "identity":
            with pytest.raises(ConfigError, match="take 'delta'"):
                cut_logits(samples, link, cases(link)[0], HARD, engine="vmap")
            continue
        for cuts in cases(link):
            for intervention in (HARD, SOFT, Intervention(kind="scale", amount=0.3)):
                two = [cut_logits(samples, link, cuts, intervention, engine=engine) for engine in ("delta", "vmap")]
                torch.testing.assert_close(*two, rtol=1e-10, atol=1e-10)


def test_float32_agrees_within_the_protocols_tolerance():
    model, x = make(Residual, torch.float32), images(dtype=torch.float32)
    samples = Samples(network := Network(model, x[:1]), x)
    for link in network.links.values():
        cuts = cases(link)[0]
        naive = naive_logits(model, link, cuts, 0.1, x)
        assert (cut_logits(samples, link, cuts, SOFT) - naive).abs().max() <= 1e-4 * naive.abs().clamp(min=1).max()


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_chunks(kind, monkeypatch):
    _, network, whole = setup(kind)
    _, _, chunked = setup(kind)
    chunked.chunk_bytes, chunked._rows, chunked._kept = 1, 3, []
    for link in network.links.values():
        for cuts in cases(link):
            one, other = (cut_logits(s, link, cuts, Intervention(kind="resample")) for s in (whole, chunked))
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------- kinds of intervention


def test_cutting_all_outputs_equals_zeroing_the_input_channel():
    """Property 3, for convolutions, the flatten boundary and linear layers."""
    model, network, samples = setup(Plain)
    for name, zero in {"conv2": "relu1", "fc1": "relu2", "fc2": "relu3"}.items():
        link = network.link(name)
        cut = cut_logits(samples, link, single_cuts(range(link.inputs), range(link.outputs)), HARD)
        for i in range(link.inputs):
            dead = torch.tensor([i])
            hook = lambda module, args, out, dead=dead: out.index_fill(1, dead, 0)  # noqa: E731
            handle = model.get_submodule(zero).register_forward_hook(hook)
            with torch.no_grad():
                torch.testing.assert_close(cut[i], model(samples.x))
            handle.remove()


def test_last_layer_moves_the_logit_by_the_weights_change_times_the_activation():
    """Property 2, and 4: a weight overwritten by itself changes nothing."""
    model, network, samples = setup(Plain)
    link, a = network.link("fc2"), samples.lower(network.link("fc2"))
    for u in (0.0, 0.25, float(model.fc2.weight[1, 0])):
        d = cut_logits(samples, link, single_cuts(range(6), [1]), Intervention(amount=u)) - samples.logits
        torch.testing.assert_close(d[..., 1], ((u - model.fc2.weight[1]) * a).T.detach())
        assert (d[..., [0, 2]] == 0).all()
    assert (d[0] == 0).all()


def test_an_edge_without_weight_or_activation_has_no_effect():
    """Property 1."""
    model = make(Plain)
    with torch.no_grad():
        model.conv2.weight[:, 1] = 0
        model.conv1.weight[2], model.conv1.bias[2] = 0, -1  # dead behind its ReLU
    x = images(4, 2)
    samples = Samples(network := Network(model, x[:1]), x)
    cuts = single_cuts([1, 2], range(5))
    assert (cut_logits(samples, network.link("conv2"), cuts, HARD)[0] == samples.logits).all()
    assert (cut_logits(samples, network.link("conv2"), cuts, Intervention(amount=3.0))[1] == samples.logits).all()


def by_hand(model, network, link, i, effects, replace, x):
    """Logits when the lower node ``i``, for the chosen effects only, holds ``replace(values)`` [N, ...]."""

    def hook(module, args, output):
        lower = args[0].clone()
        lower[:, i] = replace(lower[:, i])
        changed = module.forward(lower)
        mixed = output.clone()
        mixed[:, list(effects)] = changed[:, list(effects)]
        return mixed

    handle = model.get_submodule(link.name).register_forward_hook(hook)
    with torch.no_grad():
        logits = model(x)
    handle.remove()
    return logits


def test_mean_and_resample_feed_other_values_to_the_chosen_edges():
    model, network, samples = setup(Plain, n=5)
    link, effects = network.link("conv2"), (0, 3)
    cuts = single_cuts(range(link.inputs), effects)
    ours = cut_logits(samples, link, cuts, Intervention(kind="mean"))
    for i in range(link.inputs):
        wanted = by_hand(model, network, link, i, effects, lambda a: a.mean().expand_as(a), samples.x)
        torch.testing.assert_close(ours[i], wanted)
    partner = derangement(5, 7, "conv2")
    ours = cut_logits(samples, link, cuts, Intervention(kind="resample"), seed=7)
    for i in range(link.inputs):
        wanted = by_hand(model, network, link, i, effects, lambda a: a[partner], samples.x)
        torch.testing.assert_close(ours[i], wanted)
    assert sorted(partner.tolist()) == list(range(5)) and (partner != torch.arange(5)).all()


def test_mean_of_a_flattened_channel_is_one_number():
    _, network, samples = setup(Plain, n=5)
    link = network.link("fc1")
    moved = Intervention(kind="mean").lower(link, a := samples.lower(link))
    means = a.view(5, 5, 4).mean((0, 2))
    torch.testing.assert_close(moved, means.repeat_interleave(4) - a)


def test_scale_and_additive_change_the_weights_as_they_say():
    model, network, samples = setup(Plain)
    link = network.link("conv1")
    torch.testing.assert_close(Intervention(kind="scale", amount=1.0).kernel(link), HARD.kernel(link))
    noise = Intervention(kind="additive", amount=2.0).kernel(link, seed=1)
    torch.testing.assert_close(noise, Intervention(kind="additive", amount=2.0).kernel(link, seed=1))
    assert not torch.equal(noise, Intervention(kind="additive", amount=2.0).kernel(link, seed=2))
    assert 1.5 < float(noise.std() / model.conv1.weight.std()) < 2.5


def test_a_grouped_layer_gains_no_edge_under_a_soft_value():
    _, network, samples = setup(Fire)
    link = network.link("three")
    d = cut_logits(samples, link, [Cut((0,), (9, 10))], Intervention(amount=5.0)) - samples.logits
    assert link.offset == 7 and (d == 0).all()


# ------------------------------------------------------------------------------------------- nothing is changed


@pytest.mark.parametrize("engine", ["delta", "vmap"])
def test_the_model_is_bit_identical_afterwards_also_after_an_exception(engine, monkeypatch):
    """Property 5."""
    model, network, samples = setup(Residual)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    link = network.link("block2.conv2")
    cut_logits(samples, link, cases(link)[0], SOFT, engine=engine)
    monkeypatch.setattr(engines.torch, "vmap", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(network, "resume", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cut_logits(samples, link, cases(link)[0], SOFT, engine=engine)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_recorded_values_survive_layers_that_work_in_place():
    _, network, samples = setup(Residual)
    before = {name: value.clone() for _, values in samples.blocks() for name, value in values.items()}
    for link in network.links.values():
        cut_logits(samples, link, cases(link)[0], HARD)
    assert all(torch.equal(before[name], value) for _, values in samples.blocks() for name, value in values.items())


# ----------------------------------------------------------------------------------------------------- bad input


def test_wrong_nodes_engines_and_logits_are_refused():
    model, network, samples = setup(Plain)
    link = network.link("fc2")
    with pytest.raises(ValueError, match="lower nodes 0..5"):
        cut_logits(samples, link, [Cut((6,), (0,))], HARD)
    with pytest.raises(ValueError, match="nodes 0..2"):
        cut_logits(samples, link, [Cut((0,), (3,))], HARD)
    for cut in (Cut((1, 1), (0,)), Cut((1,), (0, 0))):
        with pytest.raises(ValueError, match="names each node once"):
            cut_logits(samples, link, [cut], HARD)
    with pytest.raises(ConfigError, match="did you mean delta"):
        cut_logits(samples, link, [Cut((0,), (0,))], HARD, engine="detla")
    assert cut_logits(samples, link, [], HARD).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="no image"):
        Samples(network, samples.x[:0])
    with pytest.raises(ValueError, match="not finite"):
        Samples(network, samples.x * torch.nan)


class Untraceable(Plain):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_traced_runs_as_a_chain():
    traced, network, samples = setup(Plain)
    model = make(Untraceable)
    with pytest.raises(ConfigError, match="Chain"):
        Network(model, samples.x[:1])
    chain = Chain(model, samples.x[:1], ["conv1", "conv2", "fc1", "fc2"])
    assert {n: s.size for n, s in chain.spaces.items()} == {n: s.size for n, s in network.spaces.items()}
    same = Samples(Chain(traced, samples.x[:1], ["conv1", "conv2", "fc1", "fc2"]), samples.x)
    for name, link in chain.links.items():
        cuts = cases(link)[0]
        ours = cut_logits(same, link, cuts, SOFT, engine="vmap")
        torch.testing.assert_close(ours, cut_logits(samples, network.link(name), cuts, SOFT))
        with pytest.raises(ConfigError, match="vmap"):
            cut_logits(same, link, cuts, SOFT)
    with pytest.raises(ConfigError, match="did you mean fc2 or fc1"):
        Chain(model, samples.x[:1], ["conv1", "fc"])
    with pytest.raises(ConfigError, match="cannot feed"):
        Chain(model, samples.x[:1], ["conv1", "fc2"])


def test_every_layer_resamples_from_images_of_its_own():
    """Streams of one seed: were it one for all layers, an image would lend its values to the same other everywhere."""
    drawn = [derangement(50, 0, name).tolist() for name in ("conv1", "conv2")]
    assert drawn[0] != drawn[1] and drawn[0] == derangement(50, 0, "conv1").tolist()


class InPlace(nn.Module):
    """A function and a method that overwrite what they are given."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        x = nn.functional.relu(self.conv1(x), inplace=True)
        return self.fc(self.conv2(x).relu_().mean((2, 3)))


class Underscored(InPlace):
    """Functions whose name says it."""

    def forward(self, x):
        x = nn.functional.relu_(self.conv1(x))
        return self.fc(torch.relu_(self.conv2(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", [InPlace, Underscored])
def test_recorded_values_survive_functions_and_methods_that_work_in_place(kind):
    model, x = make(kind), images(4, 2)
    network = Network(model, x[:1])
    values, below = network.record(x), model.conv1(x).detach()
    torch.testing.assert_close(values["conv1"], below)
    torch.testing.assert_close(values["conv2"], model.conv2(below.relu()).detach())
    assert (values["conv1"] < 0).any() and (values["conv2"] < 0).any()


class Beside(InPlace):
    """A vector of channels, and beside it every pixel of another layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5 + 4 * 36, 3)

    def forward(self, x):
        a = self.conv1(x)
        return self.fc(torch.cat([self.conv2(a).mean((2, 3)), a.flatten(1)], 1))


def test_channels_and_pixels_side_by_side_are_refused():
    """The linear layer's columns would be told to the wrong nodes."""
    with pytest.raises(ConfigError, match="cat"):
        Network(make(Beside), images(1, 2))


class Sized(InPlace):
    def forward(self, x):
        n = x.size(0)
        return self.fc(self.conv2(self.conv1(x).relu()).mean((2, 3)).view(n, -1))


def test_a_network_that_reads_the_size_of_its_input_is_refused_in_words():
    model, x = make(Sized), images(4, 2)
    network = Network(model, x[:1])
    with pytest.raises(ConfigError, match=r"write x\.flatten\(1\)"):
        cut_logits(Samples(network, x), network.links["conv2"], single_cuts([0], [0]), HARD)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_are_made_of_others_are_cut_by_one_engine_and_refused_by_the_other(norm):
    model, x = make(InPlace), images(4, 2)
    network = Network(norm_of(model, norm), x[:1])
    samples, link = Samples(network, x), network.links["conv2"]
    found = cut_logits(samples, link, single_cuts([1], range(5)), HARD)
    with torch.no_grad():
        below = model.conv1(x).relu()
        below[:, 1] = 0
        expected = model.fc(model.conv2(below).relu().mean((2, 3)))
    torch.testing.assert_close(found[0], expected)
    with pytest.raises(ConfigError, match="take 'delta'"):
        cut_logits(samples, link, single_cuts([1], range(5)), HARD, engine="vmap")


def norm_of(model, norm):
    model.conv2 = norm(model.conv2)
    return model.eval()


def test_noise_on_a_grouped_convolution_has_the_spread_of_its_own_weights():
    class Grouped(InPlace):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv2d(4, 8, 3, groups=4)
            self.fc = nn.Linear(8, 3)

    network = Network(make(Grouped), images(1, 2))
    link, noise = network.links["conv2"], Intervention(kind="additive", amount=1.0)
    one, other = noise.kernel(link), Intervention(kind="additive", amount=2.0).kernel(link)
    torch.testing.assert_close(2 * one, other)
    drawn = one[one != 0]
    assert len(drawn) == link.module.weight.numel()
    assert float(drawn.std() / link.module.weight.std()) == pytest.approx(1, abs=0.2)
