"""``python -m helpers.prototypes.publish toybirds cub_subset``: ship what the working folder holds of these presets.

Ships the records of all fits, of their evaluation and of the cuts, the weights that the notebooks and their explorers
look into, and the key figure.
"""

from __future__ import annotations

import sys

from helpers import config, figures, runtime
from helpers.prototypes import examples, goldilocks
from helpers.prototypes import study as networks
from helpers.prototypes.evaluation import study as evaluation
from helpers.prototypes.evaluation.presets import EvaluationStudy
from helpers.prototypes.fits import working_folder
from helpers.prototypes.presets import PrototypesStudy
from helpers.prototypes.study import Member, Shelf
from helpers.shelf import refuse_loss, shipping

SHIPPED = (examples.MAIN, "birdnet@stage2/pixpnet", "birdnet@stage4/protopnet")  # weights, of the first seed


def publish(
    studies: list[PrototypesStudy], cuts: goldilocks.Goldilocks, evaluations: list[EvaluationStudy]
) -> list[str]:
    """Make the working folder's records the shipped ones; returns their names. The first of ``studies``, if there are
    any, is the one that is shown. All is checked before anything is replaced. Raises `ArtifactError` for what is
    missing, and for what is shipped and would be lost."""
    out = working_folder(studies[0]) if studies else working_folder(PrototypesStudy())
    source, here = Shelf(out), {"retrain": False, "reevaluate": False, "out": str(out)}
    goldilocks.collect(cuts.override(here))
    names = [member.name for member in goldilocks.members(cuts)]
    for kind, asked in ((networks, studies), (evaluation, evaluations)):
        names += [record["name"] for study in asked for record in kind.collect(study.override(here))]
    refuse_loss(Shelf(), names)
    made = {
        "settings": {study.preset: study.provenance() for study in [*studies, cuts]},
        "evaluation": {study.preset: study.evaluation.model_dump(mode="json") for study in evaluations},
        "environment": runtime.environment(),
    }
    with shipping(Shelf, made) as new:
        new.take(source, records=names)
        for shown in studies[:1]:
            new.take(source, weights=[Member(shown, group, shown.seed) for group in SHIPPED])
            nets = examples.prototype_nets(examples.nets(shown, new))
            key = examples.show(shown, next(iter(nets.values()))).looks_like(examples.KEY_IMAGE)
            figures.save(key, new.results / "key_figure.png")
    return names


if __name__ == "__main__":
    try:
        cuts = goldilocks.Goldilocks().override({**goldilocks.Goldilocks.presets["reduced"]})
        presets = sys.argv[1:]  # "toybirds" "cub_subset", as far as they are
        trained = [examples.published(preset) for preset in presets]
        evaluated = [examples.published(preset, EvaluationStudy) for preset in presets]
        print("\n".join(publish(trained, cuts, evaluated)))
    except config.PlainError as error:
        sys.exit(f"Sightline: {error}")
