"""What the training modes do, and the evaluation of weights at hand: for the notebook and the shell alike.

    run(study)        # trains, or tests, explains or removes pixels with the weights of ``model_pt``
    evaluate(study)   # all of spec section 6, of ``model_pt`` and ``vanilla_model_pt``

What they find is logged, written below ``OUT`` and returned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers import artifacts, config, figures, runtime
from helpers.config import ConfigError
from helpers.self_explaining import evaluate as metrics
from helpers.self_explaining import fits, removal, weights
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.models import Net
from helpers.self_explaining.monitor import visible
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import Sets, sets

PICTURED = 100  # explanations in the picture of `save_explanations`, as many of each class

log = logging.getLogger(__name__)


def run(study: SelfExplainingStudy) -> list[dict[str, Any]]:
    """Do what ``study.training_mode`` says (spec section 4.4) with each of its seeds; a record of each.

    Raises `ConfigError` for ``model_pt`` missing or of the wrong name, `ArtifactError` for a file that is not what it
    should be, and what `fits.train` does.
    """
    fits.check_model_pt(study)
    act = MODES.get(study.training_mode)
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    return [act(study, seed) if act else train(study, seed) for seed in seeds]


def train(study: SelfExplainingStudy, seed: int) -> dict[str, Any]:
    """The metadata of the last weights, and their ``path``."""
    out, fit = fits.working_folder(study), Fit(study, seed)
    facts = fits.train(fit, out, progress=study.verbose)
    path = fits.weights_path(out, fit)
    log.info("%s: test accuracy %.2f %%", path, facts["accuracy"])
    return facts | {"path": str(path)}


def test(study: SelfExplainingStudy, seed: int) -> dict[str, Any]:
    """The accuracy of ``model_pt``, percent of the test images."""
    net, data = _loaded(study, seed)
    accuracy = metrics.accuracy(net, data.test_x, data.test_y)
    log.info("%s: test accuracy %.2f %%", study.model_pt, accuracy)
    return {"seed": seed, "accuracy": accuracy}


def faithfulness(study: SelfExplainingStudy, seed: int) -> dict[str, Any]:
    """How far the probability of the predicted class falls without the highest pixels of the explanations of the true
    label, and with them alone: the original's second version (spec section 6.5). Writes ``faithfulness.csv``."""
    net, data = _loaded(study, seed)
    heat = _maps(study, net, data).sum(1)
    table = removal.by_rank(net, data.test_x, heat, seed=seed)
    path = _folder(study, seed, "faithfulness", study.model_pt) / "faithfulness.csv"
    _write(path, table)
    found = removal.falls(table)
    log.info("%s\n%s", path, "\n".join(f"{name}: {value:.4f}" for name, value in found.items()))
    return {"seed": seed, "path": str(path)} | found


def save_explanations(study: SelfExplainingStudy, seed: int) -> dict[str, Any]:
    """Write ``explanations.safetensors``, the test set's inputs and maps [M, C, 28, 28] (as the network takes them, and
    gives them) and labels [M], and ``explanations.png``, ten times ten of the maps, each in its own range."""
    net, data = _loaded(study, seed)
    maps, folder = _maps(study, net, data), _folder(study, seed, "save_expls", study.model_pt)
    each = PICTURED // data.n_classes
    rows = torch.cat([(data.test_y == k).nonzero()[:each, 0] for k in range(data.n_classes)])
    heat = torch.cat([visible(one[None]) for one in maps[rows].sum(1, keepdim=True)])[:, 0]
    figures.save(figures.image_grid(heat.cpu(), columns=10, size=0.6), folder / "explanations.png")
    facts = {"model_pt": study.model_pt, "config": study.model_dump(mode="json"), "seed": seed}
    path = folder / "explanations.safetensors"
    artifacts.save_tensors(path, {"inputs": data.test_x, "maps": maps, "labels": data.test_y}, facts)
    log.info("%s: %d explanations", path, len(maps))
    return {"seed": seed, "path": str(path)}


MODES: dict[str, Callable[[SelfExplainingStudy, int], dict[str, Any]]] = {
    "test": test,
    "faithfulness": faithfulness,
    "save_expls": save_explanations,
}
"""The modes that train nothing."""


def evaluate(study: SelfExplainingStudy) -> pd.DataFrame:
    """All of spec section 6, of the weights ``model_pt`` and, if named, ``vanilla_model_pt``, for both labels and under
    both norms: a row a number. ``misc_model_pt`` is the encoder of the explanation similarity; without it, that is left
    out. Writes ``evaluation.csv``. Raises `ConfigError` if ``model_pt`` is not named or there are several seeds."""
    if not study.model_pt:
        raise ConfigError("evaluate needs --model_pt FILE (MODEL_PT): the weights that are evaluated")
    if study.seeds > 1:
        raise ConfigError(f"evaluate reads the weights of one seed, --random_seed, not of {study.seeds}")
    data = _data(study, study.first_seed)
    encoder = weights.read(study.misc_model_pt, study, data, study.first_seed) if study.misc_model_pt else None
    if encoder is None:
        log.warning("without --misc_model_pt, the encoder, there is no explanation similarity")
    parts = []
    for role, path in (("learner", study.model_pt), ("baseline", study.vanilla_model_pt)):
        if path:
            records = _evaluated(study, weights.read(path, study, data, study.first_seed), encoder, data)
            parts.append(pd.DataFrame(records).assign(role=role, model_pt=path, seed=study.first_seed))
    table = pd.concat(parts, ignore_index=True)
    files = (study.model_pt, study.vanilla_model_pt, study.misc_model_pt)
    path = _folder(study, study.first_seed, "evaluate", *filter(None, files)) / "evaluation.csv"
    _write(path, table)
    means = table[table.percent.isna()]
    overview = means.pivot_table(index="metric", columns=["role", "norm", "label"], values="value", sort=False)
    log.info("%s\n%s", path, overview.to_string(float_format="%.4g"))
    return table


def _evaluated(study: SelfExplainingStudy, net: Net, encoder: Net | None, data: Sets) -> list[dict[str, Any]]:
    return metrics.evaluate(net, encoder, data, study.explanation, seed=study.first_seed, **metrics.settings(study))


def _data(study: SelfExplainingStudy, seed: int) -> Sets:
    return sets(study, seed).to(fits.device(study))


def _loaded(study: SelfExplainingStudy, seed: int) -> tuple[Net, Sets]:
    data = _data(study, seed)
    return weights.read(study.model_pt, study, data, seed), data


def _maps(study: SelfExplainingStudy, net: Net, data: Sets) -> torch.Tensor:
    return metrics.explanations(net, data.test_x, data.test_y, study.explanation, study.test_batch_size)


def _folder(study: SelfExplainingStudy, seed: int, command: str, *files: str) -> Path:
    """Where the findings go: a folder for each set of settings and weights."""
    read = [artifacts.sha256(Path(path)) for path in files]
    facts = study.provenance() | {"files": read, "test_batch_size": study.test_batch_size}
    name = f"{command}_{study.dataset}_seed{seed}_{config.digest(facts)}"
    artifacts.ensure_writable(folder := fits.working_folder(study) / name)
    artifacts.save_json(folder / "config.json", study.model_dump(mode="json") | {"environment": runtime.environment()})
    return folder


def _write(path: Path, table: pd.DataFrame) -> None:
    artifacts.atomic_write(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
