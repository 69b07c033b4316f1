"""What `evaluate` reports of a net: every metric, of the explanations asked for, and that it changes nothing."""

import math

import pytest
import torch
from pandas import DataFrame, concat

from helpers import runtime
from helpers.config import ConfigError
from helpers.data.images import Preprocess
from helpers.self_explaining import consolidation, evaluate, lsx, removal
from helpers.self_explaining.evaluate import (
    LABELS,
    METRICS,
    NORMS,
    accuracy,
    critic_accuracy,
    critic_curve,
    explanations,
    summarise,
)
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.models import Net1
from helpers.self_explaining.presets import Explanation
from helpers.self_explaining.sets import Sets

CLASSES, TESTED = 3, 40
REMOVAL = [name for name in METRICS if name.startswith(("comprehensiveness", "sufficiency"))]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def net(seed=0):
    with runtime.seeded(seed, "init"):
        return Net1(1, CLASSES, widths=(2, 3), hidden=8)


def pictures(count, name):
    """A bright bar whose height is the class, on noise."""
    y = torch.arange(count) % CLASSES
    x = 0.1 * torch.rand(count, 1, 28, 28, generator=runtime.generator(0, name)) - 0.4
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 4 + 8 * label : 8 + 8 * label, 6:22] += 2
    return x, y


@pytest.fixture
def data():
    (x, y), (critic_x, critic_y), (test_x, test_y) = (
        pictures(n, name) for name, n in (("a", 30), ("b", 48), ("c", TESTED))
    )
    decoy = torch.zeros(TESTED, 28, 28, dtype=torch.bool)
    decoy[:, :4, :4] = True
    return Sets(
        x=x, y=y, critic_x=critic_x.unflatten(0, (6, 8)), critic_y=critic_y.view(6, 8), critic_rows=None,
        test_x=test_x, test_y=test_y, classes=("0", "1", "2"), preprocess=Preprocess(size=28), test_decoy=decoy,
    )  # fmt: skip


def without(data, **changes):
    return Sets(**{**vars(data), **changes})


def records(data, model=None, encoder=None, options=None, **settings):
    settings = {"critic": "MLP", "critics": 1, "batch": 16, "labels": ["true"], **settings}
    return evaluate.evaluate(model or net(), encoder, data, options or Explanation(), **settings)


def values(found, **columns):
    """By (metric, percent)."""
    chosen = [r for r in found if all(r[name] == value for name, value in columns.items())]
    return {(r["metric"], r["percent"]): r["value"] for r in chosen}


# ------------------------------------------------------------------------------------------------------ the report


def test_every_metric_is_there_under_every_norm_and_label(data):
    found = records(data, encoder=net(1), norms=NORMS, labels=LABELS)
    assert {r["metric"] for r in found} == set(METRICS)
    for norm in NORMS:
        for label in LABELS:
            some = values(found, norm=norm, label=label)
            assert len(some) == len(METRICS) + len(REMOVAL) * len(removal.PERCENTS)
            assert all(math.isfinite(value) for value in some.values())
    assert len({(r["metric"], r["percent"], r["norm"], r["label"]) for r in found}) == len(found)


def test_records_hold_what_the_metrics_say(data):
    model, encoder, options = net(), net(1), Explanation(norm="sample")
    found = values(records(data, model, encoder, options, seed=3))
    maps = explain(model, data.test_x, data.test_y, options)
    heat = maps[:, 0]
    assert found["accuracy", None] == pytest.approx(
        100 * (model(data.test_x).argmax(1) == data.test_y).float().mean().item()
    )
    assert found["ridge_accuracy", None] == consolidation.ridge_accuracy(maps, data.test_y)
    with torch.no_grad():
        similarity = consolidation.similarity(encoder.encode(maps), data.test_y)
    assert found["iies", None] == pytest.approx(similarity.iies, rel=1e-4)
    assert found["decoy_mass", None] == pytest.approx(removal.decoy_mass(heat, data.test_decoy), rel=1e-5)
    for name, how, more in (("value", removal.by_value, {}), ("area", removal.by_area, {"seed": 3})):
        control, table = (
            how(model, data.test_x, data.test_y, h, **more) for h in (removal.random_heat(data.test_x, 3), heat)
        )
        for metric, score in removal.score(table, control).items():
            each = [found[f"{metric}_{name}", percent] for percent in removal.PERCENTS]
            assert found[f"{metric}_{name}", None] == pytest.approx(score) == pytest.approx(sum(each) / 5)
    table = removal.by_rank(model, data.test_x, heat, seed=3)
    assert found["sufficiency_rank", None] == removal.falls(table)["sufficiency"]
    assert found["comprehensiveness_rank", 5] == pytest.approx(table.fall[1])


