"""Accuracy against receptive field: every cut of several backbones, with a mean over cells and a linear layer behind it
(spec pixpnet, section 10).

    python -m helpers.prototypes.goldilocks --backbones vgg16 resnet50_v1 --filter maxpool --epochs 10

In two modes. *probe*: the backbone stays as it is, one forward pass serves all its stages, and what is learned are
logistic regressions. *finetune*: the protocol of the original, where each cut is trained as a whole. A record is one
training of all probes of a backbone, or of one cut; JSON, written the moment it is known:

    results/goldilocks/<data>/probe/<backbone>/<seed>.json
    results/goldilocks/<data>/finetune/<backbone>/<stage>/<seed>.json
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from helpers import artifacts, config, options, records, workers
from helpers.config import ConfigError, Several, Study, suggest
from helpers.prototypes import backbones, fits, presets
from helpers.prototypes.goldilocks_fits import file_name, fits_folder, measure
from helpers.prototypes.goldilocks_tables import frame, summary
from helpers.records import RecordShelf

VERSION = 1  # of the measurement: raise it when what it computes changes
FOLDER = "goldilocks"
TORCHVISION = (
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "resnet18", "resnet34",
    "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
    "densenet121", "densenet161", "densenet169", "densenet201", "inception_v3", "squeezenet1_0", "squeezenet1_1",
    "resnext101_64x4d",
)  # fmt: skip
"""The 25 backbones of the original."""
LAST = {"resnet50_v1": "layer3"}  # where the weights in a file end before the network does
OUTER = 4  # stages on the outermost level that are enough
LEFT_OUT = ("norm0", "norm5")  # of DenseNet; the original's analysis leaves them out too

OWN = {"debug": True, "help": True}  # options that are no settings

Mode = Literal["probe", "finetune"]


class Goldilocks(Study):
    """Everything about this study; `helpers.config.read_parameters` makes it from a notebook's parameters."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reduced": {  # what is at hand: 2,800 images, weights of four backbones
            "finetuned": ("squeezenet1_1",), "finetune_seeds": 1,
        },
        "paper": {
            "backbones": TORCHVISION, "weights": "torchvision", "modes": ("finetune",), "subset": "", "size": 224,
            "seeds": 1,
        },
        "quick": {  # no downloads, and nothing to be learned from its numbers
            "backbones": ("birdnet",), "weights": "none", "dataset": "ToyBirds", "subset": "", "size": 64,
            "n_train": 200, "n_test": 100, "epochs": 1, "augment": False, "seeds": 1,
        },
    }  # fmt: skip
    of_this_run: ClassVar[frozenset[str]] = Study.of_this_run | {"preset", "root", "workers", "verbose"}

    preset: str = Field("reduced", description="a named set of overrides")
    backbones: Several[str] = Field(
        ("squeezenet1_1", "vgg16", "resnet50_v1", "efficientnet_lite0"),
        description="any that helpers.prototypes.backbones knows: resnet18, densenet121, timm:..., ...",
    )
    weights: Literal["auto", "torchvision", "files", "package", "none"] = Field(
        "auto", description="of ImageNet; auto: files or package for the four at hand, torchvision's for all others"
    )
    filter: str = Field("", description="only cuts that have this in their name, backbone/stage")
    modes: Several[Mode] = Field(("probe", "finetune"), description="frozen probes, fine-tuned networks")
    dataset: str = Field("IMAGENETTE", description="any that helpers.prototypes.sets knows")
    subset: str = Field("subset", description="a part of it that lies at hand, by name; empty: the whole")
    root: str = Field("", description="folder of the data sets, if not SIGHTLINE_DATA")
    size: int | None = Field(160, ge=32, description="pixels a side of the inputs, if not the data set's own")
    n_train: int | None = Field(None, ge=1, description="training images, if not all")
    n_test: int | None = Field(None, ge=1, description="test images, if not all")
    seeds: int = Field(3, ge=1, description="splits of the probes, trainings of a cut, from SEED upwards")
    finetuned: Several[str] | None = Field(None, description="backbones that are fine-tuned, if not all")
    finetune_seeds: int | None = Field(None, ge=1, description="trainings of a cut, if not as many")
    epochs: int = Field(10, ge=1, description="of fine-tuning")
    batch_size: int = Field(32, ge=1, description="of fine-tuning")
    learning_rate: float = Field(1e-3, gt=0, description="of fine-tuning, by Adam, constant")
    augment: bool = Field(True, description="fine-tuning: the data set's augmentation; probes: mirror images too")
    strengths: Several[float] = Field((1e-3, 1e-2, 1e-1, 1.0), description="of the probes' L2 penalty, to choose from")
    val_size: float = Field(0.2, gt=0, lt=1, description="share of the training images that the strength is chosen by")
    workers: int = Field(1, ge=1, description="fine-tunings side by side, each with its share of the cores")
    verbose: bool = Field(True, description="progress bars")

    @property
    def data(self) -> presets.Dataset:
        return presets.Dataset(
            name=self.dataset, root=self.root, subset=self.subset, size=self.size, val_size=0.0, augment=self.augment,
            n_train=self.n_train, n_test=self.n_test,
        )  # fmt: skip

    def source(self, backbone: str) -> str:
        """Where the weights of ``backbone`` come from."""
        if self.weights != "auto":
            return self.weights
        known = config.data_config("pretrained")
        if backbone in known["files"]:
            return "files"
        return "package" if backbone in known["packages"] else "torchvision"


