"""The causal graphs study: train, discover and measure what is missing, or read what is shipped (RETRAIN, REEVALUATE).

Each training seed is a *checkpoint* with its weights, a graph for every class and mode, and a *part* for every
experiment: JSON or CSV, written the moment it is known, that names what it was computed from.

    weights/<dataset>/<model>/<seed>.safetensors
    results/<dataset>/<model>/<seed>/<mode>/class_<t>.json, surgery.json, stability.json, scores.csv, ...

Of networks too large to be shipped there are the parts, and ``weights.json`` in the place of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from helpers import artifacts, config, runtime
from helpers.causal_graphs import discover, fits
from helpers.causal_graphs.discover import REFERENCE, Discovery
from helpers.causal_graphs.fits import STUDY, Fit
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.network import Network, weights_hash
from helpers.causal_graphs.presets import CausalGraphsStudy
from helpers.data import images as data
from helpers.data.images import Images
from helpers.shelf import StudyShelf

VERSION = 1  # of the experiments: raise it when what they compute changes
MODES = ("recommended", "reference")  # folders of graphs
PLANTED_FROM = 3  # seeds of checkpoints with a shortcut: while the rules of repair were designed, 0 to 2 were looked at

log = logging.getLogger(__name__)


class Shelf(StudyShelf):
    study = STUDY

    def weights_path(self, fit: Fit) -> Path:
        return self.checked(self.weights / f"{fit.name}.safetensors")

    def graph_path(self, fit: Fit, mode: str, target: int) -> Path:
        return self.checked(self.results / fit.name / mode / f"class_{target}.json")

    def facts_path(self, fit: Fit) -> Path:
        """What is known of weights that are not shipped."""
        return self.checked(self.results / fit.name / "weights.json")

    def part_path(self, fit: Fit, name: str) -> Path:
        return self.checked(self.results / fit.name / name)


def working_folder(study: CausalGraphsStudy) -> Path:
    """Where new weights and results go: ``OUT``, or ``runs/causal_graphs``."""
    return study.out_folder(STUDY)


def choose_shelf(study: CausalGraphsStudy) -> Shelf:
    """The working folder when training or measuring, or when ``OUT`` names one that holds this study; else what is
    shipped."""
    anew = study.retrain or study.reevaluate
    if anew or (study.out and any((working_folder(study) / kind).is_dir() for kind in ("weights", "results"))):
        return Shelf(working_folder(study))
    return Shelf()


def fit_of(study: CausalGraphsStudy, seed: int, shortcut: int | None = None) -> Fit:
    """The checkpoint ``seed``, or its twin with a shortcut planted on a class."""
    training = fits.recommended(study.model_name, study.dataset_name)
    if shortcut is not None:
        training = training.override({"shortcut": "corner", "shortcut_class": shortcut})
    return Fit(study.model_name, study.dataset_name, seed, training)


@dataclass(frozen=True)
class Checkpoint:
    """One training seed on a shelf, with all that is known of it. What is missing is made if the study asks for it;
    else it is an `ArtifactError` that says how."""

    study: CausalGraphsStudy
    shelf: Shelf
    seed: int
    shortcut: int | None = None

    @property
    def fit(self) -> Fit:
        return fit_of(self.study, self.seed, self.shortcut)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, dict[str, Any]]:
        if self.study.weights and self.shortcut is None:
            path = Path(self.study.weights)
            model, metadata = fits.load(path)
            return model.to(runtime.device(self.study.device)), metadata | {"sha256": artifacts.sha256(path)}
        fit, path = self.fit, self.shelf.weights_path(self.fit)
        if not path.exists() and self.study.retrain:
            options = {"device": self.study.device, "data_dir": self.study.data_dir or None}
            fits.train(fit, working_folder(self.study), **options, progress=self.study.verbose)
        elif not path.exists() and self.study.reevaluate:
            path = Shelf().weights_path(fit)
        if not path.exists():
            raise artifacts.ArtifactError(f"the weights of {fit.name} are not in {self.shelf.weights}; RETRAIN=True "
                                          "trains them")  # fmt: skip
        model, metadata = fits.load(path, fit)
        return model.to(runtime.device(self.study.device)), metadata | {"sha256": artifacts.sha256(path)}

    @property
    def model(self) -> nn.Module:
        return self._loaded[0]

    @property
    def metadata(self) -> dict[str, Any]:
        """Of the weights: accuracy on the test images, training settings, sha256."""
        facts = self.shelf.facts_path(self.fit)
        return artifacts.load_json(facts) if facts.exists() else self._loaded[1]

    @property
    def classes(self) -> list[str]:
        return self.metadata["classes"]

    @property
    def targets(self) -> Sequence[int]:
        """The classes that have a graph."""
        return self.study.scored_classes if self.study.screened else range(len(self.classes))

    @cached_property
    def network(self) -> Network:
        parameter = next(self.model.parameters())
        side, channels = self.metadata["preprocess"]["size"], self.metadata["in_channels"]
        return Network(self.model, torch.zeros(1, channels, side, side).to(parameter))

    def images(self, split: str = "test") -> Images:
        """A split of the data, as the network takes it."""
        size = self.metadata["preprocess"]["size"]
        return _images(self.study.dataset_name, split, size, data.data_root(self.study.data_dir or None))

    def shown(self) -> Images:
        """Images that may be shown, as the network takes them: test images; for MNIST's, scikit-learn's digits."""
        if self.study.dataset_name != "MNIST":
            return self.images()
        return _images("Digits", "test", self.metadata["preprocess"]["size"], data.data_root())

    def graph(self, target: int, mode: str | None = None) -> CausalGraph:
        """The graph of class ``target``, of the study's mode if none is named."""
        mode = mode or self.study.mode
        if not 0 <= target < len(self.classes):
            last = len(self.classes) - 1
            raise config.ConfigError(f"TARGET_IDX and SCORED_CLASSES must be classes of 0 to {last}, not {target}")
        path = self.shelf.graph_path(self.fit, mode, target)
        if path.exists():
            graph = CausalGraph.load(path)
            if self.is_mine(graph, mode):
                return graph
            if self.shelf.shipped:
                raise artifacts.ArtifactError(
                    f"{path} was discovered in other weights or with other settings; LEARN_EXPLAINER=True discovers "
                    "this graph anew, REEVALUATE=True all of them"
                )
        elif self.shelf.shipped:
            raise artifacts.ArtifactError(f"{path} is not there: LEARN_EXPLAINER=True discovers it, or REEVALUATE=True")
        return self.discover(target, mode, path)

    def is_mine(self, graph: CausalGraph, mode: str) -> bool:
        """Was the graph found in these weights, with these settings?"""
        options = self.options(mode)
        wanted = {
            "weights_hash": weights_hash(self.model),
            "selection": options.selection.model_dump(mode="json"),
            "search": discover.search_facts(options, self.study.n_samples),
            "intervention": discover.intervention_facts(options),
            "effect": options.effect,
            "other": options.other,
        }
        return all(getattr(graph, name) == value for name, value in wanted.items())

    def discover(self, target: int, mode: str | None = None, path: Path | None = None) -> CausalGraph:
        """Walk anew. Needs the data."""
        return discover.explain(
            self.model,
            self.images(),
            target,
            n_samples=self.study.n_samples,
            options=self.options(mode or self.study.mode),
            seed=self.seed,
            names=(self.study.model_name, self.study.dataset_name, "test"),
            path=path,
            progress=self.study.verbose,
        )

    def options(self, mode: str) -> Discovery:
        """As the study says; the published reference graphs are soft, as the release's."""
        chosen = self.study.discovery(mode)
        return chosen.override({"soft": REFERENCE.soft or chosen.soft}) if mode == "reference" else chosen

    def graphs(self, mode: str | None = None) -> dict[int, CausalGraph]:
        """Of all `targets`."""
        return {target: self.graph(target, mode) for target in self.targets}

    def part(self, name: str, compute: Callable[[Checkpoint], Any]) -> Any:
        """The result of the experiment ``name``: JSON, or a DataFrame where the name ends in .csv."""
        path = self.shelf.part_path(self.fit, name)
        wanted = {"weights": self.metadata["sha256"], "settings": settings_digest(self.study), "version": VERSION}
        if path.exists():
            made, value = _read(path)
            if made == wanted:
                return value
            if not self.study.reevaluate and not self.study.retrain:
                raise artifacts.ArtifactError(
                    f"{path} was computed from other weights or with other settings; REEVALUATE=True computes it anew, "
                    "or take back the changes"
                )
        elif not (self.study.reevaluate or self.study.retrain):
            raise artifacts.ArtifactError(f"{path} is not there; REEVALUATE=True computes it")
        log.info("%s: %s", self.fit.name, name)
        value = compute(self)
        _write(path, wanted, value)
        return _read(path)[1]