def test_one_call_for_both_norms_says_what_two_calls_say(data):
    together = records(data, norms=NORMS)
    for norm in NORMS:
        alone = values(records(data, options=Explanation(norm=norm)))
        assert values(together, norm=norm) == pytest.approx(alone, rel=1e-6)


def test_the_norm_and_the_batch_decide_what_the_scale_decides(data):
    """Why both are reported."""
    scaled = {norm: values(records(data, encoder=net(1), norms=[norm])) for norm in NORMS}
    assert scaled["batch"]["iies", None] != scaled["sample"]["iies", None]
    assert scaled["batch"]["iies", None] != values(records(data, encoder=net(1), batch=8))["iies", None]
    alone = values(records(data, encoder=net(1), norms=["sample"], batch=8))
    assert scaled["sample"]["iies", None] == pytest.approx(alone["iies", None], rel=1e-4)


def test_explanations_of_the_predicted_label_are_others_where_the_net_is_wrong(data):
    model = net()
    guessed = model(data.test_x).argmax(1)
    assert 0 < (guessed == data.test_y).sum() < TESTED
    true, predicted = (values(records(data, model, labels=[label], norms=["sample"])) for label in LABELS)
    assert true["accuracy", None] == predicted["accuracy", None]
    assert true["decoy_mass", None] != predicted["decoy_mass", None]
    expected = explain(model, data.test_x, guessed, Explanation(norm="sample"))[:, 0]
    assert predicted["decoy_mass", None] == pytest.approx(removal.decoy_mass(expected, data.test_decoy), rel=1e-5)


def test_removal_can_be_kept_to_the_first_images(data):
    first = without(data, test_x=data.test_x[:16], test_y=data.test_y[:16], test_decoy=data.test_decoy[:16])
    few, all_of_few = values(records(data, images=16)), values(records(first))
    for name in REMOVAL:
        assert few[name, None] == pytest.approx(all_of_few[name, None])
    assert few["decoy_mass", None] != all_of_few["decoy_mass", None]


def test_without_an_encoder_or_decoys_there_is_nothing_of_them(data):
    found = records(without(data, test_decoy=None))
    missing = {*consolidation.Similarity._fields, "decoy_mass"}
    assert {r["metric"] for r in found} == set(METRICS) - missing


def test_the_same_seed_gives_the_same_numbers_and_nothing_is_changed(data):
    model = net().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state, x = torch.get_rng_state(), data.test_x.clone()
    found = records(data, model, encoder=net(1))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(data.test_x, x)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert records(data, model, encoder=net(1)) == found


def test_one_class_alone_has_no_similarity(data):
    found = values(records(without(data, test_y=torch.zeros_like(data.test_y)), encoder=net(1)))
    assert math.isnan(found["iies", None]) and found["ridge_accuracy", None] == 100


def test_explanations_that_are_not_finite_are_refused(data):
    model = net()
    with torch.no_grad():
        model.conv1.weight[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        records(data, model)


def test_a_label_that_is_none_is_refused(data):
    with pytest.raises(ConfigError, match="unknown label 'predict': did you mean predicted"):
        records(data, labels=["predict"])


# ------------------------------------------------------------------------------------------------------- its parts


def test_accuracy_is_the_share_of_hits_in_eval_mode(data):
    class Constant(torch.nn.Module):
        def forward(self, x):
            assert not self.training
            return torch.tensor([[0.1, 0.7, 0.2]]).log().expand(len(x), -1)

    model = Constant()
    assert accuracy(model, data.test_x, data.test_y) == pytest.approx(100 * 13 / 40) and model.training


def test_maps_are_made_in_batches_of_the_size_asked_for(data):
    model = net()
    maps = explanations(model, data.test_x, data.test_y, Explanation(), 16)
    assert maps.shape == data.test_x.shape
    for rows in (slice(0, 16), slice(16, 32), slice(32, 40)):
        expected = explain(model, data.test_x[rows], data.test_y[rows], Explanation())
        torch.testing.assert_close(maps[rows], expected, rtol=1e-4, atol=1e-6)


def test_a_critic_of_the_images_themselves_does_as_well_on_images_as_on_explanations(data):
    """Section 6.2, with a critic that learns: the control that says what can be learned at all."""
    found = critic_accuracy(net(), data, Explanation(mode="input"), data.test_x, critic="MLP", critics=2)
    assert found["critic_accuracy_explanations"] == found["critic_accuracy_images"] > 60
    assert found["critic_accuracy_test_explanations"] == found["critic_accuracy_test_images"] > 60
    assert found["critic_last_loss"] < found["critic_loss"]


def test_the_learning_curve_is_the_mean_of_the_critics_that_are_measured(data):
    model, options = net(), Explanation(norm="sample")
    maps = explanations(model, data.test_x, data.test_y, options, 16)
    found = critic_accuracy(model, data, options, maps, critic="MLP", critics=2, seed=4)
    curve = critic_curve(model, data, options, critic="MLP", critics=2, seed=4)
    assert curve.shape == (len(data.critic_x),)
    assert float(curve.mean()) == pytest.approx(found["critic_loss"], rel=1e-5)
    assert float(curve[-1]) == pytest.approx(found["critic_last_loss"], rel=1e-5)


def test_a_critic_that_does_not_learn_guesses(data):
    """Property 9: the first loss of a fresh critic is ln K."""
    model = net()
    maps = explanations(model, data.test_x, data.test_y, Explanation(), 16)
    found = critic_accuracy(model, data, Explanation(), maps, critic="MLP", learning_rate=0.0)
    assert found["critic_loss"] == pytest.approx(math.log(CLASSES), abs=0.1)


def test_the_summary_has_the_mean_and_the_deviation_over_seeds(data):
    frames = [DataFrame(records(data, net(seed), norms=NORMS, seed=seed)).assign(seed=seed) for seed in range(3)]
    rows = [
        value for frame in frames for value in frame[(frame.metric == "decoy_mass") & (frame.norm == "sample")].value
    ]
    table = summarise(concat(frames).assign(role="cnn"), by=["role"])
    row = table[(table.metric == "decoy_mass") & (table.norm == "sample")].iloc[0]
    mean = sum(rows) / 3
    assert row["mean"] == pytest.approx(mean) and row.seeds == 3 and row.role == "cnn"
    assert row["std"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in rows) / 2))
    assert len(table) == len(frames[0])