def cuts(study: Goldilocks, backbone: str) -> list[str]:
    """The stages of ``backbone`` that there are weights of, in order; on the outermost level if that has several."""
    found = [stage for stage in backbones.cuts(backbone) if stage not in LEFT_OUT]
    outer = [stage for stage in found if "." not in stage]
    found = outer if len(outer) >= OUTER else found
    ends = study.source(backbone) == "files" and backbone in LAST
    return found[: found.index(LAST[backbone]) + 1] if ends else found


@dataclass(frozen=True)
class Member:
    """What is trained at once: a cut, or the probes of all stages of a backbone. ``stages``: name to place among the
    backbone's `cuts`, in order."""

    study: Goldilocks
    mode: Mode
    backbone: str
    stages: Mapping[str, int]
    seed: int

    @property
    def data_name(self) -> str:
        study = self.study
        return "-".join(str(part) for part in (study.dataset, study.subset, study.size) if part)

    @property
    def name(self) -> str:
        """Its path in every folder."""
        cut = [] if self.mode == "probe" else [*self.stages]
        return "/".join([FOLDER, *map(file_name, (self.data_name, self.mode, self.backbone, *cut)), str(self.seed)])

    @property
    def model(self) -> presets.Model:
        """A classifier cut at the last stage."""
        source, last = self.study.source(self.backbone), list(self.stages)[-1]
        weights = {"pretrained": True, "weights": source} if source != "none" else {}
        return presets.Model(name="classifier", feature_extractor=self.backbone, feature_layer=last, **weights)

    @property
    def fit(self) -> fits.Fit:
        """Its fine-tuning: everything learns, at one rate (spec section 10)."""
        study = self.study
        rates = presets.Optimizer(
            name="adam", lr=study.learning_rate, fine_tune_lr=study.learning_rate, weight_decay=0.0, warmup_period=0,
            freeze_epochs=0, lr_scheduler="step", lr_schedule=(study.epochs,),
        )  # fmt: skip
        train = presets.Train(epochs=study.epochs, batch_size=study.batch_size, push_prototypes=False)
        return fits.Fit(
            presets.PrototypesStudy(
                dataset=study.data, model=self.model, train=train, optimizer=rates,
                device=study.device, out=study.out,
            ),
            self.seed,
        )  # fmt: skip

    def wanted(self) -> dict[str, Any]:
        """What its record is computed from."""
        study = self.study
        made_of = {
            "data": study.data.model_dump(mode="json", exclude={"root"}),
            "model": self.model.model_dump(mode="json"),
            "stages": list(self.stages),
            "seed": self.seed,
        }
        if self.mode == "finetune":
            made_of |= {"fit": self.fit.digest()}
        else:
            made_of |= {"strengths": list(study.strengths), "val_size": study.val_size}
        return {"settings": config.digest(made_of), "evaluation": config.digest(VERSION)}


class Shelf(RecordShelf):
    study = fits.STUDY
    entries = frozenset({"name", "rows", "facts", "computed_from"})


