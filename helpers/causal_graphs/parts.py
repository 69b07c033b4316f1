"""The experiments of the study on one checkpoint, each computed once and kept as a part (spec explainnn, section 7).

    surgery(checkpoint)      E5: necessity, sufficiency and specificity of every class's graph, with random controls
    stability(checkpoint)    E2: a layer found again with other images and soft values
    scores(checkpoint)       E3, E4: Lipschitz estimates and IROF of maps, baselines, constant and random maps
    randomised(checkpoint)   graphs on random weights
    sizes(checkpoint)        E6: graphs from more and fewer images
    overlap(checkpoint)      E8: what the graphs of two classes share
    pruned(checkpoint)       E10: the network without the edges of no graph
    repaired(checkpoint)     E9: a planted shortcut is cut out
    walks(checkpoint)        E7: what the graphs of a larger network came to and cost

`collect` and `collect_larger` compute them all: ``python -m helpers.causal_graphs.parts``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers.causal_graphs import discover, evaluate, experiments, repair
from helpers.causal_graphs import stability as sweeps
from helpers.causal_graphs import surgery as cuts
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.study import Checkpoint, Shelf, checkpoints, larger, working_folder

BASELINES = (*evaluate.SCORED, "guided_backprop", "deconvolution", "deep_lift", "lrp", "grad_cam", "occlusion", "rise")
"""The methods of spec section 5 that maps are scored beside."""

FEWER = ("gradient", "input_x_gradient", "grad_cam")
"""Those for networks that are screened, for which a hundred passes a map are too many."""

SURGERY_IMAGES = 300  # of such a network
SCORED_AT_MOST = 3  # classes whose maps are scored, of such a network

STRONG = 0.02  # the delta of small networks

log = logging.getLogger(__name__)


def surgery(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """One record a mode and class (`surgery.record`)."""

    def compute(c: Checkpoint) -> list[dict[str, Any]]:
        images, options = c.images(), {"controls": c.study.controls, "seed": c.seed}
        options["n_images"] = SURGERY_IMAGES if c.study.screened else None
        return [cuts.record(c.network, g, images, **options) for mode in c.study.modes for g in c.graphs(mode).values()]

    return checkpoint.part("surgery.json", compute)


def stability(checkpoint: Checkpoint) -> pd.DataFrame:
    """`stability.by_beta` for every mode; the class is the first of `scored_classes`."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        target, tables = c.study.scored_classes[0], []
        sweep = c.study.sweep()
        for mode in c.study.modes:
            runs = sweeps.repeat(
                c.model, c.images(), c.graph(target, mode), c.study.layer_name_soft, sweep=sweep, seed=c.seed
            )
            tables.append(runs.assign(mode=mode, causes=[" ".join(map(str, found)) for found in runs.causes]))
        return pd.concat(tables)[["mode", "beta", "run", "u", "causes", "rule"]]

    table = checkpoint.part("stability.csv", compute)
    found = table.causes.fillna("").astype(str)
    return table.assign(causes=[tuple(map(int, map(float, nodes.split()))) for nodes in found])


def scores(checkpoint: Checkpoint) -> pd.DataFrame:
    """Columns target, method, image, metric, value. ``reference`` maps come from the reference graph."""
    keys = ["target", "method", "image"]

    def compute(c: Checkpoint) -> pd.DataFrame:
        tables = []
        options = {"lipschitz": {"draws": c.study.lipschitz.k, "mean": c.study.lipschitz.mean,
                                 "std": c.study.lipschitz.std}}  # fmt: skip
        names = FEWER if c.study.screened else BASELINES
        for target in c.study.scored_classes[: SCORED_AT_MOST if c.study.screened else None]:
            rows = scored_images(c, target)
            x = c.images().inputs(rows).to(next(c.model.parameters()))
            ours = [name for name in evaluate.CAUSAL if name != "reference"]
            explainers = evaluate.causal(c.graph(target, "recommended"), ours, c.study.layer_name)
            if not c.study.screened:  # the release's recipe is one for chains of layers
                explainers |= evaluate.causal(c.graph(target, "reference"), ["reference"], c.study.layer_name)
            explainers |= evaluate.baselines(names, layer=c.study.layer_name)
            targets = torch.full((len(x),), target, device=x.device)
            table = evaluate.compare(explainers, c.model, x, targets, options=options, seed=c.seed)
            tables.append(table.assign(target=target))
        # a column a metric in the file, which is a third of one that repeats its keys for each value
        return pd.concat(tables).set_index([*keys, "metric"]).value.unstack(sort=False).reset_index()

    table = checkpoint.part("scores.csv", compute).set_index(keys).rename_axis(columns="metric")
    return table.stack(future_stack=True).rename("value").reset_index()