@pytest.mark.parametrize("label", LABELS)
def test_critics_learn_the_true_labels_from_explanations_of_the_label_asked_for(data, label):
    """Each critic by hand: weights, order and dropout of its own, the study's class weights, maps a critic batch."""
    model, weights = net(), torch.tensor([0.2, 0.3, 0.5])
    images, y = data.critic_x.flatten(0, 1), data.critic_y.flatten()
    guessed = model(images).argmax(1)
    assert 0 < (guessed == y).sum() < len(y)
    maps = explanations(model, images, y if label == "true" else guessed, Explanation(), 8).unflatten(0, (6, 8))
    losses = []
    for step in range(2):
        critic = lsx.fresh_critic("MLP", 1, CLASSES, 3, step)
        with runtime.seeded(3, "critic", step, "dropout"):
            one_pass = {"learning_rate": 0.3, "order": lsx.order(3, step, 6), "class_weights": weights}
            losses.append(lsx.reflect(critic, maps, data.critic_y, **one_pass).losses)
    found = critic_accuracy(
        model, without(data, class_weights=weights), Explanation(), data.test_x, label, "MLP", 0.3, critics=2, seed=3
    )
    assert found["critic_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found["critic_last_loss"] == pytest.approx(float(torch.stack(losses)[:, -1].mean()), rel=1e-5)


def test_explanations_of_the_predicted_label_are_judged_by_the_true_one(data, monkeypatch):
    model, encoder, options = net(), net(1), Explanation(norm="sample")
    maps = explain(model, data.test_x, model(data.test_x).argmax(1), options)
    ridge, asked = consolidation.ridge_accuracy, []
    monkeypatch.setattr(consolidation, "ridge_accuracy", lambda *given: asked.append(given) or ridge(*given))
    found = values(records(data, model, encoder, options, labels=["predicted"], seed=3))
    assert len(asked) == 1 and torch.equal(asked[0][1], data.test_y)
    torch.testing.assert_close(asked[0][0], maps, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        similarity = consolidation.similarity(encoder.encode(maps), data.test_y)
    assert found["iies", None] == pytest.approx(similarity.iies, rel=1e-4)
    tables = [
        removal.by_value(model, data.test_x, data.test_y, heat)
        for heat in (maps[:, 0], removal.random_heat(data.test_x, 3))
    ]
    for metric, score in removal.score(*tables).items():
        assert found[f"{metric}_value", None] == pytest.approx(score)


def test_maps_without_an_order_have_no_correlation_and_do_not_count(data):
    """An input of zeros has a map of zeros: nothing is correlated with it, which is not a correlation of 0."""
    x = data.test_x.clone()
    x[:10] = 0
    model = net()
    each = removal.faithfulness_correlation(model, x, explain(model, x, data.test_y, Explanation())[:, 0], seed=0)
    found = values(records(without(data, test_x=x), model, batch=TESTED))
    assert each[:10].isnan().all() and not each[10:].isnan().any()
    assert found["faithfulness_correlation", None] == pytest.approx(float(each[10:].mean()), rel=1e-4)