def members(study: Goldilocks) -> list[Member]:
    """All that a study trains: the probes, then seed by seed the cuts. What a preset fine-tunes of its own backbones
    says nothing of others: without them, all are. Raises `ConfigError` if the filter leaves nothing, or ``finetuned``
    names a backbone that is not there."""
    known = {backbone: {stage: n for n, stage in enumerate(cuts(study, backbone))} for backbone in study.backbones}
    finetuned = study.finetuned or tuple(known)
    if finetuned == study.presets[study.preset].get("finetuned") and not set(finetuned) & set(known):
        finetuned = tuple(known)
    if strange := [backbone for backbone in finetuned if backbone not in known]:
        raise ConfigError(f"finetuned has {strange[0]!r}, which is not among backbones: {suggest(strange[0], known)}")
    seeds = {"probe": study.seeds, "finetune": study.finetune_seeds or study.seeds}
    found = []
    for mode in (mode for mode in seeds if mode in study.modes):
        for seed in range(study.seed, study.seed + seeds[mode]):
            for backbone, stages in known.items():
                if mode == "finetune" and backbone not in finetuned:
                    continue
                kept = {stage: n for stage, n in stages.items() if study.filter in f"{backbone}/{stage}"}
                alone = [{stage: n} for stage, n in kept.items()]
                together = [stages] if kept else []
                found += [Member(study, mode, backbone, s, seed) for s in (together if mode == "probe" else alone)]
    if not found:
        near = suggest(study.filter, [f"{backbone}/{stage}" for backbone in known for stage in known[backbone]])
        raise ConfigError(f"filter {study.filter!r} and modes {study.modes} leave no cut: {near}")
    return found


def collect(study: Goldilocks) -> pd.DataFrame:
    """All `members` as `goldilocks_tables.frame`. ``RETRAIN`` computes what ``OUT`` does not hold yet; ``REEVALUATE``
    probes anew, and keeps the records of fine-tuned networks, whose weights are gone. Else all are read. Raises
    `ArtifactError` for a record that is missing, damaged or of other settings."""
    wanted, out = members(study), fits.working_folder(study)
    shelf = records.choose_shelf(Shelf, study, out)
    if study.reevaluate:
        artifacts.ensure_writable(out)
        before, shelf = shelf, Shelf(out / "reevaluated") if shelf.shipped else shelf
        for member in wanted:
            if member.mode == "probe":
                run(member, shelf)
            elif record := before.record(member):
                shelf.keep(record)
    if study.retrain:
        artifacts.ensure_writable(out)
        missing = [member for member in wanted if shelf.record(member) is None]
        for member in missing:
            if member.mode == "probe":  # the seeds of a backbone share a forward pass
                run(member, shelf)
        with workers.executor(study.workers) as executor:
            tuned = [executor.submit(run, member, shelf) for member in missing if member.mode == "finetune"]
            for done in tuned:
                done.result()
    table = frame(shelf.all_of(wanted))
    names = table["Model"] + "/" + table["Stage Name"]
    return table[names.str.contains(study.filter, regex=False)].reset_index(drop=True)


def accuracies(study: Goldilocks) -> pd.DataFrame:
    """All in one call: `collect`, with what is missing computed in the working folder."""
    return collect(study.override({"retrain": True}))


def run(member: Member, shelf: Shelf) -> None:
    """Train, measure and keep one of `members`. Of a fine-tuned cut the record alone is kept: a study's networks would
    be gigabytes."""
    shelf.keep(measure(member) | {"computed_from": member.wanted()})
    if member.mode == "finetune":
        shutil.rmtree(fits_folder(member.study) / member.fit.name)


# --------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return options.command_line(command, arguments)


def command(words: list[str]) -> None:
    """``--debug`` takes the preset "quick"; results go to ``hackjob`` in the working folder, under the time of day."""
    given = options.options(words, Goldilocks, OWN)
    if options.helped(given, Goldilocks, __doc__):
        return
    if given.pop("debug", False):
        given = {"preset": "quick"} | given
    study = options.resolve(given, Goldilocks)
    for path in write(accuracies(study), fits.working_folder(study) / "hackjob"):
        logging.info("%s", path)


def write(table: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """``hackjob_results_<time>.csv`` with all of ``table``, and ``..._pareto.csv``, its `summary` by mode and rank."""
    path = folder / f"hackjob_results_{time.strftime('%Y-%m-%dT%H_%M_%S')}.csv"
    ranked = summary(table).sort_values(["mode", "rank", "mean_rf"], kind="stable")
    paths = path, path.with_name(f"{path.stem}_pareto.csv")
    for where, content in zip(paths, (table, ranked), strict=True):
        artifacts.atomic_write(where, content.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return paths


if __name__ == "__main__":
    sys.exit(main())