def checkpoints(study: CausalGraphsStudy, shortcut: int | None = None) -> list[Checkpoint]:
    """Of every training seed; with a ``shortcut``, of as many others (`PLANTED_FROM`). A file of ``weights`` is one."""
    shelf = choose_shelf(study)
    if not shelf.shipped:
        artifacts.ensure_writable(working_folder(study))
    first = study.seed + (0 if shortcut is None else PLANTED_FROM)
    count = 1 if study.weights and shortcut is None else study.checkpoints
    return [Checkpoint(study, shelf, seed, shortcut) for seed in range(first, first + count)]


def larger(study: CausalGraphsStudy, anew: bool = False) -> dict[str, Checkpoint]:
    """By model, the checkpoint of each of the study's larger `networks` (spec section 7.5, E7): as shipped, or with
    ``anew`` in the working folder, where what is missing is trained and measured, for hours. Their settings are those
    of the presets, whatever the study's own are."""
    where = {"out": str(working_folder(study)), "retrain": True} if anew else {}
    where |= {"device": study.device, "data_dir": study.data_dir, "verbose": study.verbose}
    found = {}
    for preset in study.networks:
        if preset not in study.presets:
            raise config.ConfigError(f"NETWORKS: no preset {preset!r}; {config.suggest(preset, study.presets)}")
        own = CausalGraphsStudy().override({**study.presets[preset], **where})
        found[own.model_name] = checkpoints(own)[0]
    return found


