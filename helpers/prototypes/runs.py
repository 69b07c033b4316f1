"""Runs of the command line: a folder each, laid out as the original's (spec pixpnet, section 9).

    <log-dir>/<dataset>[__run-id]/protonet/<time>[_DEBUG][_n]/
        csv/version_0/           metrics.csv, hparams.yaml, checkpoints/epoch=..-step=...safetensors
        tensorboard/version_0/   events..., hparams.yaml
        results/                 config.yaml, scores.yaml, model_info.yaml, best_model_path.txt, record.json (all of it)
        work/                    until the run is over

`load_run` gives the network and the settings of such a folder back; ``python -m helpers.prototypes -c config.yaml``
runs them again, and ``--resume FOLDER`` goes on with what was cut off.
"""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from helpers import artifacts, config, options, training
from helpers.config import PlainError
from helpers.prototypes import fits, losses
from helpers.prototypes.fits import Fit
from helpers.prototypes.models import Network
from helpers.prototypes.presets import Loss, PrototypesStudy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

GIT_HASH = "git_hash"  # of config.yaml: tells where it comes from, and is no setting
WEIGHTS = {**losses.WEIGHTS, "avg_separation_loss": "separation"}  # which a term of the loss is multiplied with


def run(study: PrototypesStudy, seed: int, folder: Path | None = None, *, progress: bool = False) -> Path:
    """Train a network and write its run into a new folder, or go on in ``folder``; returns the folder.

    Raises what `fits.train` does; a run that is refused before it trains leaves no folder.
    """
    return fits.fabric(study).launch(_run, study, seed, folder, progress)


def _run(fabric: Fabric, study: PrototypesStudy, seed: int, folder: Path | None, progress: bool) -> Path:
    fit, resumed = Fit(study, seed), folder is not None
    if fabric.global_rank == 0:
        folder = folder or new_folder(study)
        _describe(folder, study.override({"seed": seed, "seeds": 1}))
    folder = fabric.broadcast(folder)
    try:
        record = fits.train(
            fit,
            folder / "work",
            launched=fabric,
            events=folder / "tensorboard" / "version_0",
            features=log_folder(study) / "features",
            progress=progress,
        )
    except PlainError:  # a network or data that there cannot be: it never began
        if fabric.global_rank == 0 and not (resumed or any(path.is_file() for path in (folder / "work").rglob("*"))):
            shutil.rmtree(folder)
        raise
    if fabric.global_rank == 0:
        _write(folder, fit, record)
        log.info("%s", folder)
    return folder


def is_over(folder: Path) -> bool:
    """Was the run in ``folder`` brought to its end? Its working files are gone then."""
    return (folder / "results" / "record.json").exists() and not (folder / "work").exists()


def log_folder(study: PrototypesStudy) -> Path:
    return Path(study.log_dir) if study.log_dir else fits.working_folder(study) / "runs"


def new_folder(study: PrototypesStudy) -> Path:
    """A folder that there has not been, named by the time of day."""
    dataset = study.dataset.name.lower() + (f"__{study.run_id}" if study.run_id else "")
    stamp = time.strftime("%Y-%m-%dT%H_%M_%S") + ("_DEBUG" if study.debug else "")
    parent = log_folder(study) / dataset / study.model.name
    artifacts.ensure_writable(parent)
    for n in range(1000):
        folder = parent / (f"{stamp}_{n}" if n else stamp)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise artifacts.ArtifactError(f"{parent} holds a thousand runs of one second")


def read_config(folder: Path) -> PrototypesStudy:
    """The settings of a run. Raises `ConfigError` if ``folder`` is none."""
    return options.resolve({"config": str(folder / "results" / "config.yaml")}, PrototypesStudy, ignored=(GIT_HASH,))


