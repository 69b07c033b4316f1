"""A layer that is tested again: without soft values it is discovery, repeated (spec explainnn, section 7.2)."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from causal_nets import Plain, Residual, images, make, naive_logits
from test_causal_discover import data, frequent

from helpers.causal_graphs.discover import REFERENCE, Discovery, choose, explain
from helpers.causal_graphs.engines import Samples, cut_logits, single_cuts
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.stability import (
    Pool,
    Sweep,
    by_beta,
    by_window,
    closed_form,
    frequencies,
    pairwise_jaccard,
    repeat,
)
from helpers.causal_graphs.statistics import Selection, describe, measure, select
from helpers.config import ConfigError
from helpers.data.images import Images

ANY = Selection(delta=0.0)
SHORT = Sweep(betas=(0.0, 0.2), runs=3, n_samples=12)


@pytest.fixture(scope="module")
def found():
    """(model, images, target, graph)"""
    model = make(Plain, torch.float32)
    pictures = data(model)
    target = frequent(pictures)
    return model, pictures, target, explain(model, pictures, target, n_samples=30, options=Discovery(selection=ANY))


# ------------------------------------------------------------------------------------------------ property 19


@pytest.mark.parametrize("reference", [False, True])
def test_without_soft_values_it_is_hard_discovery_with_the_same_seeds(found, reference):
    model, pictures, target, graph = found
    hard = REFERENCE.override({"soft": False}) if reference else Discovery(selection=ANY)
    runs = repeat(model, pictures, graph, "fc2", sweep=SHORT.override({"selection": hard.selection}))
    assert list(runs.columns) == ["beta", "run", "seed", "u", "n_images", "causes", "rule"]
    for row in runs[runs.beta == 0].itertuples():
        again = explain(model, pictures, target, n_samples=12, options=hard, seed=row.seed).layer("fc2")
        assert (row.causes, row.rule, row.u) == (again.causes, again.rule, 0)


@pytest.mark.parametrize("layer", ["fc1", "conv2"])
def test_lower_layers_are_tested_on_the_effects_of_the_graph(found, layer):
    model, pictures, target, graph = found
    link, effects = Network(model, pictures.inputs([0])).link(layer), graph.layer(layer).effects
    for row in repeat(model, pictures, graph, layer, sweep=SHORT).itertuples():
        x = pictures.inputs(choose(model, pictures, target, 12, seed=row.seed))
        with torch.no_grad():
            slow = naive_logits(model, link, single_cuts(range(link.inputs), effects), row.u, x)
            statistics = describe(measure(model(x), slow, target))
        assert row.causes == select(statistics, 12, ANY).causes


def test_the_last_layer_in_closed_form_equals_the_forward_passes():
    model, x = make(Plain), images(6, 2)
    network = Network(model, x)
    samples, link = Samples(network, x), network.link("fc2")
    cuts = single_cuts(range(6), (1,))
    for u in (0.0, 0.07, 0.4):
        exact = closed_form(samples.lower(link), link.weight()[1], u)
        with torch.no_grad():
            slow = naive_logits(model, link, cuts, u, x) - model(x)
        torch.testing.assert_close(exact, slow[:, :, 1])
        fast = cut_logits(samples, link, cuts, Intervention(amount=u))
        torch.testing.assert_close(exact, measure(samples.logits, fast, 1).d)


# ----------------------------------------------------------------------------------------------------- runs


def test_images_are_drawn_as_discovery_draws_them(found):
    model, pictures, target, _ = found
    pool = Pool(model, pictures, target)
    for seed in range(3):
        assert pool.draw(10, seed).equal(choose(model, pictures, target, 10, seed=seed))
    assert len(pool.draw(1000, 0)) == len(pool) == len(choose(model, pictures, target, 1000))
    with pytest.raises(ValueError, match="fewer than two images"):
        Pool(model, Images(pictures.x, (pictures.y + 1) % 3, pictures.classes, pictures.preprocess)[:3], target)


def test_a_run_is_the_same_on_any_grid_and_has_its_own_images_and_value(found):
    model, pictures, _, graph = found
    runs = repeat(model, pictures, graph, "fc1", sweep=SHORT)
    alone = repeat(model, pictures, graph, "fc1", sweep=SHORT.override({"betas": [0.2]}))
    pd.testing.assert_frame_equal(runs[runs.beta == 0.2].reset_index(drop=True), alone)
    assert runs.seed.nunique() == 6 and alone.u.nunique() == 3 and alone.u.between(0, 0.2).all()
    assert not runs.u.equals(repeat(model, pictures, graph, "fc1", sweep=SHORT, seed=1).u)
    assert json.loads(json.dumps(runs.to_dict("records")))[0]["causes"] == list(runs.causes[0])


def test_soft_values_replace_weights_in_units_of_their_spread_or_multiply_them(found):
    model = found[0]
    network = Network(model, found[1].inputs([0]))
    link = network.link("fc1")
    weight, spread = link.weight(), model.fc1.weight.std()
    changed = {kind: weight + SHORT.override({"kind": kind}).intervention(link, 0.3).kernel(link)
               for kind in ("value", "relative", "scale")}  # fmt: skip
    torch.testing.assert_close(changed["value"], torch.full_like(weight, 0.3))
    torch.testing.assert_close(changed["relative"], torch.full_like(weight, 0.3) * spread)
    torch.testing.assert_close(changed["scale"], 0.3 * weight)
    cut = {kind: repeat(*found[:2], found[3], "fc2", sweep=SHORT.override({"kind": kind, "betas": [0.0]}))
           for kind in changed}  # fmt: skip
    assert cut["value"].equals(cut["scale"]) and cut["value"].equals(cut["relative"])


def test_layers_without_a_test_are_refused(found):
    model, pictures, _, graph = found
    with pytest.raises(ConfigError, match="conv1 cannot be tested again"):
        repeat(model, pictures, graph, "conv1")
    with pytest.raises(ConfigError, match="no layer 'fc3' in the graph"):
        repeat(model, pictures, graph)


def test_skip_connections_can_be_tested_again():
    model = make(Residual, torch.float32)
    pictures = data(model, channels=3)
    target = frequent(pictures)
    graph = explain(model, pictures, target, n_samples=30, options=Discovery(selection=ANY))
    name = next(layer.layer for layer in graph.layers if layer.kind == "identity")
    runs = repeat(model, pictures, graph, name, sweep=SHORT.override({"kind": "relative"}))
    assert all(set(causes) <= set(graph.layer(name).tested) for causes in runs.causes)


# ------------------------------------------------------------------------------------------------ summaries


def table(rows):
    return pd.DataFrame([{"beta": b, "run": k, "u": b / 2, "causes": c} for b, of in rows.items()
                         for k, c in enumerate(of)])  # fmt: skip


def test_summaries_of_a_few_runs_by_hand():
    runs = table({0.0: [(1, 2), (1, 2)], 0.1: [(1,), (1, 2)], 0.2: [(), (3,)], 0.3: [(), ()]})
    facts = by_beta(runs)
    np.testing.assert_array_equal(facts.appearance, [1, 0.75, 0.5, np.nan])
    np.testing.assert_array_equal(facts.jaccard, [1, 0.5, 0, 0])
    np.testing.assert_array_equal(facts.jaccard_found, [1, 0.5, 0, np.nan])
    np.testing.assert_array_equal(facts["empty"], [0, 0, 0.5, 1])
    np.testing.assert_array_equal(facts.nodes, [2, 1.5, 0.5, 0])
    windows = by_window(runs, 0.2)
    assert list(windows.columns) == ["low", "high", "nodes", "empty", "1/2", "2/2"]
    assert windows.loc[0].tolist() == [0, 0.2, 1.75, 0, 0.25, 0.75]
    assert len(windows) == 2 and windows.loc[1, ["nodes", "empty", "1/2"]].tolist() == [0.25, 0.75, 1]


def test_the_default_grid_has_five_windows_and_its_end_belongs_to_the_last():
    betas = Sweep().betas
    assert len(betas) == 51 and betas[-1] == 0.5
    windows = by_window(table({b: [(1,)] for b in betas}))
    assert windows.low.round(9).tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    runs = table({b: [(round(100 * b),)] for b in betas})
    assert len(by_window(runs)) == 5 and by_beta(runs).index.tolist() == list(betas)


def test_empty_sets_count_nothing_or_are_left_out():
    assert pairwise_jaccard([(), (), (1,)]) == 0 and np.isnan(pairwise_jaccard([(), ()], empty=None))
    assert pairwise_jaccard([(), ()], empty=1.0) == 1 and np.isnan(pairwise_jaccard([(1,)]))
    assert frequencies([(1, 2), (2,)]) == {1: 0.5, 2: 1.0} and frequencies([()]) == {}