def settings_digest(study: CausalGraphsStudy) -> str:
    """Changes with every setting that the parts depend on, beside the seed of their checkpoint."""
    return config.digest({name: value for name, value in study.provenance().items() if name != "seed"})


@lru_cache(maxsize=4)
def _images(dataset_name: str, split: str, size: int, root: Path) -> Images:
    return data.load(dataset_name, split, size, root)


def _write(path: Path, made: dict[str, Any], value: Any) -> None:
    if isinstance(value, pd.DataFrame):
        head = "".join(f"# {key}: {entry}\n" for key, entry in made.items())
        artifacts.atomic_write(path, head + value.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    else:
        artifacts.save_json(path, {"computed_from": made, "result": value})


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    """(what it was computed from, the result). Raises `ArtifactError` for a damaged file."""
    if path.suffix == ".json":
        value = artifacts.load_json(path)
        if not isinstance(value, dict) or set(value) != {"computed_from", "result"}:
            raise artifacts.ArtifactError(f"{path} is no result of this study: delete it and run again")
        return value["computed_from"], value["result"]
    text = path.read_text()
    lines = text.splitlines()
    made = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    try:
        table = pd.read_csv(StringIO(text), comment="#")
    except (ValueError, pd.errors.ParserError) as error:
        raise artifacts.ArtifactError(f"{path} is damaged ({error}); delete it and run again") from None
    return made | {"version": int(made.get("version", 0))}, table