def load_run(folder: Path) -> tuple[Network, PrototypesStudy]:
    """(the network in eval mode, the settings) of a run that is over. Raises `ConfigError` or `ArtifactError` if it is
    not, or no run."""
    study, named = read_config(folder), folder / "results" / "best_model_path.txt"
    if named.exists():
        paths = [folder / named.read_text().strip()]
    else:
        paths = sorted((folder / "csv").rglob("*.safetensors"))
    if len(paths) != 1:
        raise artifacts.ArtifactError(f"{folder} holds {len(paths)} files of weights: it is no finished run")
    return fits.load(paths[0], Fit(study, study.seed))[0], study


# ------------------------------------------------------------------------------------------------- what is written


def _describe(folder: Path, study: PrototypesStudy) -> None:
    """What is known beforehand."""
    settings = study.model_dump(mode="json") | {GIT_HASH: _git_hash(), "log_dir": str(log_folder(study))}
    _write_yaml(folder / "results" / "config.yaml", settings)
    for kind in ("csv", "tensorboard"):
        sections = {name: settings[name] for name in ("optimizer", "train", "model")}
        _write_yaml(folder / kind / "version_0" / "hparams.yaml", sections)


def _write(folder: Path, fit: Fit, record: Mapping[str, Any]) -> None:
    """What is known afterwards."""
    study, results, version = fit.study, folder / "results", folder / "csv" / "version_0"
    rows = _rows(record, study)
    scores = {f"test_{name}": value for name, value in _weighted(record["test"], study.loss).items()}
    test_row = {"epoch": rows[-1]["epoch"], "step": rows[-1]["step"], **scores}
    artifacts.atomic_write(version / "metrics.csv", training.as_csv([*rows, test_row]))
    _write_yaml(results / "scores.yaml", [scores])
    _write_yaml(results / "model_info.yaml", record["info"] | {"receptive_field": record["receptive_field"]})
    artifacts.save_json(results / "record.json", record)
    _tell_tensorboard(folder / "tensorboard" / "version_0", scores, test_row["step"])

    kept = rows[record["kept_epoch"] - 1]
    weights = version / "checkpoints" / f"epoch={kept['epoch']}-step={kept['step']}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(fits.weights_path(folder / "work", fit), weights)
    if study.train.checkpoint:
        artifacts.atomic_write(results / "best_model_path.txt", f"{weights.relative_to(folder).as_posix()}\n")
    for profile in (folder / "work" / fit.name).glob("profile.*"):
        shutil.copyfile(profile, results / profile.name)
    shutil.rmtree(folder / "work")


def _rows(record: Mapping[str, Any], study: PrototypesStudy) -> list[dict[str, Any]]:
    """A row an epoch, with the original's names, epochs from 0 and steps of the optimizer since the beginning."""
    history, rows, step = record["history"], [], 0
    for k, epoch in enumerate(history["epoch"]):
        step += math.ceil(history["step"][k] / study.train.accumulate_grad_batches)
        told = {name: column[k] for name, column in history.items() if name not in ("epoch", "step", "loss")}
        rows.append({"epoch": epoch - 1, "step": step, **_weighted(told, study.loss)})
    return rows


def _weighted(told: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """``told``, and of each term of the loss also ``<name>_weighted``, what it adds to the total."""
    found = dict(told)
    for name, value in told.items():
        term = name.removeprefix("train_").removeprefix("val_")
        if term in WEIGHTS and value is not None:
            found[f"{name}_weighted"] = value * getattr(loss, WEIGHTS[term])
    return found


def _tell_tensorboard(folder: Path, scores: Mapping[str, float | None], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, filename_suffix=".test") as writer:
        for name, value in scores.items():
            if value is not None:
                writer.add_scalar(name, value, step)


def _write_yaml(path: Path, value: Any) -> None:
    artifacts.atomic_write(path, yaml.safe_dump(value, sort_keys=False, default_flow_style=None))


def _git_hash() -> str:
    """Of the clone that this is, or empty."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=config.ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
