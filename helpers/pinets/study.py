"""The ToyShapes study: train and evaluate what is missing, or read what is shipped (the RETRAIN and REEVALUATE gates).

A *record* is what is known of one fit: how its training went, its MARS report on the shared test set, and what the
report was computed from. Records are JSON files, one a fit, written the moment they are known.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import artifacts, config, metrics
from helpers.pinets import evaluate, fits, together
from helpers.pinets.fits import Fit
from helpers.pinets.models import CNN, Ensemble, PiNet
from helpers.pinets.presets import GROUPS, ToyShapesStudy
from helpers.shelf import StudyShelf

STUDY = "toyshapes"
CONTROL = "bfloat16"  # the same fits in that precision: trained in a folder of this name within OUT, shipped as a table
PARTS = {"group", "fit", "training", "test", "computed_from"}  # of a record

log = logging.getLogger(__name__)


class Shelf(StudyShelf):
    study = STUDY

    def weights_path(self, fit: Fit) -> Path:
        return self.checked(self.weights / f"{fit.name}.safetensors")

    def metadata(self, fit: Fit) -> dict[str, Any]:
        return artifacts.load_tensors(self.weights_path(fit))[1]

    def model(self, fit: Fit, study: ToyShapesStudy) -> PiNet | CNN:
        return fits.load(self.weights_path(fit), study, fit)

    def ensemble(self, members: Iterable[Fit], study: ToyShapesStudy) -> Ensemble:
        return Ensemble([self.model(member, study) for member in members]).eval()

    def record_path(self, name: str) -> Path:
        return self.results / "fits" / f"{name}.json"

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of that name; None if there is none. Raises `ArtifactError` if it was edited or swapped, or, of
        a shipped one, if it is not the manifest's."""
        path = self.record_path(name)
        if not path.exists() and not (self.shipped and name in self.names(name.split("/")[0])):
            return None
        record = artifacts.load_json(artifacts.check_file(path) if self.shipped else path)
        if not isinstance(record, dict) or record.get("fit") != name or not PARTS <= set(record):
            remedy = "restore it, or delete it and run again"
            raise artifacts.ArtifactError(f"{path} is not the record of {name}: it was edited or swapped; {remedy}")
        return record

    def names(self, group: str) -> list[str]:
        """The records of a group, in the order of their seeds: those in the folder, or that the manifest names."""
        there = artifacts.listed(self.results) if self.shipped else (self.results / "fits" / group).glob("*.json")
        seeds = (int(path.stem) for path in map(Path, there) if path.match(f"fits/{group}/[0-9]*.json"))
        return [f"{group}/{seed}" for seed in sorted(seeds)]

    def at_hand(self, record: dict[str, Any]) -> bool:
        """Are the weights that ``record`` was computed from here? What a manifest names counts: if it is gone, that is
        an error when it is opened, and no reason to look at another fit."""
        files = [f"{name}.safetensors" for name in record["computed_from"]["weights"]]
        there = artifacts.listed(self.weights) if self.shipped else [f for f in files if (self.weights / f).exists()]
        return all(file in there for file in files)

    def accepted(self, fit: Fit) -> bool | None:
        """Was the fit accepted? None if it is not done: a single fit is with its record, a member of an ensemble with
        its weights, or with the record of its ensemble (the members' weights need not be kept)."""
        if fit.ensemble is None:
            record = self.record(fit.name)
            return record["training"]["accepted"] if record else None
        if self.weights_path(fit).exists():
            return self.metadata(fit)["accepted"]
        training = (self.record(f"{fit.group}/{fit.ensemble}") or {"training": {}})["training"]
        known = dict.fromkeys(training.get("members", ()), True) | dict.fromkeys(training.get("rejected", ()), False)
        return known.get(fit.seed)


def working_folder(study: ToyShapesStudy) -> Path:
    """Where new weights and results go: ``OUT``, or ``runs/toyshapes``."""
    return study.out_folder(STUDY)


def choose_shelf(study: ToyShapesStudy) -> Shelf:
    """The working folder when training, or when ``OUT`` names one that holds this study; else what is shipped."""
    if study.retrain or (study.out and (working_folder(study) / "weights").is_dir()):
        return Shelf(working_folder(study))
    return Shelf()


