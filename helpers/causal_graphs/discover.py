"""Graph discovery: walk from a logit down to the input, and keep what it hangs on (spec explainnn, section 3).

    graph = explain(model, images.load("MNIST"), target=3)
    graph.counts()

Each layer's candidates are cut one at a time from the nodes already found above; those whose cut lowers the outcome
become the effects that the next layer down is cut from.
"""

from __future__ import annotations

import copy
import logging
import math
import operator
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import __version__, runtime
from helpers.causal_graphs.engines import Cut, Engine, Samples, cut_logits, first_order, single_cuts
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.layers import ONE_TO_ONE, Edges, Layer
from helpers.causal_graphs.links import Link
from helpers.causal_graphs.network import Network, reverse, weights_hash
from helpers.causal_graphs.statistics import Effect, Measured, Selection, describe, measure, outcome, rounded, select
from helpers.config import ConfigError, Settings
from helpers.data.images import Images
from helpers.metrics.base import logits, predicted

SOFT_WIDTH = 0.01  # of the interval that a soft value is drawn from (spec section 3.3)
NORM_DIGITS = 5  # significant ones, of the weights' norms: they are most of a file
NORMS_UP_TO = 20_000  # edges of a layer whose norms are kept: one of ConvNeXt's has two million
PRUNED_FROM = 600  # lower nodes above which the release prunes (spec section 3.5)

_Screen = dict[str, int]  # dropped, retested and missed of a `Layer`

log = logging.getLogger(__name__)


class Discovery(Settings):
    """How a graph is found. The defaults are the recommended ones; `REFERENCE` is the 2022 release's way."""

    intervention: Intervention = Intervention()
    soft: bool = Field(False, description="overwrite with a u ~ U(beta, beta + 0.01) a layer, not `intervention`")
    beta: float = Field(0.0, ge=0, description="where the soft interval begins")
    effect: Effect = Field("logit", description="the outcome that is explained")
    other: int | None = Field(None, ge=0, description="the class that `contrast` compares with")
    selection: Selection = Selection()
    candidates: Literal["all", "screen", "reference"] = Field(
        "all", description="screen: drop what a gradient says is far from delta; reference: the release's weight rule"
    )
    screened_below: float = Field(0.5, ge=0, le=1, description="share of the threshold that `screen` drops below")
    retested: float = Field(0.05, ge=0, le=1, description="share of the dropped nodes that are tested all the same")
    refine: bool = Field(False, description="measure single edges between the nodes that were found")
    engine: Engine = "delta"
    dtype: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="bfloat16: what comes near a threshold is measured again in float32"
    )
    chunk_mb: int = Field(64, ge=1, description="memory that is worked in at a time")


    @model_validator(mode="after")
    def _whole(self) -> Discovery:
        if (self.effect == "contrast") != (self.other is not None):
            raise ValueError("effect 'contrast' needs the other class, and nothing else has one")
        if self.candidates == "screen" and self.selection.mode == "reference":
            raise ValueError("a screen drops what is far from delta, which mode 'reference' does not know")
        return self


REFERENCE = Discovery(soft=True, selection=Selection(mode="reference"), candidates="reference")


def explain(
    model: nn.Module,
    images: Images,
    target: int,
    *,
    n_samples: int = 100,
    options: Discovery | None = None,
    seed: int = 0,
    include_misclassified: bool = False,
    names: tuple[str, str, str] = ("", "", "test"),
    path: str | Path | None = None,
    progress: bool = False,
) -> CausalGraph:
    """The causal graph of class ``target``, judged on ``n_samples`` of its ``images``.

    ``names`` are those of model, data set and split that the graph is to carry. With ``path`` the graph is saved there,
    after every layer, so that a walk that was cut off goes on where it stopped. Raises ``ValueError`` with fewer than
    two images, `ConfigError` for a class or a network that cannot be (one of a single logit, too).
    """
    options, target = options or Discovery(), operator.index(target)
    indices = choose(model, images, target, n_samples, seed=seed, include_misclassified=include_misclassified)
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    parameter = next(model.parameters())
    x = images.inputs(indices).to(parameter.device, dtype)
    network = Network(model if dtype == parameter.dtype else copy.deepcopy(model).to(dtype), x[:1])
    if network.logits.size == 1:
        raise ConfigError("a network of one logit has none for each class: give it two, of which the first is 0")
    samples = Samples(network, x, options.chunk_mb)
    facts = {"model": names[0] or type(model).__name__, "dataset": names[1], "split": names[2]}
    facts |= {"search": search_facts(options, n_samples), "weights_hash": weights_hash(model)}
    path = Path(path) if path else None
    return discover(samples, target, options, seed=seed, indices=indices, facts=facts, path=path, progress=progress)


