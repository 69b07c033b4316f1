"""Heat maps scored against other methods, and effects against random weights (spec explainnn, sections 4, 5, 7.3, 7.4).

    frame = compare(causal(graphs) | baselines(), model, x, target)   # method, metric, image, value
    summarise(frame)                                                  # with standard errors
    write(frame, out, "LeNet")                                        # a CSV a metric

A low Lipschitz estimate is worth nothing by itself: a constant map has 0. So the controls always have rows of their
own, and stability is to be read together with faithfulness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers import artifacts, attribution, metrics, runtime
from helpers.attribution.base import evaluating
from helpers.causal_graphs import heatmaps
from helpers.causal_graphs.engines import Samples, cut_logits, single_cuts
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.layers import Layer
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.statistics import Selection, describe, measure, select
from helpers.config import ConfigError, suggest
from helpers.metrics.base import BATCH, Explain
from helpers.metrics.randomisation import randomise, rank_correlation, restored, weighted_layers

BASELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "integrated_gradients": {"steps": 100, "baseline": 0.0},
    "guided_backprop": {},
    "deconvolution": {},
    "gradient": {"signed": False},  # "Saliency", absolute
    "input_x_gradient": {},
    "gradient_shap": {"baselines": 0.0},
    "deep_lift": {"baseline": 0.0},
    "lrp": {},
    "lime": {},
    "grad_cam": {},  # needs the name of a layer
    "occlusion": {"window": 15, "stride": 8},
    "rise": {"samples": 1000, "grid": 7, "keep": 0.5},
})  # fmt: skip
"""The methods of spec section 5 with the release's settings, as `helpers.attribution` names them."""

SHOWN = ("integrated_gradients", "guided_backprop", "deconvolution", "gradient", "input_x_gradient")
"""The baselines that the release plots."""

SCORED = ("integrated_gradients", "gradient", "gradient_shap", "input_x_gradient")
"""The baselines that the release scores."""

CAUSAL: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "reference": {"method": "reference"},
    "spatial_do_2x2": {"method": "spatial_do", "cell": 2},
    "spatial_do_1x1": {"method": "spatial_do", "cell": 1},
    "act_grad": {"method": "act_grad"},
    "channel_activation": {"method": "channel_activation"},
    "contribution": {"method": "contribution"},
})  # fmt: skip
"""The maps of a causal graph, as spec section 4 compares them."""

SCORES = ("irof", "lipschitz_minmax", "lipschitz_max", "lipschitz_zscore", "lipschitz_none")
"""Faithfulness, and stability at every scaling of the maps (spec section 6.1)."""


def baselines(names: Iterable[str] = SCORED, layer: str | None = None) -> dict[str, Explain]:
    """Explainers of `BASELINES` by name; ``layer`` is what Grad-CAM looks at. Raises `ConfigError` for a name that is
    not there, and for Grad-CAM without a layer."""
    found = {}
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"unknown baseline {name!r}: {suggest(name, BASELINES)}")
        options = dict(BASELINES[name]) | ({"layer": layer} if name == "grad_cam" and layer else {})
        found[name] = attribution.explainer(name, **options)
    return found


def causal(
    graphs: CausalGraph | Mapping[int, CausalGraph], names: Iterable[str] = tuple(CAUSAL), layer_name: str | None = None
) -> dict[str, Explain]:
    """Explainers of `CAUSAL` by name, from the graph of each class, at ``layer_name`` (`heatmaps.explainer`)."""
    found = {}
    for name in names:
        if name not in CAUSAL:
            raise ConfigError(f"unknown kind of causal map {name!r}: {suggest(name, CAUSAL)}")
        found[name] = heatmaps.explainer(graphs, layer_name, **CAUSAL[name])
    return found


def compare(
    explainers: Mapping[str, Explain],
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    scores: Iterable[str] = SCORES,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    masks: Tensor | None = None,
    seed: int = 0,
    batch: int = BATCH,
    progress: str | None = None,
) -> pd.DataFrame:
    """Every explainer, and always the controls ``constant_map`` and ``random_map``, by the metrics ``scores``: one row
    a value, with the columns method, metric, image (the place in x [B, C, H, W]) and value.

    `helpers.metrics.compare` does it, with ``options`` by function. Raises `ConfigError` for a metric or option that
    does not exist, and for an explainer that takes the name of a control.
    """
    if taken := set(explainers) & set(metrics.CONTROLS):
        raise ConfigError(f"{', '.join(sorted(taken))}: controls are there anyway, under this name")
    settings = {"metrics": scores, "options": options, "masks": masks, "seed": seed, "batch": batch}
    return metrics.compare(explainers, model, x, target, **settings, progress=progress)