def scored_images(checkpoint: Checkpoint, target: int) -> torch.Tensor:
    """int64: the images that maps of a class are scored on, none of them among those that its graphs were found on."""
    c, seen = checkpoint, set()
    for mode in c.study.modes:
        seen |= set(c.graph(target, mode).sample_indices)
    every = discover.choose(c.model, c.images(), target, len(seen) + c.study.scored_images, seed=c.seed)
    return torch.tensor([row for row in every.tolist() if row not in seen][: c.study.scored_images])


def randomised(checkpoint: Checkpoint) -> pd.DataFrame:
    """`evaluate.effect_mprt` of the first of `scored_classes`."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        graph = c.graph(c.study.scored_classes[0], "recommended")
        x = c.images().inputs(torch.tensor(graph.sample_indices)).to(next(c.model.parameters()))
        return evaluate.effect_mprt(graph, c.model, x, seed=c.seed)

    return checkpoint.part("randomised.csv", compute)


def sizes(checkpoint: Checkpoint) -> pd.DataFrame:
    """`experiments.by_size` of each mode and each of `scored_classes`, for hard cuts: columns mode, target, layer,
    size, count, std, lowest, highest, jaccard."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        tables = []
        for mode in c.study.modes:
            for target in c.study.scored_classes:
                table = experiments.sample_sizes(
                    c.model, c.images(), target, sizes=c.study.sample_grid, draws=c.study.draws,
                    options=c.study.discovery(mode), seed=c.seed,
                )  # fmt: skip
                tables.append(experiments.by_size(table).reset_index().assign(mode=mode, target=target))
        return pd.concat(tables)[["mode", "target", "layer", "size", "count", "std", "lowest", "highest", "jaccard"]]

    return checkpoint.part("sizes.csv", compute)


def overlap(checkpoint: Checkpoint) -> pd.DataFrame:
    """`experiments.class_overlap` of the recommended graphs; computed from them, so never kept."""
    return experiments.class_overlap(list(checkpoint.graphs("recommended").values()))


def pruned(checkpoint: Checkpoint) -> pd.DataFrame:
    """`experiments.pruning` by the recommended graphs of all classes."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        graphs = list(c.graphs("recommended").values())
        deltas = sorted({*experiments.DELTAS, c.study.delta})  # the study's own is in the ledger
        return experiments.pruning(c.network, graphs, c.images(), deltas=deltas, draws=c.study.controls, seed=c.seed)

    return checkpoint.part("pruned.csv", compute)


def repaired(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """`repair.repair` by both rules, of a checkpoint with a shortcut planted on class ``checkpoint.shortcut``."""

    def compute(c: Checkpoint) -> list[dict[str, Any]]:
        selection = Selection(alpha=c.study.alpha, fdr=c.study.fdr, delta=c.study.delta)
        found = []
        for rule in ("difference", "gain"):
            options = repair.Repair(rule=rule, selection=selection)
            found.append(
                repair.repair(
                    c.model, c.images("train"), c.images(), c.shortcut, options=options, controls=c.study.controls,
                    seed=c.seed,
                )
            )  # fmt: skip
        return found

    return checkpoint.part("repaired.json", compute)


def walk(checkpoint: Checkpoint, target: int) -> pd.DataFrame:
    """One row a layer of the recommended graph of class ``target``, found anew: layer, kind, lower (nodes that could be
    tested), tested, dropped, retested, missed (`layers.Layer`), causes, strong (those whose effect is at least `STRONG`
    of the outcome), inhibitors, effects, images, passes; ``seconds`` of the whole walk, and ``clean``, those that the
    same images take through the whole network without a cut."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        path = Shelf(working_folder(c.study)).graph_path(c.fit, "recommended", target)
        started = time.monotonic()
        graph = c.discover(target, "recommended", path)
        seconds = time.monotonic() - started
        return walked(c, graph, seconds)

    return checkpoint.part(f"walk_{target}.csv", compute)