def choose(
    model: nn.Module,
    images: Images,
    target: int,
    n_samples: int,
    *,
    seed: int = 0,
    include_misclassified: bool = False,
    batch: int = 250,
) -> Tensor:
    """int64 [<= n_samples]: images of class ``target``, in random order, that the model takes for it (section 3.1).

    Raises ``ValueError`` if there are fewer than two, or none at all is asked for.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")
    if not 0 <= target < len(images.classes):
        raise ConfigError(f"the target must be a class of 0 to {len(images.classes) - 1}, not {target}")
    rows = (images.y == target).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=runtime.generator(seed, "samples", target))]
    kept: list[Tensor] = []
    parameter = next(model.parameters())
    for block in rows.split(batch):
        if sum(map(len, kept)) >= n_samples:
            break
        if not include_misclassified:
            block = block[predicted(logits(model, images.inputs(block).to(parameter))) == target]
        kept.append(block)
    chosen = torch.cat(kept)[:n_samples] if kept else rows[:0]
    if len(chosen) < min(2, n_samples):
        raise ValueError(
            f"only {len(chosen)} of {len(rows)} images of class {target} are classified as it: too few to judge by; "
            "train the network further, or take include_misclassified=True"
        )
    if len(chosen) < n_samples:
        log.warning("class %d: only %d images of the %d asked for are there", target, len(chosen), n_samples)
    return chosen


def discover(
    samples: Samples,
    target: int,
    options: Discovery,
    *,
    seed: int = 0,
    indices: Sequence[int] | Tensor | None = None,
    facts: dict[str, Any] | None = None,
    path: Path | None = None,
    progress: bool = False,
) -> CausalGraph:
    """The walk itself, on ``samples``. See `explain`."""
    network, facts = samples.network, facts or {}
    if not 0 <= target < network.logits.size:
        raise ConfigError(f"the target must be a logit of 0 to {network.logits.size - 1}, not {target}")
    about = {
        "model": type(network.model).__name__,
        "dataset": "",
        "search": search_facts(options, len(samples)),
        **facts,
        "target": target,
        "other": options.other,
        "sample_indices": range(len(samples)) if indices is None else torch.as_tensor(indices).tolist(),
        "seed": seed,
        "mode": options.selection.mode,
        "intervention": intervention_facts(options),
        "effect": options.effect,
        "selection": options.selection.model_dump(mode="json"),
        "version": __version__,
        "weights_hash": facts.get("weights_hash") or weights_hash(network.model),
    }
    partial = path and path.with_name(f".{path.stem}.partial.json")
    layers = _begun(partial, about)
    done = {layer.layer for layer in layers}
    walk = _Walk(samples, target, options, seed)
    found = {network.logits.name: walk.top()}
    for layer in layers:
        found.setdefault(layer.source_layer, set()).update(layer.causes)

    links = [link for _, readers in reverse(network) for link in readers]
    bar = tqdm(links, desc=f"class {target}", unit="layer", disable=not progress, leave=False)
    for link in bar:
        bar.set_postfix_str(link.name)
        effects = sorted(e for e in found.get(link.target, ()) if 0 <= e - link.offset < link.outputs)
        if not effects or link.name in done:
            continue
        layer = walk.layer(link, effects)
        layers.append(layer)
        found.setdefault(link.source, set()).update(layer.causes)
        if not layer.causes:
            log.info("%s: no node passes; nothing below it is explored through it", link.name)
        if partial:
            CausalGraph(**about, layers=tuple(layers)).save(partial)
    graph = CausalGraph(**about, layers=tuple(layers))
    if path:
        graph.save(path)
        partial.unlink(missing_ok=True)
    return graph


class _Walk:
    """What testing one layer needs."""

    def __init__(self, samples: Samples, target: int, options: Discovery, seed: int):
        self.samples, self.target, self.options, self.seed = samples, target, options, seed
        self.low: Samples | None = None
        if options.dtype == "bfloat16":
            model = copy.deepcopy(samples.network.model).bfloat16()
            x = samples.x.bfloat16()
            self.low = Samples(Network(model, x[:1]), x, options.chunk_mb)

    def top(self) -> set[int]:
        return {self.target, self.options.other} if self.options.effect == "contrast" else {self.target}

    def outcome(self, logits: Tensor) -> Tensor:
        return outcome(logits, self.target, self.options.effect, self.options.other)

    def layer(self, link: Link, effects: list[int]) -> Layer:
        """Test ``link``'s lower nodes against ``effects``."""
        started, options = time.monotonic(), self.options
        about = {"layer": link.name, "source_layer": link.source, "target_layer": link.target, "kind": link.kind,
                 "effects": effects}  # fmt: skip
        if link.source == "input":
            return Layer.untested("input", **about, nodes=[0])
        if link.kind == "depthwise":
            nodes = [e - link.offset for e in effects]
            return Layer.untested(
                "passed", **about, nodes=nodes, offset=link.offset, weight_norms=_norms(link, nodes, effects)
            )
        intervention = self.intervention(link)
        tested, screen = self.candidates(link, effects, intervention)
        measured = self.measure(link, single_cuts(tested, effects), intervention)
        statistics = describe(measured)
        selected = select(statistics, statistics.n_images, options.selection)
        if selected.rule == "fallback":
            log.warning("%s: no node passes the test: those below the fallback's relative effect are taken", link.name)
        causes, inhibitors = ([tested[k] for k in found] for found in (selected.causes, selected.inhibitors))
        edges = self.edges(link, sorted(causes + inhibitors), effects, intervention) if options.refine else None
        return Layer(
            **about,
            tested=tested,
            causes=causes,
            inhibitors=inhibitors,
            rule=selected.rule,
            statistics=statistics,
            u=intervention.amount if intervention.kind == "value" else None,
            edges=edges,
            weight_norms=_norms(link, tested, effects),
            offset=link.offset if link.kind == "identity" else 0,
            passes=(len(tested) + (len(edges.sources) if edges else 0)) * len(self.samples),
            seconds=time.monotonic() - started,
            **screen,
        )

    def intervention(self, link: Link) -> Intervention:
        if not self.options.soft:
            return self.options.intervention
        draw = torch.rand((), generator=runtime.generator(self.seed, "soft", link.name)).item()
        return Intervention(amount=self.options.beta + SOFT_WIDTH * draw)

    def measure(self, link: Link, cuts: list[Cut], intervention: Intervention) -> Measured:
        def run(samples: Samples, cuts: list[Cut]) -> Measured:
            own = samples.network.link(link.name)  # of the copy in low precision, another one
            logits = cut_logits(samples, own, cuts, intervention, seed=self.seed, engine=self.options.engine)
            return measure(samples.logits, logits, self.target, self.options.effect, self.options.other)

        if self.low is None or not cuts:
            return run(self.samples, cuts)
        return recheck(run(self.low, cuts), cuts, self.low, self.samples, self.options.selection, run)

    def candidates(self, link: Link, effects: list[int], intervention: Intervention) -> tuple[list[int], _Screen]:
        """The lower nodes that are tested, and how they were screened, if they were."""
        every = list(range(link.inputs))
        if link.kind == "identity":
            return [e - link.offset for e in effects], {}
        if self.options.candidates == "reference" and link.inputs > PRUNED_FROM:
            return _by_weight(link, effects[-1]), {}
        if self.options.candidates == "screen":
            return self._screened(link, effects, intervention, every)
        return every, {}

    def _screened(
        self, link: Link, effects: list[int], intervention: Intervention, every: list[int]
    ) -> tuple[list[int], _Screen]:
        """Those whose effect to first order comes near the threshold, and some of the others for a check."""
        cuts = single_cuts(every, effects)
        predicted = first_order(self.samples, link, cuts, intervention, self.outcome, seed=self.seed).mean(1)
        y = self.outcome(self.samples.logits)
        size = float(y.mean().abs()) if y.mean() >= 1 and (y > 0).all() else float(y.std())
        far = predicted.abs() < self.options.screened_below * self.options.selection.delta * size
        dropped = far.nonzero()[:, 0]
        order = torch.randperm(len(dropped), generator=runtime.generator(self.seed, "retest", link.name))
        checked = dropped[order[: math.ceil(self.options.retested * len(dropped))]]
        missed: Sequence[int] = ()
        if len(checked):
            statistics = describe(self.measure(link, single_cuts(checked.tolist(), effects), intervention))
            missed = select(statistics, statistics.n_images, self.options.selection).causes
        tested = sorted((~far).nonzero()[:, 0].tolist() + checked.tolist())
        return tested, {"dropped": len(dropped), "retested": len(checked), "missed": len(missed)}

    def edges(self, link: Link, sources: list[int], effects: list[int], intervention: Intervention) -> Edges | None:
        """Every single edge between the nodes that were found and their effects (spec section 3.6)."""
        pairs = [(i, e) for i in sources for e in effects if link.kind != "identity" or e == i + link.offset]
        if not pairs:
            return None
        statistics = describe(self.measure(link, [Cut((i,), (e,)) for i, e in pairs], intervention))
        return Edges.judged(*zip(*pairs, strict=True), statistics, self.options.selection)


