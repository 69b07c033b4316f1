"""Spec pixpnet, section 5: which weights learn how fast, and in which epochs what happens."""

import logging
import math

import pytest
import torch
from torch import nn

from helpers.config import ConfigError
from helpers.prototypes import optimisation
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.presets import Model, Optimizer, Train


def net(**model):
    return ProtoNet(nn.Conv2d(3, 4, 3), 4, 2, Model(num_prototypes=4, prototype_dim=8, **model))


def by_name(model, **settings):
    return {group["name"]: group for group in optimisation.groups(model, Optimizer(**settings))}


def test_groups_have_the_rates_and_decays_of_the_spec():
    groups = by_name(net(readout_type="linear"), lr=3e-3, fine_tune_lr=1e-4, readout_lr=2e-4, weight_decay=1e-3)
    found = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert found == {"features": (1e-4, 1e-3), "add_on": (3e-3, 1e-3), "prototypes": (3e-3, 0.0), "head": (2e-4, 0.0)}


def test_every_parameter_that_learns_is_in_one_group():
    model = net(readout_type="sparse")
    grouped = [p for group in by_name(model).values() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()} and len(grouped) == len(set(grouped))


def test_what_does_not_learn_is_in_none():
    assert list(by_name(net())) == ["features", "add_on", "prototypes"], "a proto head has no parameters"
    assert "prototypes" not in by_name(net(learn_prototypes=False))


def test_the_new_layer_of_a_plain_classifier_learns_as_add_on_layers_do():
    model = nn.Module()
    model.features, model.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    assert by_name(model, lr=0.5, weight_decay=0.25)["head"]["lr"] == 0.5


def test_a_parameter_of_no_group_is_an_error():
    model = net()
    model.neck = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"neck\.weight belongs to no group"):
        by_name(model)


# --------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(("spelt", "kind"), [
    ("adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("adam-w", torch.optim.AdamW), ("SGD", torch.optim.SGD),
    ("rms_prop", torch.optim.RMSprop), ("R-Adam", torch.optim.RAdam),
])  # fmt: skip
def test_names_are_spelt_loosely(spelt, kind):
    assert type(optimisation.make(Optimizer(name=spelt), net().parameters())) is kind


@pytest.mark.parametrize("name", optimisation.optimizers())
def test_every_optimizer_takes_a_step(name):
    model = net(readout_type="linear")
    settings = Optimizer(name=name, weight_decay=0.0)
    optimizer = optimisation.make(settings, optimisation.groups(model, settings))
    model(torch.rand(2, 3, 8, 8)).logits.square().sum().backward()
    before = model.prototypes.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.prototypes) and model.prototypes.isfinite().all()


def test_a_name_that_there_is_not_is_told_with_what_there_is():
    with pytest.raises(ConfigError, match="unknown optimizer 'adom': did you mean"):
        optimisation.make(Optimizer(name="adom"), net().parameters())


def test_what_an_optimizer_does_not_take_is_left_out_with_a_warning_where_it_was_asked_for(caplog):
    caplog.set_level(logging.WARNING)
    optimisation.make(Optimizer(), net().parameters())
    assert not caplog.records, "nobody asked Adam for the default momentum"
    optimisation.make(Optimizer(momentum=0.5), net().parameters())
    assert "Adam takes no momentum" in caplog.text
    model = net()
    optimizer = optimisation.make(Optimizer(name="rprop", weight_decay=0.5), optimisation.groups(model, Optimizer()))
    assert "Rprop takes no weight_decay" in caplog.text and "weight_decay" not in optimizer.param_groups[0]
    assert optimisation.make(Optimizer(name="sgd", momentum=0.5), model.parameters()).defaults["momentum"] == 0.5


# ------------------------------------------------------------------------------------------- rates and epochs


def trace(settings, epochs):
    """The rate of each epoch, as a training has it."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], settings.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: optimisation.rate(e, settings, epochs))
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_rate_is_the_formula_of_the_spec():
    rates = trace(Optimizer(lr=3e-3, warmup_period=5), 20)
    oracle = [3e-3 * 0.5 * (1 + math.cos(math.pi * e / 20)) * (1 - math.exp(-(e + 2) / 5)) for e in range(20)]
    assert rates == pytest.approx(oracle, rel=1e-6)
    measured = {0: 9.89e-4, 1: 1.345e-3, 2: 1.612e-3, 3: 1.793e-3, 4: 1.896e-3, 5: 1.929e-3, 10: 1.364e-3, 19: 1.82e-5}
    assert {e: rates[e] for e in measured} == pytest.approx(measured, rel=1e-3)
    assert max(rates) == rates[5]


def test_without_a_warm_up_the_factor_is_absent():
    rates = trace(Optimizer(lr=1.0, warmup_period=0), 4)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)], rel=1e-6)


def test_step_and_multistep_fall_at_their_epochs():
    step = Optimizer(lr=1.0, warmup_period=0, lr_scheduler="step", lr_schedule=(2, 5), lr_factor=0.5)
    assert trace(step, 6) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])
    assert trace(step.override({"lr_scheduler": "multistep"}), 6) == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.25])
    rising = trace(step.override({"warmup_period": 3}), 2)
    assert rising == pytest.approx([1 - math.exp(-2 / 3), 1 - math.exp(-1)])


@pytest.mark.parametrize(("epochs", "every", "expected"), [
    (20, 4, (1, 4, 8, 12, 16, 20)), (10, 3, (1, 3, 6, 9, 10)), (1, 4, (1,)), (3, 10, (1, 3)), (2, 1, (1, 2)),
])  # fmt: skip
def test_projections_come_after_the_first_every_nth_and_the_last_epoch(epochs, every, expected):
    """Property 16."""
    assert optimisation.push_epochs(Train(epochs=epochs, push_every=every)) == expected
    assert not optimisation.push_epochs(Train(epochs=epochs, push_every=every, push_prototypes=False))


def test_validation_comes_so_often_that_there_are_about_fifty():
    assert list(optimisation.validation_epochs(Train(epochs=20))) == list(range(1, 21))
    assert list(optimisation.validation_epochs(Train(epochs=200)))[:2] == [4, 8]
    assert list(optimisation.validation_epochs(Train(epochs=7, val_every_n_epoch=3))) == [3, 6]


def test_the_backbone_waits_for_the_warm_up_unless_told_otherwise():
    assert optimisation.frozen_epochs(Optimizer(warmup_period=5)) == 5
    assert optimisation.frozen_epochs(Optimizer(warmup_period=5, freeze_epochs=0)) == 0
