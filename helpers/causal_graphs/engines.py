"""The logits under many interventions at once (spec explainnn, section 9).

``delta``, the default, adds the change that each cut makes to the layer's value and runs only what comes after it; for
the last layer nothing does, and the result is in closed form. ``vmap`` runs the whole model on edited copies of the
layer's weights: slower, but it needs no more than named layers. Neither touches the model.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.links import Link, link_output
from helpers.causal_graphs.network import Network, Values
from helpers.config import ConfigError, suggest

Engine = Literal["delta", "vmap"]

log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """The edges from ``sources`` (lower nodes) into ``effects`` (nodes of the layer's target space), all at once."""

    sources: tuple[int, ...]
    effects: tuple[int, ...]


def single_cuts(candidates: Sequence[int], effects: Sequence[int]) -> list[Cut]:
    """One cut for each lower node, into all the effects: do(i, E, u)."""
    return [Cut((i,), tuple(effects)) for i in candidates]


class Samples:
    """The images ``x`` [N, ...] that interventions are judged on, with what the network makes of them.

    Recorded values are kept when they take less than ``chunk_mb`` MB, else computed anew a block of images at a time.
    Raises ``ValueError`` if there is no image or a logit is not finite.
    """

    def __init__(self, network: Network, x: Tensor, chunk_mb: int = 256):
        if not len(x):
            raise ValueError("there is no image to intervene on")
        self.network, self.x, self.chunk_bytes = network, x, chunk_mb * 2**20
        size = x.element_size() * sum(math.prod(shape) for shape in network.shapes.values())
        self._rows = max(1, min(len(x), self.chunk_bytes // size))
        self._kept: list[Values] = []
        self.logits = torch.cat([values["logits"] for _, values in self.blocks()])
        if not self.logits.isfinite().all():
            raise ValueError("the model's logits are not finite")

    def __len__(self) -> int:
        return len(self.x)

    def blocks(self) -> Iterator[tuple[slice, Values]]:
        """(which images, everything recorded of them)."""
        if self._kept:
            yield slice(0, len(self.x)), self._kept[0]
            return
        for start in range(0, len(self.x), self._rows):
            rows = slice(start, start + self._rows)
            values = self.network.record(self.x[rows])
            if self._rows == len(self.x):
                self._kept = [values]
            yield rows, values

    def lower(self, link: Link) -> Tensor:
        """The values [N, ...] that hold the link's lower nodes."""
        return torch.cat([values[link.reads] for _, values in self.blocks()])


@torch.no_grad()
def cut_logits(
    samples: Samples,
    link: Link,
    cuts: Sequence[Cut],
    intervention: Intervention,
    *,
    seed: int = 0,
    engine: Engine = "delta",
) -> Tensor:
    """Logits [K, N, classes] under each of K ``cuts`` of ``link``.

    Raises `ConfigError` for an engine that does not exist or cannot do this intervention, ``ValueError`` for nodes that
    are not there or named twice.
    """
    for sources, effects in cuts:
        if len(set(sources)) < len(sources) or len(set(effects)) < len(effects):
            raise ValueError(f"{link.name}: a cut names each node once, not {list(sources)} and {list(effects)}")
        if not all(0 <= i < link.inputs for i in sources):
            raise ValueError(f"{link.name} has lower nodes 0..{link.inputs - 1}, not {list(sources)}")
        if not all(0 <= e - link.offset < link.outputs for e in effects):
            last = link.offset + link.outputs - 1
            raise ValueError(f"{link.name} leads into nodes {link.offset}..{last}, not {list(effects)}")
    if engine not in (engines := {"delta": _delta, "vmap": _vmap}):
        raise ConfigError(f"unknown engine {engine!r}: {suggest(engine, engines)}")
    classes = samples.logits.shape[1]
    if not cuts:
        return samples.logits.new_zeros(0, len(samples), classes)
    return engines[engine](samples, link, list(cuts), intervention, seed)


@torch.no_grad()
def first_order(
    samples: Samples,
    link: Link,
    cuts: Sequence[Cut],
    intervention: Intervention,
    outcome: Callable[[Tensor], Tensor],
    *,
    seed: int = 0,
) -> Tensor:
    """The effects [K, N] of ``cuts`` on ``outcome(logits)`` [N] to first order, from one backward pass: the gradient at
    the layer's value times the change there (spec section 9.3). Blind to saturation and redundancy."""
    predicted = samples.logits.new_empty(len(cuts), len(samples))
    for rows, values, chunks in _work(samples, link, cuts, intervention, seed):
        gradient = samples.network.gradient(values, link, outcome)
        for place, add_changes in chunks:
            change = gradient.new_zeros(place.stop - place.start, *gradient.shape)
            add_changes(change)
            predicted[place, rows] = (change * gradient).flatten(2).sum(-1)
    return predicted


# --------------------------------------------------------------------------------------------------- delta


def _delta(samples: Samples, link: Link, cuts: list[Cut], intervention: Intervention, seed: int) -> Tensor:
    logits = samples.logits.new_empty(len(cuts), len(samples), samples.logits.shape[1])
    for rows, values, chunks in _work(samples, link, cuts, intervention, seed):
        base = values[link.at]
        for place, add_changes in chunks:
            count = place.stop - place.start
            moved = base.repeat(count, *[1] * (base.ndim - 1))
            add_changes(moved.view(count, *base.shape))
            result = samples.network.resume(values, {link.at: moved}, count)
            logits[place, rows] = result.view(count, len(base), -1)
    return logits


def _work(
    samples: Samples, link: Link, cuts: Sequence[Cut], intervention: Intervention, seed: int
) -> Iterator[tuple[slice, Values, Iterator[tuple[slice, Callable[[Tensor], None]]]]]:
    """Cuts and images in parts that fit into memory: (which images, everything recorded of them, chunks of the cuts).
    A chunk is (which cuts, what adds their changes to a tensor [K, N, ...] of the layer's value)."""
    kernel = intervention.kernel(link, seed)
    lower = None if intervention.edits_weights else intervention.lower(link, samples.lower(link), seed)

    def chunks(below: Tensor) -> Iterator[tuple[slice, Callable[[Tensor], None]]]:
        at_once = max(1, samples.chunk_bytes // (samples.network.row_bytes(link) * len(below)))
        for start in range(0, len(cuts), at_once):
            chunk = list(cuts[start : start + at_once])
            add_changes = functools.partial(_add_changes, link=link, kernel=kernel, below=below, cuts=chunk)
            yield slice(start, start + len(chunk)), add_changes

    for rows, values in samples.blocks():
        yield rows, values, chunks(values[link.reads] if lower is None else lower[rows])


def _add_changes(moved: Tensor, link: Link, kernel: Tensor, below: Tensor, cuts: list[Cut]) -> None:
    """Add to ``moved`` [K, N, ...], the layer's value once for each cut, what the cut changes there."""
    axis = link.axis + 1
    if link.kind == "identity":
        for k, (sources, effects) in enumerate(cuts):
            channels = [i for i in sources if i + link.offset in effects]
            for i in channels:
                moved[k].select(link.axis, link.place + i).add_(below.select(link.axis, i), alpha=float(kernel[i]))
        return
    shared = cuts[0].effects
    if all(len(sources) == 1 and effects == shared for sources, effects in cuts):
        positions = link.positions(shared).to(moved.device)
        change = _single_changes(link, kernel[positions], below, [sources[0] for sources, _ in cuts])
        moved.index_add_(axis, positions, change)
        return
    for k, (sources, effects) in enumerate(cuts):
        positions = link.positions(effects).to(moved.device)
        block = kernel[positions][:, list(sources)]
        moved[k].index_add_(link.axis, positions, link_output(link, block, _columns(link, below, sources)))


def _single_changes(link: Link, kernel: Tensor, below: Tensor, sources: list[int]) -> Tensor:
    """The change [K, N, ...] that each of K lower nodes makes by itself, through ``kernel`` [E, inputs, ...]."""
    if link.kind == "linear":
        if link.block > 1:
            nodes = below.view(len(below), link.inputs, link.block)[:, sources]
            return torch.einsum("nkb,ekb->kne", nodes, kernel[:, sources])
        return torch.einsum("n...k,ek->kn...e", below[..., sources], kernel[:, sources])
    k, e = len(sources), len(kernel)
    each = kernel[:, sources].transpose(0, 1).reshape(k * e, 1, *kernel.shape[2:])
    change = link_output(link, each, below[:, sources], groups=k)
    return change.view(len(below), k, e, *change.shape[2:]).transpose(0, 1)


def _columns(link: Link, below: Tensor, sources: Sequence[int]) -> Tensor:
    """Those entries of ``below`` that belong to ``sources``, in the shape that the layer reads."""
    if link.block > 1:
        return below.view(len(below), link.inputs, link.block)[:, list(sources)].flatten(1)
    return below.index_select(link.axis, torch.tensor(sources, device=below.device))


# ---------------------------------------------------------------------------------------------------- vmap


def _vmap(samples: Samples, link: Link, cuts: list[Cut], intervention: Intervention, seed: int) -> Tensor:
    if link.module is None or not intervention.edits_weights:
        what = "skip connections" if link.module is None else f"interventions of kind {intervention.kind!r}"
        raise ConfigError(f"the engine 'vmap' edits weights, which {what} do not: take 'delta'")
    network, module = samples.network, link.module
    if "weight" not in dict(module.named_parameters(recurse=False)):
        raise ConfigError(f"the weights of {link.name} are made of others, which 'vmap' cannot edit: take 'delta'")
    weight, kernel = module.weight.detach(), intervention.kernel(link, seed)
    edited = torch.stack([_edited(link, weight, kernel, cut) for cut in cuts])
    name = f"{link.name}.weight"

    def run(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(network.model, {name: weight}, (x,))

    rows = max(1, min(len(samples), samples.chunk_bytes // network.row_bytes(link)))
    at_once = max(1, samples.chunk_bytes // (network.row_bytes(link) * rows))
    batched = torch.vmap(run, in_dims=(0, None), chunk_size=at_once)
    try:
        return torch.cat([batched(edited, x) for x in samples.x.split(rows)], 1)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("inplace", "match the broadcast shape")):
            raise
        log.warning("%s works in place, which cannot be batched: one cut at a time", type(network.model).__name__)
        return torch.stack([torch.cat([run(weight, x) for x in samples.x.split(rows)]) for weight in edited])


def _edited(link: Link, weight: Tensor, kernel: Tensor, cut: Cut) -> Tensor:
    """``weight``, as the module holds it, after one cut."""
    mask = torch.zeros(link.outputs, link.inputs, dtype=weight.dtype, device=weight.device)
    mask[link.positions(cut.effects)[:, None], torch.tensor(cut.sources)] = 1
    change = kernel * mask.view(*mask.shape, *[1] * (kernel.ndim - 2))
    if getattr(link.module, "groups", 1) > 1:
        outputs, inputs = link.outputs // link.module.groups, weight.shape[1]
        parts = [change[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs]
                 for g in range(link.module.groups)]  # fmt: skip
        return weight + torch.cat(parts)
    return weight + change.view_as(weight)
