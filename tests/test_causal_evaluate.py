"""Maps are scored beside the controls, baselines have the release's settings, and effects need trained weights (spec
explainnn, sections 4 to 6 and 13)."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from causal_nets import Plain, Residual, images, make
from torch import nn

from helpers import attribution, metrics, runtime
from helpers.artifacts import ArtifactError
from helpers.causal_graphs.discover import REFERENCE, Discovery, discover
from helpers.causal_graphs.engines import Samples
from helpers.causal_graphs.evaluate import (
    BASELINES,
    CAUSAL,
    SCORED,
    SCORES,
    SHOWN,
    baselines,
    causal,
    compare,
    effect_mprt,
    read,
    summarise,
    write,
)
from helpers.causal_graphs.heatmaps import explainer
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.models import LeNet
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.statistics import Selection
from helpers.config import ConfigError
from helpers.metrics.randomisation import randomise, weighted_layers

FEW = {"lipschitz": {"draws": 2}, "irof": {"baseline": 0.0}}


def walked(model, x, target=0, **options):
    options = {"selection": Selection(delta=0.0)} | options
    return discover(Samples(Network(model, x[:1]), x), target, Discovery(**options))


@pytest.fixture(scope="module")
def lenet():
    """(a LeNet at its initialisation, images, the graph of class 3)."""
    with runtime.seeded(0, "test"):
        model = LeNet().eval()
    x = images(30, 1, 32, torch.float32)
    return model, x, walked(model, x, 3)


@pytest.fixture(scope="module")
def frame(lenet):
    model, x, graph = lenet
    explainers = causal(graph, ("reference", "spatial_do_2x2")) | baselines(("gradient",))
    return compare(explainers, model, x[:3], torch.full((3,), 3), options=FEW)


# -------------------------------------------------------------------------------------------------------- comparing


def test_there_is_a_value_for_each_method_metric_and_image_and_always_the_controls(frame):
    assert list(frame.columns) == ["method", "metric", "image", "value"]
    methods = ["reference", "spatial_do_2x2", "gradient", "constant_map", "random_map"]
    assert list(frame.method.unique()) == methods and set(frame.metric) == set(SCORES)
    assert len(frame) == len(methods) * len(SCORES) * 3 and frame.value.notna().all()
    stable = frame[(frame.method == "constant_map") & frame.metric.str.startswith("lipschitz")]
    assert (stable.value == 0).all()  # and so stability alone says nothing


def test_scores_are_those_of_the_metrics_themselves(lenet, frame):
    model, x, graph = lenet
    target, explain = torch.full((3,), 3), explainer(graph, cell=2)
    rows = frame[frame.method == "spatial_do_2x2"].set_index("metric").value
    expected = metrics.irof(model, x[:3], target, explain(model, x[:3], target), baseline=0.0).aoc
    assert rows["irof"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    expected = metrics.local_lipschitz(explain, model, x[:3], target, scale="minmax", draws=2)
    assert rows["lipschitz_minmax"].tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_summary_has_means_with_their_standard_errors(frame):
    table = summarise(frame).set_index(["method", "metric"])
    values = frame[(frame.method == "gradient") & (frame.metric == "irof")].value
    row = table.loc["gradient", "irof"]
    assert row["mean"] == pytest.approx(values.mean()) and row.images == 3 and row.better == "higher"
    assert row.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert table.loc["random_map", "lipschitz_max"].better == "lower"
    gap = frame.assign(seed=1, value=frame.value.where(frame.image > 0))
    by_seed = summarise(pd.concat([gap, frame.assign(seed=2)]), ("seed", "method", "metric"))
    assert by_seed.groupby("seed").images.unique().tolist() == [[2], [3]]


def test_scores_come_back_from_a_file_for_each_metric(frame, tmp_path):
    paths = write(frame.assign(target=3), tmp_path, "LeNet")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"evaluation_metrics/LeNet/{metric}.csv" for metric in frame.metric.unique()
    ]
    again = read(tmp_path, "LeNet")
    assert (again.target == 3).all()
    order = ["metric", "method", "image"]
    pd.testing.assert_frame_equal(
        again[list(frame)].sort_values(order, ignore_index=True), frame.sort_values(order, ignore_index=True)
    )
    first = paths[0].read_bytes()
    write(frame.assign(target=3), tmp_path, "LeNet")
    assert paths[0].read_bytes() == first
    paths[0].write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="holds no scores"):
        read(tmp_path, "LeNet")
    with pytest.raises(ArtifactError, match="there are no scores"):
        read(tmp_path, "ResNet18")


# -------------------------------------------------------------------------------------------------------- baselines


def test_every_baseline_runs_on_our_lenet_with_the_releases_settings(lenet):
    model, x, _ = lenet
    cheap = {"lime": {"samples": 16}, "rise": {"samples": 8}, "integrated_gradients": {"steps": 4}}
    for name, options in BASELINES.items():
        options = {**options, **cheap.get(name, {})} | ({"layer": "conv2"} if name == "grad_cam" else {})
        heat = attribution.explainer(name, **options)(model, x[:2], torch.tensor([3, 8]))
        assert heat.shape == (2, 32, 32) and heat.isfinite().all()
    assert set(SHOWN) | set(SCORED) <= set(BASELINES) and set(baselines()) == set(SCORED)
    assert BASELINES["integrated_gradients"] == {"steps": 100, "baseline": 0.0}
    assert BASELINES["occlusion"] == {"window": 15, "stride": 8}
    assert (baselines(("gradient",))["gradient"](model, x[:2], torch.tensor([3, 8])) >= 0).all()  # absolute


def test_guided_backpropagation_is_not_the_gradient_on_our_lenet(lenet):
    """Property 17. With functional ReLUs and hooks on modules it silently was."""
    model, x, _ = lenet
    target = torch.full((4,), 3)
    maps = {name: explain(model, x[:4], target) for name, explain in baselines(SHOWN).items()}
    for name in ("guided_backprop", "deconvolution"):
        assert not torch.allclose(maps[name], maps["gradient"], rtol=0.1)
    product = maps["input_x_gradient"]
    for name in ("deep_lift", "lrp"):
        heat = baselines((name,))[name](model, x[:4], target)
        assert not torch.allclose(heat, product, rtol=0.1)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 4


# ------------------------------------------------------------------------------------------------------ random weights


def test_maps_change_when_weights_are_randomised(lenet):
    """Property 17, of maps."""
    model, x, graph = lenet
    target, before = torch.full((3,), 3), {k: v.clone() for k, v in model.state_dict().items()}
    for name in ("spatial_do_2x2", "act_grad"):
        result = metrics.mprt(causal(graph)[name], model, x[:3], target, magnitudes=False)
        assert result.layers[0] == "fc3" and result.correlation[-1].abs().mean() < 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_effects_have_no_rank_correlation_with_those_of_random_weights(lenet):
    """Property 17, of graphs: the same cuts, in networks of other weights."""
    model, x, graph = lenet
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    table = effect_mprt(graph, model, x, draws=6)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    assert list(table.layer[:4]) == ["fc3", "fc2", "fc1", "conv2"] and list(table.nodes[:4]) == [84, 120, 16, 6]
    assert len(table) == 6 * 4 and table.draw.nunique() == 6
    wide = table[table.nodes > 50]
    assert abs(wide.rank_correlation.mean()) < 0.1 and (wide.rank_correlation.abs() < 0.4).all()
    assert wide.jaccard.max() < 0.6
    pd.testing.assert_frame_equal(table, effect_mprt(graph, model, x, draws=6))
    assert list(effect_mprt(graph, model, x, draws=1, seed=1).rank_correlation) != list(table.rank_correlation[:4])


def test_a_graph_of_random_weights_is_another_graph(lenet):
    model, x, graph = lenet
    other = copy.deepcopy(model)
    for name in weighted_layers(other, x[:1]):
        randomise(other, name, 7)
    changed = graph.compare(walked(other, x, 3))
    assert changed.loc["whole", "jaccard"] < 0.5 and abs(changed.loc["fc3", "rank_correlation"]) < 0.4


@pytest.mark.parametrize(
    "options",
    [{}, {"soft": True}, {"intervention": Intervention(kind="scale", amount=0.5)}, {"effect": "contrast", "other": 2}],
)
def test_the_same_weights_have_the_same_effects(options, monkeypatch):
    """Asked again without randomising anything, every layer answers as before."""
    from helpers.causal_graphs import evaluate

    monkeypatch.setattr(evaluate, "randomise", lambda *args: None)
    model, x = make(Plain), images(30, 2)
    table = effect_mprt(walked(model, x, 0, **options), model, x, draws=1)
    assert table.rank_correlation.tolist() == pytest.approx([1, 1, 1])
    assert (table.jaccard == 1).all()


def test_skip_connections_are_asked_again_too():
    model, x = make(Residual), images(30)
    graph = walked(model, x, 1)
    table = effect_mprt(graph, model, x, draws=2)
    assert "block3.skip" in set(table.layer) and table[table.nodes > 1].rank_correlation.notna().all()
    assert table[table.nodes < 2].rank_correlation.isna().all()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_is_refused_with_the_reason(lenet):
    model, x, graph = lenet
    target = torch.full((2,), 3)
    with pytest.raises(ConfigError, match="did you mean gradient"):
        baselines(("gradients",))
    with pytest.raises(ConfigError, match="needs the option 'layer'"):
        baselines(("grad_cam",))
    assert baselines(("grad_cam",), layer="conv2")["grad_cam"](model, x[:2], target).shape == (2, 32, 32)
    with pytest.raises(ConfigError, match="did you mean spatial_do_"):
        causal(graph, ("spatial_do",))
    with pytest.raises(ConfigError, match="random_map: controls are there anyway"):
        compare({"random_map": attribution.constant_map}, model, x[:2], target)
    with pytest.raises(ConfigError, match="unknown metric 'iroff'"):
        compare({}, model, x[:2], target, scores=("iroff",))
    with pytest.raises(ConfigError, match="no layer 'fc3'"):
        effect_mprt(graph, make(Plain, torch.float32), images(4, 2, dtype=torch.float32))
    assert set(causal(graph)) == set(CAUSAL)
    assert REFERENCE.soft  # graphs of the release's mode can be asked again: each layer keeps its own u


def test_every_draw_has_weights_of_its_own():
    model, x = make(Plain), images(30, 2)
    table = effect_mprt(walked(model, x), model, x, draws=3)
    assert len({tuple(rows.rank_correlation) for _, rows in table.groupby("draw")}) == 3


def test_a_graph_that_was_filtered_is_asked_what_it_was_measured_by(monkeypatch):
    """Its layers show fewer effects than the cut edges led into; the statistics are of all of these."""
    monkeypatch.setattr("helpers.causal_graphs.evaluate.randomise", lambda *args: None)
    model, x = make(Plain), images(30, 2)
    graph = walked(model, x).refilter(Selection(delta=0.2))
    assert any(layer.effects and layer.effects != layer.measured_effects for layer in graph.layers)
    table = effect_mprt(graph, model, x, draws=1)
    assert table.rank_correlation.tolist() == pytest.approx([1] * len(table))