def collect(study: ToyShapesStudy) -> list[dict[str, Any]]:
    """The records of ``study.groups``, rejected fits included.

    ``REEVALUATE`` computes the reports of the weights at hand anew; ``RETRAIN`` trains and evaluates what ``OUT`` does
    not hold yet, and returns the records that count: seeds from ``seed`` upwards until ``fits`` are accepted, the first
    ``ensembles``. Otherwise all are read. They come from one shelf: what is shipped is never mixed with what is new,
    unless ``continue_shipped`` asks for it. Raises `ArtifactError` for a record that is missing, damaged or stale.
    """
    shelf = choose_shelf(study)
    if study.retrain:
        artifacts.ensure_writable(working_folder(study))
        _refuse_other_settings(study, shelf)
        if study.continue_shipped:
            _take_shipped_records(study)
    if study.reevaluate:
        shelf = _reevaluate(study, shelf)
    if study.retrain:
        _read(study, shelf)  # a stale record is better known before hours of training than after
        _refuse_other_members(study, shelf)
        if study.together:
            together.run_missing(study, shelf.accepted, run, working_folder(study), study.together)
        else:
            fits.run_missing(study, shelf.accepted, run)
        _finish_ensembles(study, shelf)
    records = _that_count(study, _read(study, shelf)) if study.retrain else _read(study, shelf)
    for group in study.groups:
        if all(record["group"] != group for record in records):
            raise artifacts.ArtifactError(f"no results of {group!r} are in {shelf.results}; RETRAIN=True makes them")
    return records


def frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a fit: group, label, seed, whether it has the paper's settings, accepted, how training went, and every
    number of the report."""
    rows, paper = [], {group: Fit(group, 0).digest(ToyShapesStudy()) for group in GROUPS}
    for record in records:
        row = {"group": record["group"], "fit": record["fit"], "seed": int(record["fit"].rsplit("/", 1)[1])}
        row["paper_settings"] = record["computed_from"]["settings"] == paper[record["group"]]
        row |= {k: v for k, v in record["training"].items() if not isinstance(v, list | dict)}
        test = record["test"]
        row |= {"accuracy": test["accuracy"], "shift": test["shift"], "alignment_residual": test["alignment_residual"]}
        for kind in ("naive", "optimal", "validated"):
            row |= {f"{kind}_{name}": value for name, value in test.get(kind, {}).items()}
        recursive = test["recursive"]
        row["recursive"] = recursive["accuracy"]
        if "legacy" in recursive:
            row |= {"majority_recursive": recursive["majority"], "legacy_recursive": recursive["legacy"]}
            row["legacy_shift"] = test["accuracy"] - recursive["legacy"]
        for level in evaluate.LEVELS:
            row[f"range_{level}"] = metrics.range_length(scores(record), level)
        rows.append(row)
    rows.sort(key=lambda row: (GROUPS.index(row["group"]), row["seed"]))
    return pd.DataFrame(rows)


def control(study: ToyShapesStudy) -> ToyShapesStudy:
    """The same study in bfloat16, in a working folder of its own."""
    return study.override({"group.*.training.precision": CONTROL, "out": str(working_folder(study) / CONTROL)})


def control_frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """`frame`, and what the fits were computed from."""
    made = {record["fit"]: record["computed_from"] for record in records}
    table = frame(records)
    return table.assign(**{name: [made[fit][name] for fit in table.fit] for name in ("settings", "test")})


def shipped_control(study: ToyShapesStudy) -> pd.DataFrame:
    """The shipped `control_frame`, of the groups that ``study`` has as they were trained but for the precision."""
    path = Shelf().results / f"{CONTROL}.csv"
    if path.name not in artifacts.listed(path.parent):
        return pd.DataFrame(columns=["group", "accepted"])
    table, other = pd.read_csv(artifacts.check_file(path)), control(study)
    wanted = {group: (Fit(group, 0).digest(other), _test_digest(other)) for group in study.groups}
    return table[[wanted.get(row.group) == (row.settings, row.test) for row in table.itertuples()]]


def scores(record: dict[str, Any]):
    """The detection score [T] at each threshold of `metrics.THRESHOLDS`."""
    curve = record["test"]["curve"]
    return pd.Series(curve["tdr"]).to_numpy() * pd.Series(curve["tar"]).to_numpy()


# ------------------------------------------------------------------------------------------------ one record


def run(fit: Fit, study: ToyShapesStudy) -> bool:
    """Train a fit, evaluate it, and with an ensemble's last member the ensemble; keep all of it. Was it accepted?"""
    out = working_folder(study)
    shelf = Shelf(out)
    if not shelf.weights_path(fit).exists():
        fits.train(fit, study, out, progress=study.workers == 1)
    accepted = bool(shelf.metadata(fit)["accepted"])
    if fit.ensemble is None:
        _keep(out, evaluate_fit(fit, study, shelf))
    elif record := evaluate_ensemble(fit.group, fit.ensemble, study, shelf):
        _keep(out, record)
    return accepted


