"""The tables of the causal graphs notebook, as data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers.causal_graphs import evaluate, experiments, released, stability
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.network import Network
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.study import Checkpoint

MEANS = {
    "sparsity": "edges in the graph",
    "recall": "recall",
    "cut_recall": "recall, cut",
    "random_cut_recall": "recall, random cut",
    "others": "others",
    "cut_others": "others, cut",
    "auroc": "AUROC",
    "kept_auroc": "AUROC, kept",
    "random_kept_auroc": "AUROC, random kept",
}
"""Of the records of `surgery`, as columns of a table."""


def links(network: Network) -> pd.DataFrame:
    """What leads where: one row a link."""
    rows = {
        link.name: {
            "kind": link.kind,
            "from": link.source,
            "lower nodes": link.inputs,
            "into": link.target,
            "nodes": link.outputs,
            "weights an edge": link.weight()[0, 0].numel() if link.module else 1,
        }
        for link in network.links.values()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def counts(checkpoints: Sequence[Checkpoint], target: int) -> pd.DataFrame:
    """Causes of each layer in the graphs of class ``target``: a row a mode and seed, and the release's (MNIST, class
    3)."""
    rows = {}
    for mode in ("recommended", "reference"):
        for checkpoint in checkpoints:
            rows[f"{mode}, seed {checkpoint.seed}"] = checkpoint.graph(target, mode).counts().causes
    table = pd.DataFrame(rows).T
    table = table[[name for name in table if name != table.columns[-1]]]  # not the input
    if target == 3 and release_counts(checkpoints[0].study):
        table.loc[f"{released.KIND} (other weights)"] = {name: n for name, (n, _) in released.COUNTS.items()}
    return table.fillna(0).astype(int)


def accuracies(checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """Test accuracy, and epoch and seconds of training, by seed."""
    facts = ("accuracy", "validation_accuracy", "epoch", "seconds")
    rows = {f"seed {c.seed}": {name: c.metadata[name] for name in facts} for c in checkpoints}
    return pd.DataFrame.from_dict(rows, orient="index")


def appearance(sweep: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Mean appearance in % by beta, a column a seed, of `parts.stability`."""
    own = sweep[sweep["mode"] == mode]
    return pd.DataFrame({seed: 100 * stability.by_beta(runs).appearance for seed, runs in own.groupby("seed")})


