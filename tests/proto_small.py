"""A prototypes study that trains in a second: 40 images of two colours, 32 pixels a side, and no file is read."""

import ast
import json
import re
from dataclasses import dataclass, field
from functools import cached_property

import torch

from helpers import config, runtime
from helpers.prototypes import fits, tuning
from helpers.prototypes.presets import PrototypesStudy

CLASSES = ("red", "blue")

SMALL = {
    "seed": 0, "seeds": 1, "device": "cpu",
    "dataset.val_size": 0.2, "dataset.name": "Colours",
    "model.feature_extractor": "birdnet", "model.feature_layer": "stage2",
    "model.num_prototypes": 4, "model.prototype_dim": 8,
    "train.epochs": 3, "train.batch_size": 8, "train.push_every": 2, "train.precision": "float32",
    "train.readout_push_epochs": 2, "optimizer.warmup_period": 1, "optimizer.lr": 0.01,
}  # fmt: skip


def study(**changes):
    """``study(train__epochs=5)``: two underscores for the dot."""
    return PrototypesStudy().override(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


@dataclass(frozen=True)
class Colours:
    """A split: noise with more of one colour."""

    name: str
    n: int
    first: int = 0
    classes: tuple[str, ...] = CLASSES
    input_size: int = 32
    asked: list = field(default_factory=list)

    @property
    def labels(self):
        return torch.arange(self.n) % 2

    @property
    def indices(self):
        return self.first + torch.arange(self.n)

    @cached_property
    def x(self):
        x = 0.3 * torch.rand(self.n, 3, 32, 32, generator=runtime.generator(1, self.name))
        x[torch.arange(self.n), 2 * self.labels, 8:24, 8:24] += 0.7
        return x

    def inputs(self, rows):
        return self.x[rows]

    def augmented(self, rows, seed, epoch, repeat=0):
        turns = list(zip(rows.tolist(), torch.as_tensor(repeat).expand(len(rows)).tolist(), strict=True))
        self.asked.extend((epoch, turn) for _, turn in turns)
        noise = [torch.rand(3, 32, 32, generator=runtime.generator(seed, epoch, turn, row)) for row, turn in turns]
        return self.x[rows] + 0.1 * torch.stack(noise)


@dataclass
class Sets:
    train: Colours
    validation: Colours | None
    n_test: int = 10
    loaded: list = field(default_factory=list)

    @property
    def test(self):
        self.loaded.append("test")
        return Colours("test", self.n_test)


def sets(dataset, seed):
    held_out = round(40 * dataset.val_size)
    validation = Colours("validation", held_out, 100) if held_out else None
    return Sets(Colours("train", 40 - held_out), validation, dataset.n_test or 10)


def use(monkeypatch, made=None):
    """Train on colours from here on; ``made`` collects the sets."""

    def loader(dataset, seed):
        found = sets(dataset, seed)
        if made is not None:
            made.append(found)
        return found

    monkeypatch.setattr(fits, "sets", loader)
    monkeypatch.setattr(tuning, "sets", loader)


def check_prose_calls(explorer, notebook):
    """Every call that the prose names can be made, and does what it says."""
    calls = prose_calls(notebook)
    assert calls
    for call in calls:
        explorer.select(**call)
        assert {name: getattr(explorer.state, name) for name in call} == call


def prose_calls(notebook):
    """The keyword arguments of each ``explorer.select(...)`` that the prose of a notebook names."""
    cells = json.loads((config.ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    calls = [ast.parse(call, mode="eval").body for call in re.findall(r"`(explorer\.select\(.*?\))`", prose)]
    return [{each.arg: ast.literal_eval(each.value) for each in call.keywords} for call in calls]
