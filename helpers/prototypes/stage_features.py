"""What every stage of a frozen backbone knows of an image, its mean over the cells, in one forward pass for all stages.

Kept on disk in shards, so that a pass that was cut off goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from helpers import artifacts
from helpers.config import ConfigError, suggest
from helpers.prototypes import tracing
from helpers.prototypes.batches import Part

SHARD = 256  # images a file
CHUNK = 32  # images that go through the backbone together

Features = dict[str, Tensor]
"""By stage: float32 [N, channels]."""


def averaging(module: nn.Module, stages: Sequence[str]) -> fx.GraphModule:
    """``module`` with another output: of each of ``stages`` (module paths) the mean over its cells, [B, channels].

    A mean is taken the moment its map is there, before anything can write over it or has to keep it. Raises
    `ConfigError` for a stage that there is not.
    """
    traced = tracing.trace(module)
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    known = tracing.stages(traced)
    if missing := [stage for stage in stages if stage not in known]:
        raise ConfigError(f"no stage {missing[0]!r}: {suggest(missing[0], known)}")
    graph, copies, means = fx.Graph(), {}, {}
    wanted = {known[stage] for stage in stages}
    for node in places:
        if node.op == "output":
            break
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node in wanted:
            means[node] = graph.call_method("mean", (copies[node], (2, 3)))
    graph.output(tuple(means[known[stage]] for stage in stages))
    found = fx.GraphModule(traced, graph, "Averaging")
    found.training = module.training
    return found


def stage_features(
    module: nn.Module,
    stages: Mapping[str, str],
    part: Part,
    folder: Path,
    device: torch.device,
    *,
    flipped: bool = False,
    progress: bool = False,
) -> tuple[Features, float]:
    """(features of ``part``'s images, or with ``flipped`` of their mirror images, by ``stages``, name to module path;
    seconds that the forward pass took). ``folder`` holds those of one module and part: shards that are missing there
    are computed. ``module`` is left in eval mode, on ``device`` and in channels_last."""
    network = averaging(module.eval(), list(stages.values())).to(device, memory_format=torch.channels_last)
    shards = []
    starts = range(0, len(part.labels), SHARD)
    bar = tqdm(starts, desc=folder.name, unit="shard", leave=False, disable=not progress)
    for start in bar:
        path = folder / f"{'flipped' if flipped else 'plain'}-{start:06d}.safetensors"
        if not path.exists():
            rows = torch.arange(start, min(start + SHARD, len(part.labels)))
            began = time.monotonic()
            values = [torch.cat(column) for column in zip(*_forward(network, part, rows, device, flipped), strict=True)]
            facts = {"seconds": round(time.monotonic() - began, 3)}
            artifacts.save_tensors(path, dict(zip(stages, values, strict=True)), facts)
        shards.append(artifacts.load_tensors(path))
    features = {stage: torch.cat([tensors[stage] for tensors, _ in shards]) for stage in stages}
    return features, sum(facts["seconds"] for _, facts in shards)


def _forward(
    network: nn.Module, part: Part, rows: Tensor, device: torch.device, flipped: bool
) -> Iterator[tuple[Tensor, ...]]:
    with torch.inference_mode():
        for some in rows.split(CHUNK):
            x = part.inputs(some).to(device, memory_format=torch.channels_last)
            yield tuple(value.float().cpu() for value in network(x.flip(-1) if flipped else x))
