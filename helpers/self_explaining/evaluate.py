"""Everything that is measured of a net and its explanations (spec cnn_lsx, section 6), one record a number.

    records = evaluate(net, encoder, data, options, norms=NORMS)
    summarise(DataFrame(records).assign(seed=seed, role="lsx"), by=("role",))

Baseline and self-explaining nets go the same way. The original explains the true label, which can give that label away;
so the explanations of the predicted one are measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.self_explaining import consolidation, lsx, models, removal
from helpers.self_explaining.derivatives import at_once, fast
from helpers.self_explaining.explanations import post, raw
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import Explanation, Label, Norm, SelfExplainingStudy
from helpers.self_explaining.sets import Sets

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS: tuple[Label, ...] = ("true", "predicted")
NORMS: tuple[Norm, ...] = ("batch", "sample")

Row = tuple[str, float | None, float]  # metric, percent, value

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
    labels: Sequence[Label] = LABELS,
    norms: Sequence[Norm] = (),
    batch: int = 128,
    seed: int = 0,
    critic: str = "Net1",
    learning_rate_critic: float = 0.2,
    critics: int = 5,
    images: int | None = None,
) -> list[dict[str, Any]]:
    """All of section 6 of one net, explained as ``options`` say: a record a number, with metric (of `METRICS`), percent
    (100 k of the removal metrics; None: their mean over k, and all else), value, norm and label.

    Explanations are those of each of the ``labels``, under each of ``norms`` (none given: that of the options), of
    ``batch`` images at a time: under the norm ``batch`` that decides the numbers. The similarity is that of encodings
    by a third net, the ``encoder``, trained with another seed (None: no similarity). ``critics`` fresh critics of the
    kind ``critic`` are averaged. They are tested on the first ``images`` of the test set (None: all), and pixels are
    removed from these; all else is of the whole test set. Everything is done where the net is.

    Raises ``ValueError`` for explanations that are not finite, `ConfigError` for a label that is none of `LABELS`.
    """
    data, few = sets.to(device_of(net)), slice(images)
    x, y = data.test_x, data.test_y
    predicted, controls = predictions(net, x), _controls(net, x[few], y[few], seed)
    always = {"accuracy": _hits(predicted, y)}
    records = []
    for label in labels:
        explained = _labels(label, y, lambda: predicted)
        attributions = _attributions(net, x, explained, options).split(batch)
        ranked: list[Row] = []
        for norm in norms or (options.norm,):
            chosen = options.override({"norm": norm})
            maps = torch.cat([post(a, chosen, part) for a, part in zip(attributions, x.split(batch), strict=True)])
            whole = always | {"ridge_accuracy": consolidation.ridge_accuracy(maps, y)}
            tested = replace(data, test_x=x[few], test_y=y[few])
            whole |= critic_accuracy(
                net, tested, chosen, maps[few], label, critic, learning_rate_critic, critics=critics, seed=seed
            )
            if encoder is not None:
                whole |= consolidation.similarity(encode(encoder, maps), y)._asdict()
            if data.test_decoy is not None:
                whole["decoy_mass"] = removal.decoy_mass(maps.sum(1), data.test_decoy)
            heat = maps[few].sum(1)
            ranked = ranked or _ranked(net, x[few], y[few], heat, controls["area"], seed)  # the norm changes no order
            rows: list[Row] = [(metric, None, value) for metric, value in whole.items()]
            rows += _lost("value", removal.by_value(net, x[few], y[few], heat), controls["value"]) + ranked
            names = {"norm": norm, "label": label}
            records += [{"metric": metric, "percent": k, "value": value} | names for metric, k, value in rows]
    return records


def settings(study: SelfExplainingStudy) -> dict[str, Any]:
    """What a study says of how to `evaluate`: its keyword arguments."""
    return {
        "labels": study.evaluated_labels,
        "norms": study.evaluated_norms,
        "batch": study.test_batch_size,
        "critic": models.pair(study.model)[1],
        "learning_rate_critic": study.learning_rate_critic,
        "critics": study.critics,
        "images": study.evaluated_images,
    }


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the images ``x`` [M, C, 28, 28] whose label ``y`` [M] has the highest log-probability (spec 6.1)."""
    return _hits(predictions(net, x), y)


def predictions(net: nn.Module, x: Tensor) -> Tensor:
    """The most probable class of each of the images ``x`` [M, C, 28, 28]: int64 [M]."""
    with torch.no_grad(), fast(), evaluating(net):
        return torch.cat([net(images).argmax(1) for images in x.split(at_once(x.device))])


def encode(net: Net, x: Tensor) -> Tensor:
    """The encodings [M, D] of ``x`` [M, C, 28, 28], here maps."""
    with torch.no_grad(), fast(), evaluating(net):
        return torch.cat([net.encode(images) for images in x.split(at_once(x.device))])


def explanations(net: nn.Module, x: Tensor, y: Tensor, options: Explanation, batch: int) -> Tensor:
    """The maps [M, C, 28, 28] of the images ``x`` for the classes ``y`` [M], explained ``batch`` at a time in their
    order; the last, smaller batch is kept."""
    attributions = _attributions(net, x, y, options).split(batch)
    return torch.cat([post(a, options, images) for a, images in zip(attributions, x.split(batch), strict=True)])


