"""``python -m helpers.self_explaining.publish``: ship what was trained and measured in the working folder.

Ships the records of all fits, the weights that the notebook and its explorer look into, and the key figure.
"""

from __future__ import annotations

import sys

from helpers import config, figures, runtime
from helpers.self_explaining import examples, fits
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.study import Member, Shelf, collect, members
from helpers.shelf import shipping

SHIPPED = "clean/lsx"  # of whose first seed the weights are, 2.4 MB, beside those that are shown


def publish(study: SelfExplainingStudy) -> list[str]:
    """Make the working folder's records and first weights the shipped ones; returns the names of the records.

    Both sets are assembled beside the old ones, checked (settings of ``study``, checksums of the weights), given their
    manifests and only then moved into place. Raises `ArtifactError` for what is missing.
    """
    out = fits.working_folder(study)
    source, study = Shelf(out), study.override({"retrain": False, "reevaluate": False, "out": str(out)})
    shown = examples.demonstration(study)
    records, everyone = collect(study), dict.fromkeys([*members(study), *members(shown)])
    collect(shown)
    made = {"settings": study.provenance(), "environment": runtime.environment(), "data": study.dataset}
    with shipping(Shelf, made) as new:
        new.take(source, records=[member.name for member in everyone])
        wanted = (Member(study, SHIPPED, study.first_seed), *members(shown))
        new.take(source, weights=[member for member in wanted if member.seed == study.first_seed])
        figures.save(examples.key_figure(study, records, new), new.results / "key_figure.png")
    return [member.name for member in everyone]


if __name__ == "__main__":
    preset = SelfExplainingStudy().override({**SelfExplainingStudy.presets["reduced"], "preset": "reduced"})
    try:
        print("\n".join(publish(preset)))
    except config.PlainError as error:
        sys.exit(f"Sightline: {error}")
