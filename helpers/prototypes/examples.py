"""What the notebook shows before your eyes: nets whose weights are at hand, on birds that were drawn for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from helpers import runtime
from helpers.artifacts import ArtifactError
from helpers.prototypes import figures
from helpers.prototypes.explanations import Evidence, Explanation, explain, training_patch
from helpers.prototypes.mapping import in_box, pixel_map
from helpers.prototypes.models import Network, ProtoNet
from helpers.prototypes.presets import PrototypesStudy
from helpers.prototypes.receptive_field import ReceptiveField, receptive_field
from helpers.prototypes.sets import Sets, sets
from helpers.prototypes.study import Shelf, choose_shelf, members

SHOWN = 3  # prototypes of a prediction
KEY_IMAGE = 0  # the first test image: it was not chosen
MAIN = "birdnet@stage3/pixpnet"  # the group that is looked at, where it is there

S = TypeVar("S", bound=PrototypesStudy)


def published(preset: str, kind: type[S] = PrototypesStudy) -> S:
    """The study of a preset as it is shipped."""
    return kind().override({**kind.presets[preset], "preset": preset})


def nets(study: PrototypesStudy, shelf: Shelf | None = None) -> dict[str, Network]:
    """The networks of the first seed whose weights are there, by group. Raises `ArtifactError` where there are none."""
    shelf = shelf or choose_shelf(study)
    first = [member for member in members(study) if member.seed == study.seed]
    found = {member.label: shelf.net(member) for member in first if shelf.weights_path(member).exists()}
    if not any(isinstance(net, ProtoNet) for net in found.values()):
        raise ArtifactError(f"no prototypes of these settings are in {shelf.weights}; RETRAIN=True makes them")
    return found


def prototype_nets(found: Mapping[str, Network]) -> dict[str, ProtoNet]:
    """Those of `nets` that have prototypes, the main one first."""
    ours = {group: net for group, net in found.items() if isinstance(net, ProtoNet)}
    return dict(sorted(ours.items(), key=lambda item: item[0] != MAIN))


@dataclass(frozen=True)
class Shown:
    """One net on the images of its study, as the notebook looks at it."""

    net: ProtoNet
    data: Sets
    field: ReceptiveField

    def x(self, image: int) -> Tensor:
        """The input [3, S, S] of a test image."""
        return self.data.test.inputs(torch.tensor([image]))[0]

    def picture(self, image: int) -> np.ndarray:
        """The test image [S, S, 3] in [0, 1]."""
        return _picture(self.data.test.pixels(torch.tensor([image]))[0])

    def restore(self, x: Tensor) -> np.ndarray:
        """An input [3, S, S] as a picture, clipped."""
        return _picture(self.data.test.pipeline.restore(x))

    def explain(self, image: int, top: int | None = SHOWN) -> Explanation:
        return explain(self.net, self.x(image), self.field, top=top)

    def source(self, evidence: Evidence) -> np.ndarray:
        """The training patch that a prototype is."""
        return _picture(training_patch(self.data.train, evidence.source_image, evidence.source_box))

    def maps(self, image: int, prototype: int) -> dict[str, np.ndarray]:
        """The similarity map of one prototype in pixels [S, S], by every way of mapping."""
        with torch.no_grad():
            output = self.net(self.x(image)[None])
            similarity = self.net.similarity(output.distances[:, [prototype]])
        return {name: pixel_map(similarity, self.field, name)[0, 0].numpy() for name in figures.METHODS}

    def under_noise(self, image: int, evidence: Evidence, seed: int = 0) -> list[tuple[str, np.ndarray, list]]:
        """For `figures.noise`: the image, and what it is where pixels outside the box, inside it, or outside the box
        that up-sampling draws are noise, each with the similarity at the prototype's cell."""
        x = self.x(image)
        noise = torch.randn(x.shape, generator=runtime.generator(seed, "noise"))
        box, drawn = (in_box(shape, x) for shape in (evidence.box, evidence.upsampled_box))
        marks = [(evidence.box, figures.EXACT, False), (evidence.upsampled_box, figures.DRAWN, True)]
        found = []
        for name, replaced in (
            ("the image", torch.zeros_like(box)),
            ("noise outside the box", ~box),
            ("noise inside the box", box),
            ("noise outside the drawn box", ~drawn),
        ):
            changed = torch.where(replaced, noise, x)
            with torch.no_grad():
                distances = self.net(changed[None]).distances[0, evidence.prototype]
            value = float(self.net.similarity(distances)[evidence.cell])
            found.append((f"{name}: {value:.2f}", self.restore(changed), marks))
        return found

    def looks_like(self, image: int) -> figures.Picture:
        """`figures.looks_like` of a test image."""
        seen, picture = self.explain(image), self.picture(image)
        rows = [
            {
                "box": e.box,
                "patch": picture[e.box[0] : e.box[1], e.box[2] : e.box[3]],
                "source": self.source(e),
                "note": f"+ {e.contribution:.1f}",
            }
            for e in seen.evidence
        ]
        name, true = (self.data.classes[k] for k in (seen.predicted, int(self.data.test.labels[image])))
        return figures.looks_like(picture, rows, f"a {name}" + ("" if name == true else f" (truly a {true})"))


def show(study: PrototypesStudy, net: ProtoNet) -> Shown:
    data = sets(study.dataset, study.seed)
    return Shown(net, data, receptive_field(net.features, data.train.input_size))


def _picture(x: Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()
