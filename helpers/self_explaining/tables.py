"""The tables of the self-explaining notebook, as data frames: means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from helpers.self_explaining.evaluate import METRICS
from helpers.self_explaining.presets import CONDITIONS, KINDS

KIND_NAMES = {"cnn": "CNN", "lsx": "CNN-LSX", "lsx-batch": "CNN-LSX, batch norm", "no-feedback": "no feedback",
              "permuted": "permuted critic"}  # fmt: skip
CONSOLIDATION = ("ridge_accuracy", "iies")
CRITICS = ("critic_loss", "critic_last_loss", "critic_accuracy_explanations", "critic_accuracy_test_explanations",
           "critic_accuracy_test_images")  # fmt: skip
FAITHFULNESS = ("comprehensiveness_value", "sufficiency_value", "comprehensiveness_area", "sufficiency_area",
                "comprehensiveness_rank", "sufficiency_rank", "faithfulness_correlation")  # fmt: skip
BY_ORDER = ("_area", "_rank", "_correlation")
"""What ends the names of metrics that depend on the order of a map's pixels alone, which no norm changes much."""


def values(frame: pd.DataFrame, metric: str, *, norm: str | None = None, label: str = "true") -> pd.DataFrame:
    """The rows of ``frame`` (`study.frame`) of one metric, one a fit: the mean over k of those that have one, and what
    depends on no norm (None) under the first that there is."""
    own = frame[(frame.metric == metric) & frame.percent.isna() & (frame.label == label)]
    own = own if norm is None else own[own.norm == norm]
    return own.drop_duplicates(["condition", "kind", "seed"])


def differences(
    frame: pd.DataFrame,
    metric: str,
    kind: str,
    other: str,
    *,
    condition: str = "clean",
    norm: str | None = None,
    label: str = "true",
) -> pd.Series:
    """How far the metric of one kind is above that of another with the same seed: by seed, of those that both have."""
    own = values(frame, metric, norm=norm, label=label)
    table = own[own.condition == condition].pivot_table(index="seed", columns="kind", values="value")
    if not {kind, other} <= set(table):
        return pd.Series(dtype=float)
    return (table[kind] - table[other]).dropna()


def accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy in %: a row a condition, a column a kind, and what CNN-LSX has more than the CNN."""
    own = values(frame, "accuracy")
    table = own.groupby(["condition", "kind"]).value.agg(_text).unstack()
    table = table.reindex(index=_there(CONDITIONS, table.index), columns=_there(KINDS, table.columns))
    gains = {name: differences(frame, "accuracy", "lsx", "cnn", condition=name) for name in table.index}
    table = table.rename(columns=KIND_NAMES).fillna("")
    return table.assign(**{"CNN-LSX − CNN": {name: _text(gain) if len(gain) else "" for name, gain in gains.items()}})


def by_kind(
    frame: pd.DataFrame, metrics: Sequence[str], *, condition: str = "clean", labels: Sequence[str] = ("true",)
) -> pd.DataFrame:
    """A row a metric, norm and label, a column a kind. What the norm does not change stands once."""
    own = frame[frame.metric.isin(metrics) & frame.percent.isna() & (frame.condition == condition)]
    own = own[own.label.isin(labels)]
    keys = ["metric", "norm", "label"] if len(labels) > 1 else ["metric", "norm"]
    table = own.groupby([*keys, "kind"], sort=False).value.agg(_text).unstack()
    table = table.reindex(columns=_there(KINDS, table.columns)).loc[[m for m in metrics if m in own.metric.values]]
    at = table.index.to_frame(index=False)
    ordered = at.metric.str.endswith(BY_ORDER)
    table = table[~(ordered & at.drop(columns="norm").duplicated()).values]
    arrow = {"higher": "↑", "lower": "↓"}
    names = {name: f"{METRICS[name].text} {arrow[METRICS[name].better]}" for name in metrics}
    return table.rename(index=names, columns=KIND_NAMES).fillna("")


def phases(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Test accuracy in % after each phase of the clean condition's kinds, and the minutes that a fit took."""
    rows = []
    for record in records:
        _, condition, kind, seed = record["name"].split("/")
        if condition == "clean":
            after = record["training"]["phases"]
            row = {name: facts["accuracy"] for name, facts in after.items()}
            rows.append(row | {"kind": kind, "minutes": sum(facts["seconds"] for facts in after.values()) / 60})
    if not rows:
        return pd.DataFrame(columns=["minutes"])
    table = pd.DataFrame(rows).groupby("kind", sort=False).agg(_text)
    order = [name for name in ("pretrain", "joint", "finetune", "minutes") if name in table]
    return table[order].rename(index=KIND_NAMES).rename_axis(None)


def _text(found: pd.Series) -> str:
    """Mean ± standard deviation, in as many digits as are read; nothing where nothing was measured."""
    found = found.dropna()
    if not len(found):
        return ""
    digits = 3 if found.abs().max() < 10 else 2
    spread = f" ± {found.std():.{digits}f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{spread}"


def _there(order: Iterable[str], names: Iterable[str]) -> list[str]:
    return [name for name in order if name in set(names)]