def summarise(frame: pd.DataFrame, by: Iterable[str] = ("method", "metric")) -> pd.DataFrame:
    """One row for each group ``by`` these columns of `compare`, in their order of appearance: images, mean,
    standard_error (of the mean over images) and better (``higher`` or ``lower``). Values that are NaN do not count."""
    values = frame.groupby(list(by), sort=False).value
    table = values.agg(images="count", mean="mean", standard_error="sem").reset_index()
    return table.assign(better=[metrics.METRICS[name].better for name in table.metric])


def write(frame: pd.DataFrame, out: Path, model_name: str) -> list[Path]:
    """``out/evaluation_metrics/<model_name>/<metric>.csv`` (the release's layout), one a metric, with all columns."""
    paths = []
    for metric, rows in frame.groupby("metric", sort=False):
        paths.append(out / "evaluation_metrics" / model_name / f"{metric}.csv")
        artifacts.atomic_write(paths[-1], rows.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    return paths


def read(out: Path, model_name: str) -> pd.DataFrame:
    """What `write` wrote, of all metrics. Raises `ArtifactError` if there is nothing, or a file is damaged."""
    paths = sorted((out / "evaluation_metrics" / model_name).glob("*.csv"))
    if not paths:
        raise artifacts.ArtifactError(f"there are no scores in {out / 'evaluation_metrics' / model_name}; compute them")
    frames = []
    for path in paths:
        try:
            frames.append(pd.read_csv(path))
        except (ValueError, pd.errors.ParserError) as error:
            raise artifacts.ArtifactError(f"{path} is damaged ({error}); delete it and compute it anew") from None
        if not {"method", "metric", "image", "value"} <= set(frames[-1]):
            raise artifacts.ArtifactError(f"{path} holds no scores; delete it and compute them anew")
    return pd.concat(frames, ignore_index=True)


def effect_mprt(
    graph: CausalGraph, model: nn.Module, x: Tensor, *, draws: int = 10, seed: int = 0, chunk_mb: int = 64
) -> pd.DataFrame:
    """Model parameter randomisation test of a graph: its cuts once more, on the same images ``x`` [N, C, H, W] but with
    random weights in all layers. Effects that do not come from the weights stay what they were.

    One row for each of ``draws`` sets of weights and each layer that was tested: draw, layer, nodes (tested),
    rank_correlation (Spearman's, of their mean effects; NaN of one node) and jaccard (of the causes; 0 of none at all).
    Each layer keeps the effects that it was measured with, so that it is asked the same question. The model gets its
    weights back to the bit. Raises `ConfigError` for a model that is not the graph's.
    """
    rows = []
    for draw in range(draws):
        with evaluating(model), restored(model):
            for name in weighted_layers(model, x[:1]):
                randomise(model, name, runtime.stream(seed, "effect_mprt", draw))
            samples = Samples(Network(model, x[:1]), x, chunk_mb)
            for layer in graph.layers:
                if layer.statistics is not None:
                    rows.append({"draw": draw, "layer": layer.layer} | _again(graph, layer, samples))
    return pd.DataFrame(rows)


def _again(graph: CausalGraph, layer: Layer, samples: Samples) -> dict[str, Any]:
    """What the cuts of a layer do to another network, beside what they did to the graph's."""
    link = samples.network.link(layer.layer)
    kind = Intervention.noted(graph.intervention, layer.u)
    cuts = single_cuts(layer.tested, layer.measured_effects)
    logits = cut_logits(samples, link, cuts, kind, seed=graph.seed)
    now = describe(measure(samples.logits, logits, graph.target, graph.effect, graph.other))
    selected = select(now, now.n_images, Selection(**graph.selection))
    causes, before = {layer.tested[k] for k in selected.causes}, set(layer.causes)
    effects = (torch.from_numpy(part.mean_d.copy()) for part in (layer.statistics, now))
    return {
        "nodes": len(layer.tested),
        "rank_correlation": float(rank_correlation(*effects)) if len(layer.tested) > 1 else np.nan,
        "jaccard": len(causes & before) / len(causes | before) if causes | before else 0.0,
    }
