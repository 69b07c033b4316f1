"""``python -m helpers.causal_graphs.publish``: ship what was trained and measured in the working folder.

Ships the weights of every checkpoint, every graph, every part, and the key figure; of the larger networks, whose
weights and graphs are tens of megabytes, the parts and what is known of the weights.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from helpers import artifacts, figures, runtime
from helpers.causal_graphs import parts, pictures
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.causal_graphs.study import MODES, Shelf, checkpoints, larger, working_folder
from helpers.shelf import shipping


def publish(study: CausalGraphsStudy) -> list[str]:
    """Make the working folder's checkpoints the shipped ones; returns their names.

    Reads every graph and part first, so that nothing stale or damaged is shipped, then assembles both sets beside the
    old ones, gives them their manifests and moves them into place. Raises `ArtifactError` for what is missing.
    """
    source = Shelf(working_folder(study))
    study = study.override({"retrain": False, "reevaluate": False, "out": str(working_folder(study))})
    plain, planted = checkpoints(study), checkpoints(study, shortcut=study.scored_classes[0])
    for checkpoint in plain:
        for mode in study.modes:
            checkpoint.graphs(mode)
        for part in parts.PARTS:
            part(checkpoint)
    for checkpoint in planted:
        parts.repaired(checkpoint)
    large = _larger(study, source)
    made = {"settings": study.provenance(), "environment": runtime.environment(), "data": study.dataset_name}
    with shipping(Shelf, made) as new:
        for checkpoint in plain + planted:
            target = new.weights / f"{checkpoint.fit.name}.safetensors"
            artifacts.atomic_write(target, source.weights_path(checkpoint.fit).read_bytes())
            shutil.copytree(source.results / checkpoint.fit.name, new.results / checkpoint.fit.name)
        for name, folder in large.items():
            shutil.copytree(folder, new.results / name, ignore=shutil.ignore_patterns(*MODES))
        figures.save(pictures.causal_graph(plain[0].graph(study.target_idx)), new.results / "key_figure.png")
    return [*(checkpoint.fit.name for checkpoint in plain + planted), *large]


def _larger(study: CausalGraphsStudy, source: Shelf) -> dict[str, Path]:
    """Where the parts of each larger network lie, by fit: in the working folder, all there and with what is known of
    the weights beside them, or else as they are shipped."""
    found = {}
    for checkpoint in larger(study, anew=True).values():
        name = checkpoint.fit.name
        found[name] = source.results / name
        if source.weights_path(checkpoint.fit).exists():
            measured = replace(checkpoint, study=checkpoint.study.override({"retrain": False}))
            for part in parts.LARGER:
                part(measured)
            artifacts.save_json(source.facts_path(checkpoint.fit), measured.metadata)
        elif (shipped := Shelf().facts_path(checkpoint.fit)).exists():
            found[name] = shipped.parent
        else:
            raise artifacts.ArtifactError(f"{name} was not measured: python -m helpers.causal_graphs.parts --networks")
    return found


if __name__ == "__main__":
    print("\n".join(publish(CausalGraphsStudy())))
