"""Does a prototype point at one part of its class, and does it keep to it under noise? Consistency and stability (spec
pixpnet, sections 8.2 to 8.4; Huang et al., ICCV 2023, arXiv 2212.05946).

    found = measure(net, data.test, field, ["pixpnet-exact", "huang"])
    found["huang"].hard_consistency
    modes = {mode: protocol("pixpnet-exact", readout=mode) for mode in ("bbox", "upsample", "center")}
    measure(net, data.test, field, modes)  # one pass over the images for all of them

In every image of a class, around the place where a prototype of that class looks, lies a square; the prototype touches
the parts that are annotated in it. Consistency asks how often it touches the part that it touches most often, stability
whether it touches the same parts when the image is noisy.

Higher is better in all four metrics, but whatever looks at one place always, as ``center`` does, is perfectly stable. A
score is the greatest of K shares of n images, and so too high, the more the smaller n is: where each of twelve parts is
touched in 7 images of 10, independently, the score on 30 images is 0.83 on average, and at least 0.8 for 88 prototypes
of 100. What prototypes gain is seen beside ``center`` on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.prototypes.evaluation.protocols import PROTOCOLS, Protocol, annotated, any_of_part, protocol, touched
from helpers.prototypes.mapping import AT_ONCE, pixel_map, readout
from helpers.prototypes.models import ProtoNet
from helpers.prototypes.receptive_field import ReceptiveField
from helpers.prototypes.sets import Part, ahead, part_locations
from helpers.prototypes.similarity import distances

View = tuple[float, float]  # the standard deviation of the noise of an image, and its bound
CLEAN: View = (0.0, math.inf)
METRICS = ("soft_consistency", "hard_consistency", "soft_stability", "hard_stability")


@dataclass(frozen=True, eq=False)
class Result:
    """The four metrics, in [0, 1], and what they are means of. P prototypes, K parts; all on the CPU.

    ``replicates``: of each of `METRICS` the values float64 [R] of the bootstrap, ``intervals`` their percentiles. Whole
    classes are drawn with replacement, since prototypes of a class share its images; draws are the same for all
    protocols and nets of the same classes, so that a difference has an interval too: that of
    ``a.replicates[m] - b.replicates[m]``. NaN where there is one class only; of few classes it is too narrow.

    The intervals are of what would be found with other classes and as many images each. Images are not drawn: that
    adds to the excess of a greatest share, and the percentiles then miss the value itself.
    """

    protocol: Protocol
    n_images: int
    soft_consistency: float  # mean score
    hard_consistency: float  # share of the prototypes whose score reaches the threshold
    soft_stability: float  # mean intersection over union of the parts touched with and without noise
    hard_stability: float  # share of the images where these are the same
    intervals: dict[str, tuple[float, float]]
    replicates: dict[str, Tensor]
    parts: tuple[str, ...]  # names [K]
    part_scores: Tensor  # float64 [P, K]: share of images that touch the part; NaN: it is never visible
    part_images: Tensor  # int64 [P, K]: images of the class in which the part is visible
    score: Tensor  # float64 [P]: the greatest of them; NaN, as below: its class has no images, or none with a part
    best_part: Tensor  # int64 [P]: the (first) part that has it; -1: none
    soft_stable: Tensor  # float64 [P]: what the stabilities are means of
    hard_stable: Tensor  # float64 [P]

    @property
    def best_names(self) -> tuple[str | None, ...]:
        """Of `best_part`."""
        return tuple(self.parts[best] if best >= 0 else None for best in self.best_part.tolist())

    def floats(self) -> dict[str, float]:
        """Every metric by its name, and the ends of its interval as ``<metric>_low`` and ``<metric>_high``."""
        ends = {f"{m}_{end}": x for m in METRICS for end, x in zip(("low", "high"), self.intervals[m], strict=True)}
        return {metric: getattr(self, metric) for metric in METRICS} | ends


@torch.no_grad()
def measure(
    model: ProtoNet,
    part: Part,
    field: ReceptiveField,
    protocols: Iterable[str] | Mapping[str, Protocol] = ("pixpnet-exact",),
    *,
    seed: int = 0,
    batch_size: int = 64,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> dict[str, Result]:
    """Consistency and stability of the prototypes of ``model`` on the images of ``part``, by protocol.

    ``protocols``: names of `PROTOCOLS`, or protocols under names of one's own. Images are read once, and pass the net
    once as they are and once for each kind of noise that is asked for; the noise of an image is drawn from the stream
    (seed, "noise", its index). Images of classes without prototypes are left out, prototypes of classes without images
    have no values, and an image without a visible part counts for stability alone (and where ``invisible_count``).

    Raises `ConfigError` for prototypes without classes, for images without annotations, of classes that the net does
    not know or none at all, and for settings that cannot be; ``ValueError`` for receptive fields of another net.
    """
    chosen = _chosen(protocols)
    _check(model, part, field, batch_size, confidence, resamples)
    own = _own(model)
    rows = _rows(part, own)
    labels = part.labels[rows]
    located = {geometry: part_locations(part, rows, geometry) for geometry in {p.geometry for p in chosen.values()}}
    wanted = {(view, one.readout) for one in chosen.values() for view in (CLEAN, _view(one))}
    centres = _centres(model, part, rows, field, own, wanted, seed, batch_size)
    asked = _Asked(own, len(model.prototypes), labels, _drawn(own, labels, seed, resamples), confidence)
    found = {}
    for name, one in chosen.items():
        places = annotated(located[one.geometry], one)
        looks = [centres[view, one.readout] for view in (CLEAN, _view(one))]
        clean, noisy = (any_of_part(touched(look, places, one, part.input_size), places) for look in looks)
        found[name] = _result(one, asked, clean, noisy, any_of_part(places.visible, places), places.names)
    return found


# ------------------------------------------------------------------------------------------- where prototypes look


def _view(protocol: Protocol) -> View:
    return protocol.noise, protocol.noise_clip or math.inf


def _centres(
    model: ProtoNet, part: Part, rows: Tensor, field: ReceptiveField, own: Tensor, wanted: set[tuple[View, str]],
    seed: int, batch_size: int,
) -> dict[tuple[View, str], Tensor]:  # fmt: skip
    """By view and readout, as ``wanted``, the centres float64 [n, m, 2] of the prototypes of each image's class."""
    device, views = model.prototypes.device, {view for view, _ in wanted}
    found: dict[tuple[View, str], list[Tensor]] = {key: [] for key in wanted}

    def made(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = part.inputs(some)
        streams = (runtime.generator(seed, "noise", index) for index in part.indices[some].tolist())
        noise = torch.stack([torch.randn(x.shape[1:], generator=stream) for stream in streams])
        return x, noise, part.labels[some]

    workers = torch.get_num_threads() if device.type == "cuda" else 0
    with evaluating(model):
        for batch in ahead(made, rows.split(batch_size), workers):
            x, noise, labels = (tensor.to(device) for tensor in batch)
            for sigma, bound in views:
                maps = _own_maps(model, x + (sigma * noise).clamp(-bound, bound), labels, own)
                for (view, mode), centres in found.items():
                    if view == (sigma, bound):
                        centres.append(_looked_at(maps, field, mode))
    return {key: torch.cat(centres).double().cpu() for key, centres in found.items()}


def _own_maps(model: ProtoNet, x: Tensor, labels: Tensor, own: Tensor) -> Tensor:
    """[B, m, Hz, Wz]: similarities to the prototypes ``own`` [C, m] of each image's class. None but those of classes in
    the batch are computed, which are few where the images come class by class."""
    present, place = labels.unique(return_inverse=True)
    asked = own.to(x.device)[present].clamp(min=0)  # the first prototype stands in for one that is not there
    found = distances(model.embed(x), model.prototypes[asked.flatten()].flatten(1), model.distance)
    return model.similarity(found.unflatten(1, asked.shape)[torch.arange(len(x), device=x.device), place])


def _looked_at(maps: Tensor, field: ReceptiveField, mode: str) -> Tensor:
    """float32 [B, m, 2]: y, x."""
    if mode != "bicubic":
        return readout(maps, field, mode).centre
    some = maps.flatten(0, 1)[:, None].split(AT_ONCE)
    peak = torch.cat([pixel_map(one, field, "upsample").flatten(1).argmax(1) for one in some]).view(maps.shape[:2])
    width = field.input_size[1]
    return torch.stack((peak // width, peak % width), -1).float()


# ------------------------------------------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class _Asked:
    """What all protocols share."""

    own: Tensor  # int64 [C, m]: the prototypes of each class; -1 where it has fewer than another
    count: int  # P
    labels: Tensor  # int64 [n]
    drawn: Tensor  # float64 [R, C]: how often a class is drawn
    confidence: float

    def total(self, values: Tensor) -> Tensor:
        """[n, ...] to float64 [C, ...]: sums over the images of each class."""
        zeros = torch.zeros(len(self.own), *values.shape[1:], dtype=torch.float64)
        return zeros.index_add(0, self.labels, values.double())

    def by_prototype(self, values: Tensor, none: float = torch.nan) -> Tensor:
        """[C, m, ...] to [P, ...]."""
        flat, there = torch.full((self.count, *values.shape[2:]), none, dtype=values.dtype), self.own >= 0
        flat[self.own[there]] = values[there]
        return flat


def _result(
    protocol: Protocol, asked: _Asked, clean: Tensor, noisy: Tensor, visible: Tensor, names: tuple[str, ...]
) -> Result:
    """From the parts touched, bool [n, m, K] each, and the parts visible, bool [n, K]."""
    total, by_prototype = asked.total, asked.by_prototype
    images, seen = total(torch.ones(len(clean), 1)), total(visible)
    shares = total(clean) / (images if protocol.invisible_count else seen)[:, None]
    shares = shares.where(seen[:, None] > 0, torch.nan)
    score, best = shares.nan_to_num(-1.0).max(2)
    best, score = best.where(score >= 0, -1), score.where(score >= 0, torch.nan)
    both, either = (clean & noisy).sum(2).double(), (clean | noisy).sum(2)
    soft = (both / either).where(either > 0, 1.0 if protocol.empty_iou == "one" else torch.nan)
    soft_stable, hard_stable = total(soft) / images, total((clean == noisy).all(2)) / images
    consistent = (score >= protocol.threshold).double().where(score >= 0, torch.nan)

    values = torch.stack((score, consistent, soft_stable, hard_stable)).where(asked.own >= 0, torch.nan)
    metrics = dict(zip(METRICS, values.flatten(1).nanmean(1).tolist(), strict=True))
    replicates = asked.drawn @ values.nansum(2).T / (asked.drawn @ values.isfinite().sum(2).double().T)
    tails = torch.tensor([(1 - asked.confidence) / 2, (1 + asked.confidence) / 2], dtype=torch.float64)
    ends = replicates.nanquantile(tails, dim=0).T.tolist() if len(replicates) else [[torch.nan] * 2] * len(METRICS)
    return Result(
        protocol, len(clean), **metrics,
        intervals=dict(zip(METRICS, map(tuple, ends), strict=True)),
        replicates=dict(zip(METRICS, replicates.T, strict=True)),
        parts=names,
        part_scores=by_prototype(shares),
        part_images=by_prototype(seen.long()[:, None].expand(-1, asked.own.shape[1], -1), 0),
        score=by_prototype(score),
        best_part=by_prototype(best, -1),
        soft_stable=by_prototype(soft_stable),
        hard_stable=by_prototype(hard_stable),
    )  # fmt: skip


def _drawn(own: Tensor, labels: Tensor, seed: int, resamples: int) -> Tensor:
    """float64 [R, C]: how often a class is drawn; no row if there is but one to draw."""
    classes = labels.unique()
    n = len(classes)
    times = torch.zeros(resamples if n > 1 else 0, len(own), dtype=torch.float64)
    stream = runtime.numpy_generator(seed, "consistency", "classes")
    times[:, classes] = torch.from_numpy(stream.multinomial(n, [1 / n] * n, size=len(times))).double()
    return times


# --------------------------------------------------------------------------------------------------------- checks


def _chosen(protocols: Iterable[str] | Mapping[str, Protocol]) -> dict[str, Protocol]:
    given = dict(protocols) if isinstance(protocols, Mapping) else {name: protocol(name) for name in protocols}
    if not given:
        raise ConfigError(f"no protocol is asked for; {suggest('', PROTOCOLS)}")
    return given


def _own(model: ProtoNet) -> Tensor:
    """int64 [C, m]: the prototypes of each class; -1 where it has fewer than another."""
    of = [(model.prototype_class.cpu() == c).nonzero().flatten() for c in range(model.n_classes)]
    return torch.nn.utils.rnn.pad_sequence(of, batch_first=True, padding_value=-1)


def _rows(part: Part, own: Tensor) -> Tensor:
    """The images of classes that have prototypes, class by class."""
    order = part.labels.argsort(stable=True)
    rows = order[(own >= 0).any(1)[part.labels[order]]]
    if not len(rows):
        raise ConfigError(f"none of the {len(part)} images is of a class that has prototypes")
    return rows


def _check(
    model: ProtoNet, part: Part, field: ReceptiveField, batch_size: int, confidence: float, resamples: int
) -> None:
    if not isinstance(model, ProtoNet) or not model.class_specific:
        raise ConfigError("consistency is asked of the prototypes of a class; this net has none that belong to one")
    if len(part) and int(part.labels.max()) >= model.n_classes:
        highest = int(part.labels.max())
        raise ConfigError(f"there are images of class {highest}, the net knows 0 to {model.n_classes - 1}")
    if field.input_size != (part.input_size, part.input_size):
        raise ValueError(
            f"the images have {part.input_size} pixels a side, the receptive fields are those of {field.input_size}"
        )
    if batch_size < 1 or resamples < 0 or not 0 < confidence < 1:
        raise ConfigError(
            "batch_size must be at least 1, resamples at least 0, confidence between 0 and 1, not "
            f"{batch_size}, {resamples}, {confidence}"
        )
