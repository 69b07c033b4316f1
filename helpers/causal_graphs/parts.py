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
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.statistics import Selection
from helpers.causal_graphs.study import Checkpoint, Shelf, checkpoints, larger, working_folder

BASELINES = (*evaluate.SCORED, "guided_backprop", "deconvolution", "deep_lift", "lrp", "grad_cam", "occlusion", "rise")
"""The methods of spec section 5 that maps are scored beside."""

FEWER = (*evaluate.SCORED, "grad_cam")
"""Those for networks that are screened, for which a thousand passes a map are too many."""

SCREENED = ("dropped", "retested", "missed")

log = logging.getLogger(__name__)


def surgery(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """One record a mode and class (`surgery.record`)."""

    def compute(c: Checkpoint) -> list[dict[str, Any]]:
        images, options = c.images(), {"controls": c.study.controls, "seed": c.seed}
        return [cuts.record(c.network, g, images, **options) for mode in c.study.modes for g in c.graphs(mode).values()]

    return checkpoint.part("surgery.json", compute)


def stability(checkpoint: Checkpoint) -> pd.DataFrame:
    """`stability.by_beta` for every mode; the class is the first of `scored_classes`."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        target, tables = c.study.scored_classes[0], []
        sweep = sweeps.Sweep(betas=c.study.beta_grid, runs=c.study.stab_runs, n_samples=c.study.n_samples)
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
    """Columns target, method, metric, image, value. ``reference`` maps come from the reference graph, if there is one
    in the study."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        tables = []
        options = {"lipschitz": {"draws": c.study.lipschitz.k, "mean": c.study.lipschitz.mean,
                                 "std": c.study.lipschitz.std}}  # fmt: skip
        names = BASELINES if "reference" in c.study.modes else FEWER
        for target in c.study.scored_classes:
            rows = scored_images(c, target)
            x = c.images().inputs(rows).to(next(c.model.parameters()))
            ours = [name for name in evaluate.CAUSAL if name != "reference"]
            explainers = evaluate.causal(c.graph(target, c.study.modes[-1]), ["reference"], c.study.layer_name)
            explainers |= evaluate.causal(c.graph(target, "recommended"), ours, c.study.layer_name)
            explainers |= evaluate.baselines(names, layer=c.study.layer_name)
            targets = torch.full((len(x),), target, device=x.device)
            table = evaluate.compare(explainers, c.model, x, targets, options=options, seed=c.seed)
            tables.append(table.assign(target=target))
        return pd.concat(tables)[["target", "method", "metric", "image", "value"]]

    return checkpoint.part("scores.csv", compute)


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
        return experiments.pruning(c.network, graphs, c.images(), draws=c.study.controls, seed=c.seed)

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


def walks(checkpoint: Checkpoint) -> pd.DataFrame:
    """One row a class and layer of the recommended graphs, found anew: target, layer, kind, lower (nodes that could be
    tested), tested, dropped, retested, missed (`layers.Layer`), causes, inhibitors, effects, jaccard (mean, with the
    causes of the other classes), images, passes, seconds; and ``clean``, the seconds that the same images take through
    the whole network without a cut."""

    def compute(c: Checkpoint) -> pd.DataFrame:
        graphs, clean = [], {}
        for target in range(len(c.classes)):
            path = Shelf(working_folder(c.study)).graph_path(c.fit, "recommended", target)
            graphs.append(c.discover(target, "recommended", path))
            x = c.images().inputs(graphs[-1].sample_indices).to(next(c.model.parameters()))
            started = time.monotonic()
            c.network.record(x)
            clean[target] = time.monotonic() - started
            log.info("%s: class %d in %.0f s", c.fit.name, target, sum(layer.seconds for layer in graphs[-1].layers))
        shared = experiments.class_overlap(graphs)
        rows = []
        for graph in graphs:
            own = shared[(shared.one == graph.target) | (shared.other == graph.target)].groupby("layer").jaccard.mean()
            for layer in graph.layers:
                if layer.statistics is not None:
                    facts = {name: getattr(layer, name) for name in ("layer", "kind", *SCREENED, "passes", "seconds")}
                    sizes = {name: len(getattr(layer, name)) for name in ("tested", "causes", "inhibitors", "effects")}
                    lower = c.network.link(layer.layer).inputs
                    rows.append({"target": graph.target, "lower": lower, "jaccard": own[layer.layer]} | facts | sizes)
                    rows[-1] |= {"images": len(graph.sample_indices), "clean": clean[graph.target]}
        columns = ["target", "layer", "kind", "lower", "tested", *SCREENED, "causes", "inhibitors", "effects"]
        return pd.DataFrame(rows)[[*columns, "jaccard", "images", "passes", "seconds", "clean"]]

    return checkpoint.part("walks.csv", compute)


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
