"""``python -m helpers.pinets.publish``: make what was trained in the working folder what is shipped.

Ships the records of all fits, the weights of the first few, the table, that of the fits in bfloat16 beside it, and the
key figure.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import artifacts, config, figures, runtime, training
from helpers.pinets import examples, fits, pictures
from helpers.pinets.fits import Fit
from helpers.pinets.presets import GROUPS, ToyShapesStudy
from helpers.pinets.study import CONTROL, Shelf, checked, control, control_frame, frame, working_folder
from helpers.shelf import shipping

SHIPPED_USUALLY = 5  # accepted fits a group whose weights are shipped
SHIPPED = {"naive": 1, "ensemble": 1}  # the large ones, to keep the repository small


def publish(study: ToyShapesStudy) -> dict[str, int]:
    """Make the working folder's records and first weights the shipped ones; returns the accepted fits a group.

    Both sets are assembled beside the old ones, checked (settings of ``study``, checksums of the weights), given their
    manifests and only then moved into place. Raises `ArtifactError` where they lack a group that is shipped.
    """
    out = working_folder(study)
    shelf = Shelf(out)
    _refuse_fewer_groups(study, shelf)
    counts: dict[str, int] = {}
    made = {"settings": study.provenance(), "environment": runtime.environment(), "data": study.data.digest()}
    with shipping(Shelf, made | {"accepted": counts}) as new:
        for group in study.groups:
            records = [checked(record, study) for name in shelf.names(group) if (record := shelf.record(name))]
            accepted = [record for record in records if record["training"]["accepted"]]
            counts[group] = len(accepted)
            for record in records:
                artifacts.save_json(new.record_path(record["fit"]), _with_history(record, out, study))
            for name, path in _weights_to_ship(group, accepted, [shelf.weights, Shelf().weights]).items():
                artifacts.atomic_write(new.weights / name, path.read_bytes())
        for path in sorted((shelf.results / "baselines").glob("*.json")):
            artifacts.atomic_write(new.results / "baselines" / path.name, path.read_bytes())
        _save_table(frame(records_of(new, study)), new.results / "fits.csv")
        _take_control(study, new)
        figures.save(_key_figure(records_of(new, study), study, new), new.results / "key_figure.png")
    return counts


def _refuse_fewer_groups(study: ToyShapesStudy, shelf: Shelf) -> None:
    """What is shipped is replaced as a whole, so that it would be gone where nothing new takes its place."""
    shipped = Shelf()
    lost = [
        group
        for group in GROUPS
        if any((shipped.results / "fits" / group).glob("*.json"))
        and not (group in study.groups and shelf.names(group))
    ]
    if any((shipped.results / "baselines").glob("*.json")) and not any((shelf.results / "baselines").glob("*.json")):
        lost.append("baselines")
    if lost:
        raise artifacts.ArtifactError(
            f"{shelf.results} has no results of {', '.join(lost)}, which are shipped and would be lost; run the "
            "notebook with RETRAIN=True (CONTINUE_SHIPPED=True takes over the shipped records) and all GROUPS first"
        )


def _with_history(record: dict[str, Any], out: Path, study: ToyShapesStudy) -> dict[str, Any]:
    """``record`` with the course of its training, taken from the log where it was kept before records held it."""
    how = record["training"]
    if "members" in how or "history" in how:
        return record
    group, seed = record["fit"].split("/")
    path = fits.work_folder(out, Fit(group, int(seed)), study) / "log.csv"
    if path.exists():
        return record | {"training": how | {"history": training.columns(training.read_log(path))}}
    return record


def records_of(shelf: Shelf, study: ToyShapesStudy) -> list[dict[str, Any]]:
    return [shelf.record(name) for group in study.groups for name in shelf.names(group)]


def _key_figure(records: list[dict[str, Any]], study: ToyShapesStudy, shelf: Shelf) -> figures.Picture:
    """The wide figure of the README."""
    chosen = fits.test_set(study)[examples.KEY_IMAGE : examples.KEY_IMAGE + 1]
    return pictures.key(chosen.x[0, 0], chosen.masks[0, 0], examples.maps(records, study, shelf, chosen.x))


def _weights_to_ship(group: str, accepted: list[dict[str, Any]], sources: list[Path]) -> dict[str, Path]:
    """The files of the first fits whose weights, those that the record was computed from, are in one of ``sources``, by
    their names; of a long training the first may be gone. Raises `ArtifactError` for fewer than are shipped."""
    wanted = min(SHIPPED.get(group, SHIPPED_USUALLY), len(accepted))
    chosen = list(islice(filter(None, (_weights_of(record, sources) for record in accepted)), wanted))
    if len(chosen) < wanted:
        raise artifacts.ArtifactError(
            f"{wanted} fits of {group} are shipped with their weights, but of the accepted only {len(chosen)} have "
            "the weights that their records were computed from"
        )
    return {name: path for files in chosen for name, path in files.items()}


def _weights_of(record: dict[str, Any], sources: list[Path]) -> dict[str, Path] | None:
    files = {}
    for weights, digest in record["computed_from"]["weights"].items():
        name = f"{weights}.safetensors"
        there = (source / name for source in sources if (source / name).exists())
        files[name] = next((path for path in there if artifacts.sha256(path) == digest), None)
    return files if all(files.values()) else None


def _take_control(study: ToyShapesStudy, new: Shelf) -> None:
    """The table of the fits in bfloat16: of those in the folder that they are trained in, or as it is shipped."""
    name, other = f"{CONTROL}.csv", control(study)
    shelf = Shelf(working_folder(other))
    if records := [checked(record, other) for record in records_of(shelf, other)]:
        _save_table(control_frame(records), new.results / name)
    elif (Shelf().results / name).exists():
        artifacts.atomic_write(new.results / name, artifacts.check_file(Shelf().results / name).read_bytes())


def _save_table(table: pd.DataFrame, path: Path) -> None:
    artifacts.atomic_write(path, table.round(5).to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    try:
        for name, count in publish(ToyShapesStudy()).items():
            print(f"{name}: {count} accepted fits")
    except config.PlainError as error:
        sys.exit(f"Sightline: {error}")