def recheck(
    rough: Measured,
    cuts: list[Cut],
    low: Samples,
    exact: Samples,
    selection: Selection,
    run: Callable[[Samples, list[Cut]], Measured],
    units: float = 3.0,
) -> Measured:
    """``rough`` with what lies within ``units`` of its error from the threshold measured again, exactly (section 9.5).

    The error is the largest that low precision makes in a logit without any cut.
    """
    error = float((low.logits.to(exact.logits) - exact.logits).abs().max())
    statistics = describe(rough)
    least = selection.delta * statistics.scale
    if selection.mode == "reference":
        spread = (statistics.std_cut**2 + statistics.std_y**2) / statistics.n_images
        least = selection.critical * np.sqrt(spread)
    near = np.abs(np.abs(statistics.mean_d) - least) <= units * error
    again = [k for k in range(len(cuts)) if near[k]]
    if not again:
        return rough
    fine = run(exact, [cuts[k] for k in again])
    parts = {name: getattr(rough, name).clone() for name in ("d", "r", "kl")}
    for name, values in parts.items():
        values[again] = getattr(fine, name)
    return Measured(**parts, y=rough.y)


def _by_weight(link: Link, effect: int) -> list[int]:
    """The release's candidates in wide layers: by the summed weights into the last effect, the top tenth, the bottom
    twentieth and the middle twentieth (spec section 3.5)."""
    weight = link.weight()[effect - link.offset]
    order = weight.reshape(link.inputs, -1).sum(1).argsort(descending=True).tolist()
    n = len(order)
    tenth, twentieth, middle = n // 10, n // 20, n // 2 - n // 40
    return sorted({*order[:tenth], *order[n - twentieth :], *order[middle : middle + twentieth]})


