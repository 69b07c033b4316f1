"""Post-hoc explanations of the CNN, measured like the PiNets' own: the same MARS report for every method."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pandas as pd

from helpers import artifacts, attribution, config
from helpers.pinets import evaluate, fits
from helpers.pinets.fits import Fit, Tensors
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf, checked, choose_shelf, working_folder

GROUP = "cnn"

# The methods, and two controls that look at nothing: whatever beats those has found something.
METHODS: dict[str, dict[str, Any]] = {
    "grad_cam": {"layer": "encoder"},
    "gradient": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 16},
    "smooth_grad": {"samples": 16},
    "occlusion": {"window": 16, "stride": 8},
    "kernel_shap": {"grid": 5, "samples": 200},
    "constant_map": {},
    "random_map": {},
}


def collect(study: ToyShapesStudy) -> pd.DataFrame:
    """One row for each method and CNN: detection (naive, optimal, validated), accuracy on the explained part, shift.

    Read from the shelf that the study's records come from; computed if ``RETRAIN`` or ``REEVALUATE`` ask for it. The
    first ``study.baseline_images`` of the test set are used (`first`). No rows where the CNNs are not among the
    ``study.groups``.
    """
    if GROUP not in study.groups:
        return frame([])
    shelf = choose_shelf(study)
    if not (study.retrain or study.reevaluate):
        read = (artifacts.load_json(artifacts.check_file(path) if shelf.shipped else path) for path in paths(shelf))
        return frame(_checked(record, study, shelf) for record in islice(read, study.baseline_fits))
    source = shelf
    if shelf.shipped:  # where the study's records of shipped weights go too
        shelf = Shelf(working_folder(study) / "reevaluated")
    records = []
    for fit in _fits(study, source):
        path = shelf.results / "baselines" / f"{fit.seed}.json"
        weights = artifacts.sha256(source.weights_path(fit))
        record = artifacts.load_json(path) if path.exists() and study.retrain else None  # of a run that was cut off
        if record is None or record["computed_from"] != _computed_from(study, weights):
            record = evaluate_fit(fit, study, source)
            artifacts.save_json(path, record)
        records.append(record)
    return frame(records)


def paths(shelf: Shelf) -> list:
    """The records of a shelf, in the order of their seeds. Raises `ArtifactError` if there is none."""
    found = sorted((shelf.results / "baselines").glob("*.json"), key=lambda path: int(path.stem))
    if not found:
        raise artifacts.ArtifactError(f"there are no baselines in {shelf.results}; REEVALUATE=True makes them")
    return found


def evaluate_fit(fit: Fit, study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any]:
    """The reports of every method on one CNN."""
    model = shelf.model(fit, study)
    test = first(fits.test_set(study), study.baseline_images)
    validation = first(fits.replication(study, fit.data_seed)[1], study.baseline_images)
    reports = {}
    for name, options in METHODS.items():
        explain = attribution.explainer(name, **options)
        report = evaluate.mars(model, explain, test.x, test.y, test.masks, (validation.x, validation.masks))
        reports[name] = {key: value for key, value in report.items() if key != "curve"}
    weights = artifacts.sha256(shelf.weights_path(fit))
    return {"fit": fit.name, "methods": reports, "computed_from": _computed_from(study, weights)}


def first(images: Tensors, n: int) -> Tensors:
    """The first ``n``, or as many more as it takes until one shows the target: there is no detection without one."""
    positive = images.y.nonzero()[:, 0].tolist()
    return images[: max(n, positive[0] + 1) if positive else n]


def frame(records) -> pd.DataFrame:
    """One row a method and CNN."""
    rows = []
    for record in records:
        for method in METHODS:
            report = record["methods"][method]
            row = {"method": method, "fit": record["fit"], "recursive": report["recursive"]["accuracy"]}
            row |= {name: report[name] for name in ("accuracy", "shift", "alignment_residual")}
            row |= {f"{kind}_score": report[kind]["score"] for kind in ("naive", "optimal", "validated")}
            rows.append(row)
    return pd.DataFrame(rows)


def _fits(study: ToyShapesStudy, shelf: Shelf) -> list[Fit]:
    """The first accepted CNNs whose weights are at hand; when training, of those that count."""
    seeds = [int(name.rsplit("/", 1)[1]) for name in shelf.names(GROUP)]
    if study.retrain:
        seeds, _ = fits.accepted_seeds(study, GROUP, shelf.accepted)
    at_hand = [Fit(GROUP, seed) for seed in seeds if shelf.weights_path(Fit(GROUP, seed)).exists()]
    return [fit for fit in at_hand if shelf.accepted(fit)][: study.baseline_fits]


def _computed_from(study: ToyShapesStudy, weights: str) -> dict[str, Any]:
    facts = [study.data.model_dump(mode="json"), study.test_images, study.baseline_images, METHODS, evaluate.VERSION]
    return {"weights": weights, "settings": config.digest(facts)}


def _checked(record: dict[str, Any], study: ToyShapesStudy, shelf: Shelf) -> dict[str, Any]:
    """``record``, if it is of these settings, and of the network that lies on the shelf; else `ArtifactError`."""
    weights, made = shelf.weights / f"{record['fit']}.safetensors", record["computed_from"]
    if (network := shelf.record(record["fit"])) is not None:
        checked(network, study)
    if made["settings"] != _computed_from(study, "")["settings"]:
        raise artifacts.ArtifactError(
            f"the baselines of {record['fit']} were computed with other settings; run with REEVALUATE=True"
        )
    if weights.exists() and artifacts.sha256(weights) != made["weights"]:
        raise artifacts.ArtifactError(
            f"the baselines of {record['fit']} were computed from other weights than {weights}; run with "
            "REEVALUATE=True, or restore the file"
        )
    return record
