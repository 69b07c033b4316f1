"""The release's main script, step by step, for one class: each step is one of the keys of its ``config.yaml`` (spec
explainnn, section 10), and writes where the release did (section 3.7).

    output/<dataset>/class_<t>/<model>_causal_graph.json          the graph (learn_explainer: discovered anew)
    output/<dataset>/class_<t>/stability.csv, .png                graph_stab
    output/<dataset>/class_<t>/instance_path_specific_attributions.safetensors, .png      gen_attr, save_attr, vis_attr
    output/<dataset>/class_<t>/baselines.png                      baseline_attr
    output/evaluation_metrics/<model>/<metric>.csv                eval_attr
    output/config.json                                            the resolved configuration, beside all of it
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from helpers import artifacts, figures, runtime
from helpers.causal_graphs import discover, evaluate, pictures, stability, tables
from helpers.causal_graphs import figures as drawn
from helpers.causal_graphs.graph import CausalGraph, graph_path
from helpers.causal_graphs.heatmaps import HeatMaps, heat_maps
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.study import Checkpoint, checkpoints, working_folder

MAPS = "instance_path_specific_attributions"


def run(study: CausalGraphsStudy) -> list[Path]:
    """Take the steps that are switched on, with the first checkpoint; returns the files that were written.

    Raises `ArtifactError` where a graph or saved maps are to be read and are not there, `ConfigError` for a class or
    layer that does not exist.
    """
    out = output_folder(study)
    artifacts.ensure_writable(out)
    checkpoint, written = checkpoints(study)[0], [out / "config.json"]
    artifacts.save_json(written[0], study.model_dump(mode="json"))
    graph = find_graph(checkpoint, written)
    folder = graph_path(out, study.dataset_name, study.model_name, study.target_idx).parent
    if study.graph_stab:
        written += sweep(checkpoint, graph, folder)
    if study.gen_attr or study.vis_attr:
        written += attribute(checkpoint, graph, folder)
    if study.baseline_attr:
        written.append(compare_with_baselines(checkpoint, graph, folder))
    if study.eval_attr:
        written += score(checkpoint, graph, out)
    return written


def output_folder(study: CausalGraphsStudy) -> Path:
    return Path(study.output_dir) if study.output_dir else working_folder(study) / "output"


def find_graph(checkpoint: Checkpoint, written: list[Path]) -> CausalGraph:
    """``learn_explainer``: discover the graph and save it; else the one saved here, or the study's own."""
    study = checkpoint.study
    path = graph_path(output_folder(study), study.dataset_name, study.model_name, study.target_idx)
    if study.learn_explainer:
        graph = checkpoint.discover(study.target_idx, path=path)
        written.append(path)
        return graph
    if not path.exists():
        return checkpoint.graph(study.target_idx)
    graph = CausalGraph.load(path)
    if not checkpoint.is_mine(graph, study.mode):
        raise artifacts.ArtifactError(
            f"{path} was discovered in other weights or with other settings; --learn_explainer discovers it anew, "
            "--output_dir takes another folder"
        )
    return graph


def sweep(checkpoint: Checkpoint, graph: CausalGraph, folder: Path) -> list[Path]:
    """E2 for ``layer_name_soft``."""
    study = checkpoint.study
    runs = stability.repeat(
        checkpoint.model, checkpoint.images(), graph, study.layer_name_soft, sweep=study.sweep(), seed=study.seed,
        progress=study.verbose,
    )  # fmt: skip
    table = stability.by_beta(runs)
    artifacts.atomic_write(folder / "stability.csv", table.to_csv(float_format="%.6g", lineterminator="\n"))
    picture = drawn.stability_curves({study.mode: table}, **tables.released_sweep(study, study.target_idx))
    return [folder / "stability.csv", figures.save(picture, folder / "stability.png")]


def attribute(checkpoint: Checkpoint, graph: CausalGraph, folder: Path) -> list[Path]:
    """Maps of one random test image of the class (``gen_attr``), or the saved ones; saved and shown as asked for."""
    study, written, path = checkpoint.study, [], folder / f"{MAPS}.safetensors"
    if study.gen_attr:
        x = random_image(checkpoint)
        maps = heat_maps(checkpoint.network, graph, x, study.layer_name, method=study.attribution_method)
        if study.save_attr:
            maps.save(path)
            written.append(path)
    else:
        maps = HeatMaps.load(path)
        if maps.target != study.target_idx:
            raise artifacts.ArtifactError(f"{path} is of class {maps.target}, not {study.target_idx}: set gen_attr")
    if study.vis_attr:
        shown = {maps.method: maps.combined}
        picture = pictures.effect_maps(maps, graph=graph) if maps.maps is not None else _grid(maps.x, shown)
        written.append(figures.save(picture, folder / f"{MAPS}.png"))
    return written


def random_image(checkpoint: Checkpoint) -> Tensor:
    """[1, C, H, W]: a test image of the class that the network gets right; another one with another seed."""
    study = checkpoint.study
    seed = runtime.stream(study.seed, "shown")
    row = discover.choose(checkpoint.model, checkpoint.images(), study.target_idx, 1, seed=seed)
    return checkpoint.images().inputs(row).to(next(checkpoint.model.parameters()))


def compare_with_baselines(checkpoint: Checkpoint, graph: CausalGraph, folder: Path) -> Path:
    """The release's five baselines beside the map, on the same image."""
    study, x = checkpoint.study, random_image(checkpoint)
    maps = heat_maps(checkpoint.network, graph, x, study.layer_name, method=study.attribution_method, per_effect=False)
    shown, target = {study.attribution_method: maps.combined}, torch.tensor([study.target_idx], device=x.device)
    for name, explain in evaluate.baselines(evaluate.SHOWN).items():
        shown[name] = explain(checkpoint.model, x, target)
    return figures.save(_grid(x, shown), folder / "baselines.png")


def score(checkpoint: Checkpoint, graph: CausalGraph, out: Path) -> list[Path]:
    """IROF and Lipschitz estimates of all maps, the scored baselines and the controls, on ``n_samples`` images."""
    study = checkpoint.study
    seed = runtime.stream(study.seed, "scored")
    rows = discover.choose(checkpoint.model, checkpoint.images(), study.target_idx, study.n_samples, seed=seed)
    x = checkpoint.images().inputs(rows).to(next(checkpoint.model.parameters()))
    noise = {"draws": study.lipschitz.k, "mean": study.lipschitz.mean, "std": study.lipschitz.std}
    table = evaluate.compare(
        evaluate.causal(graph, layer_name=study.layer_name) | evaluate.baselines(),
        checkpoint.model,
        x,
        torch.full((len(x),), study.target_idx, device=x.device),
        scores=("irof", f"lipschitz_{study.lipschitz.scale}"),
        options={"lipschitz": noise},
        seed=study.seed,
        progress="scores" if study.verbose else None,
    )
    return evaluate.write(table, out, study.model_name)


def _grid(x: Tensor, maps: dict[str, Tensor]) -> figures.Picture:
    images = torch.stack([torch.as_tensor(pictures.image_of(image)) for image in x])
    return pictures.map_grid(images, {name: heat.cpu() for name, heat in maps.items()})