def _norms(link: Link, nodes: list[int], effects: list[int]) -> np.ndarray | None:
    """float64 [nodes, effects] (one-to-one: [nodes, 1]): the Euclidean norms of the edges' weights; None of too many
    to be kept."""
    if link.kind not in ONE_TO_ONE and len(nodes) * len(effects) > NORMS_UP_TO:
        return None
    weight = link.weight().double().cpu()
    if link.kind == "identity":
        return weight[nodes].numpy()[:, None]
    if link.kind == "depthwise":
        return rounded(torch.stack([weight[i, i] for i in nodes]).flatten(1).norm(dim=1), NORM_DIGITS)[:, None]
    local = [e - link.offset for e in effects]
    chosen = weight[local][:, nodes]
    return rounded(chosen.reshape(len(local), len(nodes), math.prod(chosen.shape[2:])).norm(dim=2).T, NORM_DIGITS)


def intervention_facts(options: Discovery) -> dict[str, object]:
    """The intervention as a graph carries it."""
    if options.soft:
        return {"kind": "value", "soft": [options.beta, options.beta + SOFT_WIDTH]}
    return options.intervention.model_dump(mode="json")


def search_facts(options: Discovery, n_samples: int) -> dict[str, object]:
    """What else decides which nodes a walk finds, as a graph carries it."""
    names = {"candidates", "screened_below", "retested", "refine", "dtype"}
    return {"n_samples": int(n_samples), **options.model_dump(mode="json", include=names)}


def _begun(partial: Path | None, about: dict) -> list[Layer]:
    """The layers of a walk that was cut off, if it was this very walk."""
    if partial is None or not partial.exists():
        return []
    graph = CausalGraph.load(partial)
    same = CausalGraph(**about, layers=graph.layers)
    return list(graph.layers) if same == graph else []
