"""Everything that is measured of a net and its explanations (spec cnn_lsx, section 6), one record a number.

    records = [record for label in LABELS for record in evaluate(net, encoder, data, options, label=label, norms=NORMS)]
    summarise(DataFrame(records).assign(seed=seed, role="lsx"), by=("role",))

Baseline and self-explaining nets go the same way. The original explains the true label, which can give that label away;
so the explanations of the predicted one are measured too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.self_explaining import consolidation, lsx, removal
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import Explanation, Norm
from helpers.self_explaining.sets import Sets

if TYPE_CHECKING:
    from pandas import DataFrame

Label = Literal["true", "predicted"]
LABELS: tuple[Label, ...] = ("true", "predicted")
NORMS: tuple[Norm, ...] = ("batch", "sample")

Row = tuple[str, float | None, float]  # metric, percent, value

AT_ONCE = 512  # images that go through a net at a time where no result depends on it
VERSION = 1  # goes into the provenance of results: raise it when a number here changes its meaning


@dataclass(frozen=True)
class Metric:
    """Which values are ``better``, and what is measured, in words for a table."""

    better: Literal["higher", "lower"]
    text: str


METRICS: Mapping[str, Metric] = MappingProxyType({
    "accuracy": Metric("higher", "accuracy, %"),
    "critic_accuracy_explanations": Metric("higher", "critic's accuracy on the explanations it learned from, %"),
    "critic_accuracy_test_explanations": Metric("higher", "critic's accuracy on test explanations, %"),
    "critic_accuracy_images": Metric("higher", "critic's accuracy on the images of the critic set, %"),
    "critic_accuracy_test_images": Metric("higher", "critic's accuracy on test images, %"),
    "critic_loss": Metric("lower", "critic's mean loss over its one pass"),
    "critic_last_loss": Metric("lower", "critic's loss on its last batch"),
    "ridge_accuracy": Metric("higher", "ridge classification of explanations, %"),
    "iies": Metric("lower", "inter- and intra-class explanation similarity"),
    "max_intra_min_inter_mean": Metric("lower", "largest intra-class distance / nearest other mean"),
    "max_intra_mean_inter_mean": Metric("lower", "largest intra-class distance / mean distance of other means"),
    "max_intra_closest_foreign": Metric("lower", "largest intra-class distance / nearest foreign explanation"),
    "comprehensiveness_value": Metric("higher", "comprehensiveness by value, points"),
    "sufficiency_value": Metric("lower", "sufficiency by value, points"),
    "comprehensiveness_area": Metric("higher", "comprehensiveness by area, points"),
    "sufficiency_area": Metric("lower", "sufficiency by area, points"),
    "comprehensiveness_rank": Metric("higher", "fall of the probability without the highest pixels"),
    "sufficiency_rank": Metric("lower", "fall of the probability with the highest pixels alone"),
    "faithfulness_correlation": Metric("higher", "correlation of attribution and fall of the probability"),
    "decoy_mass": Metric("lower", "share of the explanation on the decoy"),
})  # fmt: skip
"""By the names in records."""


def evaluate(
    net: Net,
    encoder: Net | None,
    sets: Sets,
    options: Explanation,
    *,
    label: Label = "true",
    norms: Sequence[Norm] = (),
    batch: int = 128,
    seed: int = 0,
    critic: str = "Net1",
    learning_rate_critic: float = 0.2,
    critics: int = 5,
    images: int | None = None,
    controls: Mapping[str, DataFrame] | None = None,
) -> list[dict[str, Any]]:
    """All of section 6 of one net, explained as ``options`` say: a record a number, with metric (of `METRICS`), percent
    (100 k of the removal metrics; None: their mean over k, and all else), value, norm and label.

    Explanations are those of the ``label``, under each of ``norms`` (none given: that of the options), of ``batch``
    images at a time: under the norm ``batch`` that decides the numbers. The similarity is that of encodings by a third
    net, the ``encoder``, trained with another seed (None: no similarity). ``critics`` fresh critics of the kind
    ``critic`` are averaged. Pixels are removed from the first ``images`` of the test set (None: all); ``controls`` are
    the `control_tables` of the net, computed unless given. Everything is done where the net is.

    Raises ``ValueError`` for explanations that are not finite, `ConfigError` for a label that is none of `LABELS`.
    """
    data = sets.to(_device(net))
    x, y, few = data.test_x, data.test_y, slice(images)
    explained = _labels(net, x, y, label)
    controls = control_tables(net, x[few], y[few], seed) if controls is None else controls
    records, ranked = [], []
    for norm in norms or (options.norm,):
        chosen = options.override({"norm": norm})
        maps = explanations(net, x, explained, chosen, batch)
        whole = {"accuracy": accuracy(net, x, y), "ridge_accuracy": consolidation.ridge_accuracy(maps, y)}
        whole |= critic_accuracy(net, data, chosen, maps, label, critic, learning_rate_critic, critics, seed)
        if encoder is not None:
            whole |= consolidation.similarity(encode(encoder, maps), y)._asdict()
        if data.test_decoy is not None:
            whole["decoy_mass"] = removal.decoy_mass(maps.sum(1), data.test_decoy)
        heat = maps[few].sum(1)
        ranked = ranked or _ranked(net, x[few], y[few], heat, controls["area"], seed)  # the norm changes no order
        rows = [(metric, None, value) for metric, value in whole.items()]
        rows += _lost("value", removal.by_value(net, x[few], y[few], heat), controls["value"]) + ranked
        names = {"norm": norm, "label": label}
        records += [{"metric": metric, "percent": k, "value": value} | names for metric, k, value in rows]
    return records


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the images ``x`` [M, C, 28, 28] whose label ``y`` [M] has the highest log-probability (spec 6.1)."""
    return 100 * float((predictions(net, x) == y).double().mean())


