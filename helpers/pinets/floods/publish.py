"""``python -m helpers.pinets.floods.publish scenes water``: ship what was trained in the working folder.

Ships the records of all fits, and of drawn scenes alone the weights of two heads and the maps of a few chips: neither
real chips nor what was learned from them may be given away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from helpers import config, runtime
from helpers.data.flood_chips import DRAWN
from helpers.pinets.floods import maps
from helpers.pinets.floods.fits import Member, members, working_folder
from helpers.pinets.floods.presets import FloodsStudy, published
from helpers.pinets.floods.study import Shelf, baseline_name, baselines, collect
from helpers.shelf import refuse_loss, shipping


def publish(studies: Sequence[FloodsStudy]) -> list[str]:
    """Make the working folder's records the shipped ones; returns their names. Everything is checked before anything is
    replaced. Raises `ArtifactError` for what is missing, and for what is shipped and would be lost."""
    out = working_folder(studies[0])
    source, here = Shelf(out), {"retrain": False, "reevaluate": False, "out": str(out)}
    names = []
    for study in studies:
        own = study.override(here)
        names += [record["name"] for record in collect(own)]
        baselines(own)
        names.append(baseline_name(own))
    refuse_loss(Shelf(), names)
    made = {
        "settings": {study.preset: study.provenance() for study in studies},
        "environment": runtime.environment(),
    }
    with shipping(Shelf, made) as new:
        new.take(source, records=names)
        for study in studies:
            if study.data.name == DRAWN:
                _ship_maps(study.override(here), source, new)
    return names


def _ship_maps(study: FloodsStudy, source: Shelf, new: Shelf) -> None:
    """Heads and maps of a study of drawn scenes."""
    first: dict[str, Member] = {
        member.group: member
        for member in members(study)
        if member.seed == study.seed and member.rules == study.rules[0]
    }
    new.take(source, weights=[first[group] for group in maps.SHIPPED])
    for group in maps.SHIPPED:
        for chip in maps.SHOWN:
            maps.keep(first[group], source, chip, new.results)


if __name__ == "__main__":
    try:
        print("\n".join(publish([published(preset) for preset in sys.argv[1:] or ("scenes", "water")])))
    except config.PlainError as error:
        sys.exit(f"Sightline: {error}")