def _finish_ensembles(study: ToyShapesStudy, shelf: Shelf) -> None:
    """Evaluate the ensembles that were cut off between their last member and their record, and those whose record is of
    other members than count now."""
    for group in study.groups:
        for ensemble in range(study.ensembles) if getattr(study.group, group).ensemble else ():
            record = shelf.record(f"{group}/{ensemble}")
            members, _ = fits.accepted_seeds(study, group, shelf.accepted, ensemble)
            if record is None or record["training"]["members"] != members:
                _keep(working_folder(study), evaluate_ensemble(group, ensemble, study, shelf))


def evaluate_fit(fit: Fit, study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any]:
    """The record of one fit, from its weights."""
    model, training = shelf.model(fit, study), shelf.metadata(fit)
    if isinstance(model, PiNet):
        training["evidence_weight"] = model.aggregator.scale().item()  # the paper's b squared
        training["evidence_bias"] = model.aggregator.bias.item()
    return _record(fit.group, fit.name, training, model, [fit], study, shelf)


def evaluate_ensemble(group: str, ensemble: int, study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any] | None:
    """The record of an ensemble, from its members' weights; None while it has too few."""
    accepted, rejected = fits.accepted_seeds(study, group, shelf.accepted, ensemble)
    members = [Fit(group, seed, ensemble) for seed in accepted]
    if len(members) < study.members or not all(shelf.weights_path(member).exists() for member in members):
        return None
    metadata = [shelf.metadata(member) for member in members]
    training = {
        "accepted": True,
        "members": accepted,
        "rejected": rejected,
        "epochs": sum(m["epochs"] for m in metadata),
        "seconds": round(sum(m["seconds"] for m in metadata), 1),
    }
    model = shelf.ensemble(members, study)
    return _record(group, f"{group}/{ensemble}", training, model, members, study, shelf)


def _record(group, name, training, model, members: list[Fit], study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any]:
    test, (_, validation) = fits.test_set(study), fits.replication(study, members[0].data_seed)
    report = evaluate.mars(
        model, evaluate.default_explainer(model), test.x, test.y, test.masks, (validation.x, validation.masks)
    )
    return {
        "group": group,
        "fit": name,
        "training": {k: v for k, v in training.items() if k not in ("fit", "group", "settings")},
        "test": report,
        "computed_from": {
            "settings": members[0].digest(study),
            "test": _test_digest(study),
            "weights": {member.name: artifacts.sha256(shelf.weights_path(member)) for member in members},
        },
    }


def _keep(out: Path, record: dict[str, Any]) -> None:
    artifacts.save_json(Shelf(out).record_path(record["fit"]), record)


def _test_digest(study: ToyShapesStudy) -> str:
    return config.digest([study.data.model_dump(mode="json"), study.test_images, evaluate.VERSION])


def checked(record: dict[str, Any], study: ToyShapesStudy) -> dict[str, Any]:
    """``record``, if it was computed with the settings of ``study``; else `ArtifactError`."""
    made = record["computed_from"]
    if made["settings"] != Fit(record["group"], 0).digest(study):
        raise artifacts.ArtifactError(
            f"the results of {record['fit']} were computed with other data, model or training settings; run with "
            "RETRAIN=True to train with these, or take back the changes to OVERRIDES and PRESET"
        )
    validated = record["test"].get("validated", {})
    if made["test"] != _test_digest(study) or not (evaluate.ENTRIES <= record["test"].keys() and "scale" in validated):
        raise artifacts.ArtifactError(
            f"the results of {record['fit']} were computed on another test set or by another version of the "
            "evaluation; run with REEVALUATE=True"
        )
    return record


# ----------------------------------------------------------------------------------------------- many records


def _read(study: ToyShapesStudy, shelf: Shelf) -> list[dict[str, Any]]:
    """The records of a shelf, of these settings and of the weights that lie beside them; else `ArtifactError`."""
    records = []
    for group in study.groups:
        for record in map(shelf.record, shelf.names(group)):
            members = record["training"].get("members")
            if members is not None and len(members) != study.members and not study.retrain:
                raise artifacts.ArtifactError(
                    f"{record['fit']} has {len(members)} members, not members = {study.members}; run with RETRAIN=True "
                    "to train such ensembles"
                )
            for name, made_from in checked(record, study)["computed_from"]["weights"].items():
                path = shelf.weights / f"{name}.safetensors"
                if path.exists() and artifacts.sha256(path) != made_from:
                    raise artifacts.ArtifactError(
                        f"the results of {record['fit']} were computed from other weights than {path}; run with "
                        "REEVALUATE=True, or restore the file"
                    )
            records.append(record)
    return records