def critic_accuracy(
    net: nn.Module,
    sets: Sets,
    options: Explanation,
    maps: Tensor,
    label: Label = "true",
    critic: str = "Net1",
    learning_rate: float = 0.2,
    *,
    critics: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """What a fresh critic learns from the net's explanations of the critic set in one pass, on the mean of ``critics``
    of them (spec 6.2): its mean and last loss, and its accuracy in percent on those explanations, on those of the test
    set (``maps`` [M, C, 28, 28]), and on the images of both. ``sets`` are where the net is."""
    learned, images, classes = _critic_maps(net, sets, options, label), sets.critic_x.flatten(0, 1), sets.critic_y
    seen = {
        "critic_accuracy_explanations": (learned, classes.flatten()),
        "critic_accuracy_test_explanations": (maps, sets.test_y),
        "critic_accuracy_images": (images, classes.flatten()),
        "critic_accuracy_test_images": (sets.test_x, sets.test_y),
    }
    found = []
    for fresh, reflection in _critics(net, sets, learned, critic, learning_rate, critics, seed):
        fresh.load_state_dict(reflection.critic)
        losses = {"critic_loss": float(reflection.losses.mean()), "critic_last_loss": float(reflection.losses[-1])}
        found.append({name: accuracy(fresh, *pair) for name, pair in seen.items()} | losses)
    return {name: sum(one[name] for one in found) / critics for name in found[0]}


def critic_curve(
    net: nn.Module,
    sets: Sets,
    options: Explanation,
    label: Label = "true",
    critic: str = "Net1",
    learning_rate: float = 0.2,
    *,
    critics: int = 5,
    seed: int = 0,
) -> Tensor:
    """The learning curve of the critics of `critic_accuracy`: the mean of their losses on each batch along the pass,
    before they learn from it, float32 [N]."""
    maps = _critic_maps(net, sets, options, label)
    passes = _critics(net, sets, maps, critic, learning_rate, critics, seed)
    return torch.stack([reflection.losses for _, reflection in passes]).mean(0).cpu()


def summarise(frame: DataFrame, by: Iterable[str] = ()) -> DataFrame:
    """Mean and standard deviation over seeds (spec 6.7) of records with a column ``seed``, one row for each metric,
    percent, norm and label and each group ``by`` further columns: mean, std (of the sample; NaN of one seed), seeds."""
    keys = [*by, "metric", "percent", "norm", "label"]
    return frame.groupby(keys, sort=False, dropna=False).value.agg(mean="mean", std="std", seeds="count").reset_index()


def _critic_maps(net: nn.Module, sets: Sets, options: Explanation, label: Label) -> Tensor:
    """The explanations [N * b, C, 28, 28] of the critic set, scaled by critic batches."""
    images, classes = sets.critic_x.flatten(0, 1), sets.critic_y.flatten()
    explained = _labels(label, classes, lambda: predictions(net, images))
    return explanations(net, images, explained, options, sets.critic_x.shape[1])


def _critics(
    net: nn.Module, sets: Sets, maps: Tensor, critic: str, learning_rate: float, critics: int, seed: int
) -> Iterator[tuple[Net, lsx.Reflection]]:
    """Fresh critics, and what becomes of each in one pass over the ``maps`` of the critic set."""
    n = len(sets.critic_x)
    for step in range(critics):
        fresh = lsx.fresh_critic(critic, sets.in_channels, sets.n_classes, seed, step, device_of(net))
        with runtime.seeded(seed, "critic", step, "dropout"):
            yield (
                fresh,
                lsx.reflect(
                    fresh,
                    maps.unflatten(0, (n, -1)),
                    sets.critic_y,
                    learning_rate=learning_rate,
                    order=lsx.order(seed, step, n),
                    class_weights=sets.class_weights,
                    gradients=False,
                ),
            )


def _controls(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, DataFrame]:
    """What removal by ``value`` and by ``area`` does where a random map says what goes: the same for all explanations
    of a net."""
    heat = removal.random_heat(x, seed)
    return {"value": removal.by_value(net, x, y, heat), "area": removal.by_area(net, x, y, heat, seed=seed)}


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


def _attributions(net: nn.Module, x: Tensor, y: Tensor, options: Explanation) -> Tensor:
    """The raw attributions [M, ...], each of its image alone."""
    size = at_once(x.device)
    with fast():
        return torch.cat([raw(net, *pair, options) for pair in zip(x.split(size), y.split(size), strict=True)])


def _hits(predicted: Tensor, y: Tensor) -> float:
    return 100 * float((predicted == y).double().mean())


def _labels(label: Label, y: Tensor, predicted: Callable[[], Tensor]) -> Tensor:
    if label not in LABELS:
        raise ConfigError(f"unknown label {label!r}: {suggest(label, LABELS)}")
    return y if label == "true" else predicted()


def device_of(net: nn.Module) -> torch.device:
    """Where the weights of ``net`` are."""
    return next(net.parameters()).device