def walked(c: Checkpoint, graph: CausalGraph, seconds: float) -> pd.DataFrame:
    """The rows of `walk`."""
    x = c.images().inputs(graph.sample_indices).to(next(c.model.parameters()))
    started = time.monotonic()
    c.network.record(x)
    about = {"images": len(x), "seconds": seconds, "clean": time.monotonic() - started}
    rows = []
    for layer in graph.layers:
        if layer.statistics is not None:
            facts = {
                name: getattr(layer, name) for name in ("layer", "kind", "dropped", "retested", "missed", "passes")
            }
            sizes = {name: len(getattr(layer, name)) for name in ("tested", "causes", "inhibitors", "effects")}
            sizes["strong"] = int((layer.statistics.mean_d <= -STRONG * layer.statistics.scale).sum())
            rows.append({"lower": c.network.link(layer.layer).inputs} | facts | sizes | about)
    columns = ["layer", "kind", "lower", "tested", "dropped", "retested", "missed", "causes", "strong", "inhibitors"]
    return pd.DataFrame(rows)[[*columns, "effects", "images", "passes", "seconds", "clean"]]


def walks(checkpoint: Checkpoint) -> pd.DataFrame:
    """`walk` of every class that has a graph, with a column target; and jaccard, the mean index of the layer's causes
    with those of the other classes."""
    tables = [walk(checkpoint, target).assign(target=target) for target in checkpoint.targets]

    def compute(c: Checkpoint) -> pd.DataFrame:
        return experiments.class_overlap(list(c.graphs("recommended").values()))

    shared = checkpoint.part("overlap.csv", compute)
    shared = pd.concat([shared.assign(target=shared[side]) for side in ("one", "other")])
    jaccard = shared.groupby(["target", "layer"]).jaccard.mean().reset_index()
    return pd.concat(tables, ignore_index=True).merge(jaccard, how="left", on=["target", "layer"])


def gather(checkpoints: Sequence[Checkpoint], part: Callable[[Checkpoint], Any]) -> Any:
    """A part of several checkpoints with a column (or key) ``seed``: one table, or one list of records."""
    found = {checkpoint.seed: part(checkpoint) for checkpoint in checkpoints}
    if all(isinstance(value, pd.DataFrame) for value in found.values()):
        return pd.concat([table.assign(seed=seed) for seed, table in found.items()], ignore_index=True)
    return [{"seed": seed, **record} for seed, records in found.items() for record in records]


PARTS: tuple[Callable[[Checkpoint], Any], ...] = (surgery, stability, scores, randomised, sizes, pruned)
LARGER = (walks, surgery, scores)


def collect(study: CausalGraphsStudy) -> None:
    """Make sure that every part of every checkpoint is there."""
    for checkpoint in checkpoints(study):
        for part in PARTS:
            part(checkpoint)
    for checkpoint in checkpoints(study, shortcut=study.scored_classes[0]):
        repaired(checkpoint)


def collect_larger(study: CausalGraphsStudy) -> dict[str, Checkpoint]:
    """The larger networks of the study, every part of theirs there."""
    found = larger(study, anew=True)
    for checkpoint in found.values():
        for part in LARGER:
            part(checkpoint)
    return found


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m helpers.causal_graphs.parts", description="train and measure all")
    parser.add_argument("--out", type=Path, help="folder of weights and results (runs/causal_graphs)")
    parser.add_argument("--preset", default="paper", choices=sorted(CausalGraphsStudy.presets))
    parser.add_argument("--networks", nargs="+", help="larger networks, instead: resnet18 convnext (hours)")
    given = parser.parse_args(arguments)
    study = CausalGraphsStudy().override(CausalGraphsStudy.presets[given.preset])
    study = study.override({"retrain": True, "out": str(given.out or "")})
    if given.networks:
        collect_larger(study.override({"networks": given.networks}))
    else:
        collect(study)
    return 0


if __name__ == "__main__":
    sys.exit(main())