def sweeps(sweep: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`stability.by_beta` of each mode, the mean over seeds."""
    found = {}
    for mode, own in sweep.groupby("mode"):
        each = [stability.by_beta(runs) for _, runs in own.groupby("seed")]
        found[str(mode)] = pd.concat(each).groupby(level=0).mean()
    return found


def metric_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over images of `parts.scores`: seed, target, method, metric, value."""
    return scores.groupby(["seed", "target", "method", "metric"], sort=False).value.mean().reset_index()


def metric_panels(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`evaluate.summarise` by class, all seeds' images together."""
    return {f"class {target}": evaluate.summarise(own) for target, own in scores.groupby("target")}


def metric_table(scores: pd.DataFrame, metrics: Sequence[str] = ("irof", "lipschitz_minmax")) -> pd.DataFrame:
    """Mean over seeds of the means over images, by method: a column a metric and class."""
    means = metric_means(scores[scores.metric.isin(metrics)])
    table = means.pivot_table(index="method", columns=["metric", "target"], values="value", sort=False)
    return table.round(2)


def sample_sizes(sizes: pd.DataFrame, target: int) -> dict[str, pd.DataFrame]:
    """What `figures.sample_sizes` draws, of one class, the mean over seeds."""
    own = sizes[sizes.target == target]
    columns = ["count", "std", "lowest", "highest", "jaccard"]
    return {
        str(mode): rows.groupby(["layer", "size"], sort=False)[columns].mean() for mode, rows in own.groupby("mode")
    }


def overlap(checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """`experiments.class_overlap` of the recommended graphs of every checkpoint, one below the other."""
    graphs = [list(checkpoint.graphs("recommended").values()) for checkpoint in checkpoints]
    return pd.concat([experiments.class_overlap(several) for several in graphs], ignore_index=True)


def repairs(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What a repair did, by rule and seed: accuracy on marked images of the other classes and on clean ones."""
    rows = {}
    for r in records:
        rows[f"{r['rule']}, seed {r['seed']}"] = {
            "layers": r["layers"] or "none",
            "edges cut": sum(r["edges"].values()),
            "unmarked": r["others"][0],
            "marked": r["marked"][0],
            "marked, repaired": r["marked"][1],
            "best random cut": max(r["random_marked"]),
            "clean accuracy lost": r["clean"][0] - r["clean"][1],
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def larger(networks: Mapping[str, Checkpoint], walks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the walks of each network came to (`parts.walks`): a column a network. Times are in passes of the
    same images through the whole network; the literal loop needs one for each node."""
    columns = {}
    for name, table in walks.items():
        facts = networks[name].metadata
        by_class = table.groupby("target")
        clean = by_class.clean.first()
        columns[f"{facts['model']}, {facts['preprocess']['size']} px"] = {
            "test accuracy": f"{facts['accuracy']:.1%}",
            "classes": len(clean),
            "images a class": _range(by_class.images.first()),
            "nodes below (the literal loop's passes)": round(by_class.lower.sum().mean()),
            "dropped by the gradient": f"{table.dropped.sum() / table.lower.sum():.1%}",
            "tested all the same, causes among them": f"{table.retested.sum()}, {table.missed.sum()}",
            "causes": _range(by_class.causes.sum()),
            "of these with 2 % of the logit or more": _range(by_class.strong.sum()),
            "inhibitors": _range(by_class.inhibitors.sum()),
            "passes that a walk takes as long as": _range((by_class.seconds.first() / clean).round().astype(int)),
        }
    return pd.DataFrame(columns)


def surgery(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """`parts.surgery` by network, means over classes [%]: of the whole network, ``cut`` without the edges of a class's
    graph, ``kept`` with no others, and the same with random graphs of the same shape."""
    rows = {}
    for name, graphs in records.items():
        of = {key: 100 * float(np.mean([np.mean(record[key]) for record in graphs])) for key in MEANS}
        rows[name] = {MEANS[key]: value for key, value in of.items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(MEANS.values()))
    return table.round({name: 3 if key == "sparsity" else 1 for key, name in MEANS.items()})


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def strongest(graph: CausalGraph, n: int = 3) -> pd.DataFrame:
    """The ``n`` strongest causes of every layer."""
    nodes = graph.nodes()
    causes = nodes[nodes.role == "cause"].sort_values("mean_d").groupby("layer", sort=False).head(n)
    causes = causes.sort_values(["layer", "mean_d"], ascending=[False, True])
    return causes[["layer", "source_layer", "node", "mean_d", "std_d", "mean_r", "q"]].round(3).reset_index(drop=True)


def release_counts(study: CausalGraphsStudy) -> Mapping[str, tuple[int, int]] | None:
    """What the release stores, where it can be compared: LeNet on MNIST, its logits, judged on 100 images."""
    same = (study.dataset_name, study.model_name, study.effect, study.n_samples) == ("MNIST", "LeNet", "logit", 100)
    return released.COUNTS if same else None


def released_sweep(study: CausalGraphsStudy, target: int) -> dict[str, Mapping[float, float] | None]:
    """What the release stores of a sweep over soft values, as `figures.stability_curves` takes it: of LeNet on MNIST,
    class 3, layer fc3, 10 runs at each; None each where something else is swept."""
    same = release_counts(study) and (target, study.layer_name_soft, study.stab_runs) == (3, "fc3", 10)
    return {"appearance": released.APPEARANCE if same else None, "jaccard": released.JACCARD if same else None}


def pruning(pruned: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of `parts.pruned`, at each delta."""
    keys = ["delta", "method", "draw"]
    return pruned.groupby(keys, sort=False, dropna=False)[["kept", "share", "accuracy"]].mean().reset_index()


def published_pruning(pruned: pd.DataFrame, delta: float) -> tuple[pd.DataFrame, float]:
    """(rows of `parts.pruned` at ``delta``, the mean share of edges that were kept there)."""
    own = pruned[np.isclose(pruned.delta, delta)]
    return own, float(own[own.method == "causal"].share.mean())
