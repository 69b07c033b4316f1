"""The table of metrics, and every explainer scored by all of them in one call."""

import functools
import inspect
import subprocess
import sys

import pytest
import torch
from metric_nets import Additive, images, net

from helpers.attribution import constant_map, gradient, input_x_gradient, occlusion
from helpers.config import ROOT, ConfigError
from helpers.metrics import METRICS, compare, irof, local_lipschitz, mprt, sensitivity
from helpers.metrics.table import CONTROLS

QUICK = {
    "lipschitz": {"draws": 3},
    "sensitivity": {"draws": 3},
    "relative_stability": {"draws": 3, "radius": 0.01},
    "pixel_flipping": {"steps": 8},
    "faithfulness_correlation": {"draws": 20},
    "infidelity": {"draws": 20},
    "road": {"percentages": (30, 60)},
}
MASKED = {"pointing_game", "relevance_mass"}


@pytest.fixture
def model():
    return net()


@pytest.fixture
def x():
    return images(3)


@pytest.fixture
def target(model, x):
    return model(x).argmax(1)


@pytest.fixture
def masks(x):
    return (x[:, 0] > 0.6).float()


def test_all_metrics_of_all_explainers_are_one_tidy_table(model, x, target, masks):
    frame = compare({"gradient": gradient}, model, x, target, masks=masks, options=QUICK)
    assert list(frame.columns) == ["method", "metric", "image", "value"]
    assert len(frame) == 3 * len(METRICS) * 3 and not frame.duplicated(["method", "metric", "image"]).any()
    assert set(frame.method) == {"gradient", *CONTROLS} and set(frame.metric) == set(METRICS)
    assert set(frame.image) == {0, 1, 2} and frame.value.dtype == "float64"
    undefined = frame[frame.value.isna()]
    assert set(zip(undefined.method, undefined.metric, strict=True)) <= {("constant_map", "faithfulness_correlation")}


def test_a_value_is_that_of_the_metric_by_itself(model, x, target):
    frame = compare({"ours": gradient}, model, x, target, metrics=["irof", "lipschitz_max"], seed=3)
    values = frame[frame.method == "ours"].groupby("metric").value.apply(list)
    assert values["irof"] == irof(model, x, target, gradient(model, x, target)).aoc.tolist()
    assert values["lipschitz_max"] == local_lipschitz(gradient, model, x, target, scale="max", seed=3).tolist()


def test_of_several_values_each_name_takes_its_own(model, x, target):
    names = ["max_sensitivity", "avg_sensitivity", "mprt_last", "mprt_average"]
    frame = compare({"ours": gradient}, model, x, target, metrics=names, controls=False)
    values, random = sensitivity(gradient, model, x, target), mprt(gradient, model, x, target)
    expected = [values.maximum, values.average, random.last, random.average]
    assert frame.groupby("metric").value.apply(list)[names].tolist() == [each.tolist() for each in expected]


def test_a_constant_map_is_the_most_stable_and_says_nothing(model, x, target):
    frame = compare({}, model, x, target, metrics=["lipschitz_none", "max_sensitivity", "sparseness", "mprt_last"])
    values = frame.groupby(["method", "metric"]).value.mean()["constant_map"]
    assert values.to_dict() == {"lipschitz_none": 0, "max_sensitivity": 0, "sparseness": 0, "mprt_last": 1}


def test_directions_agree_with_the_contributions_of_an_additive_model(x):
    """What contributes beats its own opposite in every metric that can know."""
    weight = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3)) / 16
    names = ["irof", "pixel_flipping", "selectivity", "faithfulness_correlation"]
    methods = {"right": input_x_gradient, "wrong": lambda model, x, target: -input_x_gradient(model, x, target)}
    settings = {name: {"baseline": 0.0} for name in names}
    target = torch.ones(3, dtype=torch.long)
    frame = compare(methods, Additive(weight), x, target, metrics=names, options=settings, controls=False)
    means = frame.groupby(["metric", "method"]).value.mean()
    for name in names:
        assert (means[name, "right"] > means[name, "wrong"]) == (METRICS[name].better == "higher"), name


def test_metrics_that_need_masks_are_left_out_without_them(model, x, target):
    frame = compare({}, model, x[:1], target[:1], options=QUICK, controls=True)
    assert set(frame.metric) == set(METRICS) - MASKED
    with pytest.raises(ConfigError, match="needs masks"):
        compare({}, model, x, target, metrics=["pointing_game"])


def test_methods_of_any_options_will_do_and_controls_can_be_left_out(model, x, target):
    methods = {"occlusion": functools.partial(occlusion, window=4, stride=4), "flat": constant_map}
    frame = compare(methods, model, x, target, metrics=["complexity"], controls=False)
    assert list(frame.method.unique()) == ["occlusion", "flat"]


def test_maps_that_several_metrics_share_are_computed_once(model, x, target):
    calls = []

    def counting(model, x, target):
        calls.append(len(x))
        return gradient(model, x, target)

    names = [name for name in METRICS if name.startswith("lipschitz")]
    compare({"counting": counting}, model, x, target, metrics=names, options={"lipschitz": {"draws": 4}})
    assert calls == [3, 3 * 5]


def test_names_that_do_not_exist_are_refused_with_near_misses(model, x, target):
    with pytest.raises(ConfigError, match="unknown metric 'iorf': did you mean irof"):
        compare({}, model, x, target, metrics=["iorf"])
    with pytest.raises(ConfigError, match="unknown function 'lipshitz': did you mean lipschitz"):
        compare({}, model, x, target, options={"lipshitz": {}})
    with pytest.raises(ConfigError, match="irof has no option 'base_line': did you mean baseline"):
        compare({}, model, x, target, options={"irof": {"base_line": 0.0}})
    with pytest.raises(ConfigError, match="entropy has no option 'seed': it takes none"):
        compare({}, model, x, target, options={"entropy": {"seed": 1}})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_where_it_comes_from_and_which_values_are_better(name):
    metric = METRICS[name]
    assert metric.better in ("higher", "lower") and metric.source.startswith(("arXiv", "doi"))
    module = inspect.getmodule(metric.function)
    text = " ".join((metric.function.__doc__ + module.__doc__).split())
    assert metric.source in text and metric.better.removesuffix("er") in text.lower()


def test_nothing_heavy_is_imported_with_the_package():
    code = "import sys, helpers.metrics; print({'quantus', 'skimage', 'captum', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_an_explainer_of_ones_own_sees_the_model_in_eval_mode(x, target):
    seen = []

    def mine(model, x, target):
        seen.append([module.training for module in model.modules()])
        return x[:, 0]

    model = net().train()
    compare({"mine": mine}, model, x, target, metrics=["avg_sensitivity", "sparseness"], controls=False)
    assert not any(map(any, seen)) and all(module.training for module in model.modules())


def test_targets_may_be_a_list(model, x, target):
    given = {"metrics": ["sparseness", "pixel_flipping"], "controls": False}
    one, other = (compare({"own": gradient}, model, x, t, **given) for t in (target, target.tolist()))
    assert one.equals(other)