def _that_count(study: ToyShapesStudy, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a working folder's records those of the fits that a run with these settings trains: not those of seeds before
    ``study.seed``, nor of more fits or ensembles than are wanted."""
    accepted = {record["fit"]: record["training"]["accepted"] for record in records}
    names: set[str] = set()
    for group in study.groups:
        if getattr(study.group, group).ensemble:
            seeds: Iterable[int] = range(study.ensembles)
        else:
            seeds = chain(*fits.accepted_seeds(study, group, lambda fit: accepted.get(fit.name)))
        names.update(f"{group}/{seed}" for seed in seeds)
    return [record for record in records if record["fit"] in names]


def _refuse_other_settings(study: ToyShapesStudy, shelf: Shelf) -> None:
    """Fits of other settings in the working folder could neither be counted nor be overwritten: `ArtifactError`."""
    for group in study.groups:
        wanted = Fit(group, 0).digest(study)
        made = {shelf.record_path(n): shelf.record(n)["computed_from"]["settings"] for n in shelf.names(group)}
        for path in (shelf.weights / group).rglob("*.safetensors"):
            made[path] = artifacts.load_tensors(path)[1].get("settings")
        for path, settings in made.items():
            if settings != wanted:
                raise artifacts.ArtifactError(
                    f"{path} was made with other data, model or training settings; choose another folder with OUT, or "
                    "delete that one"
                )


def _refuse_other_members(study: ToyShapesStudy, shelf: Shelf) -> None:
    """An ensemble of other members than its record's cannot be made where only the record was kept: `ArtifactError`."""
    for group in study.groups:
        for ensemble in range(study.ensembles) if getattr(study.group, group).ensemble else ():
            record = shelf.record(f"{group}/{ensemble}")
            members, _ = fits.accepted_seeds(study, group, shelf.accepted, ensemble)
            same = record and record["training"]["members"] == members and len(members) == study.members
            there = (shelf.weights_path(Fit(group, seed, ensemble)).exists() for seed in members)
            if record and not same and not all(there):
                raise artifacts.ArtifactError(
                    f"{shelf.record_path(record['fit'])} is of other members than SEED and members ask for, and not "
                    "all weights are there to make it anew; take back those changes, or choose another folder with OUT"
                )


def _reevaluate(study: ToyShapesStudy, shelf: Shelf) -> Shelf:
    """A shelf with the reports of every fit of ``shelf`` that has its weights computed anew: the same one, or where it
    is the shipped one, ``reevaluated`` in the working folder."""
    out = working_folder(study)
    artifacts.ensure_writable(out)
    if shelf.shipped:
        out = out / "reevaluated"
        shutil.rmtree(out, ignore_errors=True)
    kept = 0
    for group in study.groups:
        for name in shelf.names(group):
            seed = int(name.rsplit("/", 1)[1])
            if getattr(study.group, group).ensemble:
                record = evaluate_ensemble(group, seed, study, shelf)
            else:
                fit = Fit(group, seed)
                record = evaluate_fit(fit, study, shelf) if shelf.weights_path(fit).exists() else None
            kept += record is None
            _keep(out, record or _as_it_is(name, study, shelf))
    if kept:
        log.warning("%d records were kept as they are: their weights are not there", kept)
    return Shelf(out)


def _as_it_is(name: str, study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any]:
    """The record of a fit whose weights are not on ``shelf``. Raises `ArtifactError` if it would have to be another."""
    try:
        return checked(shelf.record(name), study)
    except artifacts.ArtifactError as error:
        raise artifacts.ArtifactError(
            f"{error}. But the weights of {name} are not in {shelf.weights}: RETRAIN=True trains them, or take back "
            "the change"
        ) from None


def _take_shipped_records(study: ToyShapesStudy) -> None:
    """Count the shipped records as done: copy those of these settings that the working folder lacks, and of the weights
    they were computed from those that are shipped, so that maps can be shown."""
    shipped, working = Shelf(), Shelf(working_folder(study))
    for group in study.groups:
        for name in shipped.names(group):
            if working.record(name) is None:
                _keep(working_folder(study), checked(shipped.record(name), study))
            made_from = shipped.record(name)["computed_from"]["weights"]
            if working.record(name)["computed_from"]["weights"] != made_from:
                continue  # another fit of the same seed
            for weights in made_from:
                source, target = (shelf.weights / f"{weights}.safetensors" for shelf in (shipped, working))
                if source.exists() and not target.exists():
                    artifacts.atomic_write(target, artifacts.check_file(source).read_bytes())