def predictions(net: nn.Module, x: Tensor) -> Tensor:
    """The most probable class of each of the images ``x`` [M, C, 28, 28]: int64 [M]."""
    with torch.no_grad(), evaluating(net):
        return torch.cat([net(images).argmax(1) for images in x.split(AT_ONCE)])


def encode(net: Net, x: Tensor) -> Tensor:
    """The encodings [M, D] of ``x`` [M, C, 28, 28], here maps."""
    with torch.no_grad(), evaluating(net):
        return torch.cat([net.encode(images) for images in x.split(AT_ONCE)])


def explanations(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, batch: int) -> Tensor:
    """The maps [M, C, 28, 28] of the images ``x`` for the classes ``y`` [M], explained ``batch`` at a time in their
    order; the last, smaller batch is kept."""
    parts = zip(x.split(batch), y.split(batch), strict=True)
    return torch.cat([explain(net, images, classes, options) for images, classes in parts])


def critic_accuracy(
    net: nn.Module,
    sets: Sets,
    options: Explanation,
    maps: Tensor,
    label: Label = "true",
    critic: str = "Net1",
    learning_rate: float = 0.2,
    critics: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """What a fresh critic learns from the net's explanations of the critic set in one pass, on the mean of ``critics``
    of them (spec 6.2): its mean and last loss, and its accuracy in percent on those explanations, on those of the test
    set (``maps`` [M, C, 28, 28]), and on the images of both. ``sets`` are where the net is."""
    n, where = len(sets.critic_x), _device(net)
    images, classes = sets.critic_x.flatten(0, 1), sets.critic_y.flatten()
    learned = explanations(net, images, _labels(net, images, classes, label), options, sets.critic_x.shape[1])
    seen = {
        "critic_accuracy_explanations": (learned, classes),
        "critic_accuracy_test_explanations": (maps, sets.test_y),
        "critic_accuracy_images": (images, classes),
        "critic_accuracy_test_images": (sets.test_x, sets.test_y),
    }
    found = []
    for step in range(critics):
        fresh = lsx.fresh_critic(critic, sets.in_channels, sets.n_classes, seed, step, where)
        with runtime.seeded(seed, "critic", step, "dropout"):
            reflection = lsx.reflect(
                fresh,
                learned.unflatten(0, (n, -1)),
                sets.critic_y,
                learning_rate=learning_rate,
                order=lsx.order(seed, step, n),
                class_weights=sets.class_weights,
                gradients=False,
            )
        fresh.load_state_dict(reflection.critic)
        losses = {"critic_loss": float(reflection.losses.mean()), "critic_last_loss": float(reflection.losses[-1])}
        found.append({name: accuracy(fresh, *pair) for name, pair in seen.items()} | losses)
    return {name: sum(one[name] for one in found) / critics for name in found[0]}


def control_tables(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, DataFrame]:
    """What removal by ``value`` and by ``area`` does where a random map says what goes: those of `evaluate`, for images
    ``x`` [M, C, 28, 28] with labels ``y`` [M]. They are the same for all explanations of a net."""
    heat = removal.random_heat(x, seed)
    return {"value": removal.by_value(net, x, y, heat), "area": removal.by_area(net, x, y, heat, seed=seed)}


def summarise(frame: DataFrame, by: Iterable[str] = ()) -> DataFrame:
    """Mean and standard deviation over seeds (spec 6.7) of records with a column ``seed``, one row for each metric,
    percent, norm and label and each group ``by`` further columns: mean, std (of the sample; NaN of one seed), seeds."""
    keys = [*by, "metric", "percent", "norm", "label"]
    return frame.groupby(keys, sort=False, dropna=False).value.agg(mean="mean", std="std", seeds="count").reset_index()


def _ranked(net: Net, x: Tensor, y: Tensor, heat: Tensor, control: DataFrame, seed: int) -> list[Row]:
    """What depends on the order of a map's pixels alone."""
    rows = _lost("area", removal.by_area(net, x, y, heat, seed=seed), control)
    table = removal.by_rank(net, x, heat, seed=seed)
    rows += [(f"{metric}_rank", None, value) for metric, value in removal.falls(table).items()]
    rows += [(f"{row.metric}_rank", row.percent, row.fall) for row in table.itertuples()]
    correlation = float(removal.faithfulness_correlation(net, x, heat, seed=seed).nanmean())
    return [*rows, ("faithfulness_correlation", None, correlation)]


def _lost(name: str, table: DataFrame, control: DataFrame) -> list[Row]:
    """The points by which the accuracy is below the control's: their mean by metric, and each."""
    lost = (control.accuracy - table.accuracy).tolist()
    rows: list[Row] = [(f"{metric}_{name}", None, value) for metric, value in removal.score(table, control).items()]
    pairs = zip(table.itertuples(), lost, strict=True)
    return rows + [(f"{row.metric}_{name}", row.percent, value) for row, value in pairs]


def _labels(net: nn.Module, x: Tensor, y: Tensor, label: Label) -> Tensor:
    if label not in LABELS:
        raise ConfigError(f"unknown label {label!r}: {suggest(label, LABELS)}")
    return y if label == "true" else predictions(net, x)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
