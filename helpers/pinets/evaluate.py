"""The MARS report of a (model, explainer): meaningful, aligned, robust, sufficient (spec sections 1.2 and 4).

Meaningful: detection rates against the masks. Aligned: does the explanation, added up, give the prediction? Robust: the
spread over fits and the range of good thresholds, both read off many reports. Sufficient: the prediction from the
explained part of the image alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import metrics
from helpers.attribution.base import evaluating, logits_of, refuse_training
from helpers.metrics.base import checked
from helpers.pinets.models import CNN, Ensemble, PiNet

LEVELS = (0.5, 0.75, 0.9)  # satisfaction levels of the detection range
VERSION = 1  # goes into the provenance of results: raise it when a number here changes its meaning
# Entries of every report. A new one needs no new version: records that lack it are told by that (`study.checked`).
ENTRIES = frozenset({"accuracy", "scale", "naive", "optimal", "curve", "alignment_residual", "recursive", "shift"})

Explainer = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


class Explained(NamedTuple):
    """``logits`` [N], or [N, K] of several classes, and raw ``heat`` [N, H, W] of a data set, on the CPU in float32."""

    logits: Tensor
    heat: Tensor


def own_scores(model: PiNet | Ensemble, x: Tensor, target: Tensor | None = None) -> Tensor:
    """A PiNet's explanation of itself: its scores, of an ensemble the mean of ``weight**2 * scores``; [B, H, W].

    Several maps are added up, or the one of ``target`` [B] is taken.
    """
    return _flat(model(x).scores, target)


def explain(model: nn.Module, explainer: Explainer, x: Tensor, batch_size: int = 100) -> Explained:
    """Logits and maps of the images ``x`` [N, C, H, W], computed in eval mode and batches. Of several classes it is
    the predicted one that is explained. Raises ``ValueError`` for maps that are not finite, or not [N, H, W]."""
    parts = []
    for chunk in x.split(batch_size):
        if explainer is own_scores:  # both from one pass
            with torch.inference_mode(), evaluating(model):
                output = model(chunk)
            parts.append((output.logits, _flat(output.scores, _predicted(output.logits))))
        else:
            logits = predict(model, chunk)
            parts.append((logits, explainer(model, chunk, _predicted(logits))))
    logits, heat = (torch.cat([part.float().cpu() for part in column]) for column in zip(*parts, strict=True))
    checked(x, heat)
    return Explained(logits, heat)


def predict(model: nn.Module, x: Tensor, batch_size: int = 100) -> Tensor:
    """Any network's logits of ``x`` [N, C, H, W], computed in eval mode: [N], or [N, K] of K > 1 classes."""
    with torch.inference_mode(), evaluating(model):
        logits = torch.cat([logits_of(model, chunk) for chunk in x.split(batch_size)])
    return logits[:, 0] if logits.shape[1] == 1 else logits


def majority(y: Tensor) -> float:
    """The accuracy on labels ``y`` [N] of whoever always gives the most frequent answer."""
    return y.unique(return_counts=True)[1].max().item() / len(y)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of images on the right side of 0; of ``logits`` [N, K], of those whose class ``y`` [N] has the highest."""
    y = y.to(logits.device)
    right = (logits > 0) == (y > 0) if logits.ndim == 1 else logits.argmax(1) == y
    return float(right.double().mean())


def normalise(heat: Tensor, scale: float | None = None) -> Tensor:
    """Maps divided by one number, the maximum over the whole set unless given (all zeros stay zeros)."""
    scale = float(heat.max()) if scale is None else scale
    return heat / scale if scale > 0 else torch.zeros_like(heat)


def mars(
    model: nn.Module,
    explainer: Explainer,
    x: Tensor,
    y: Tensor,
    masks: Tensor,
    validation: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """The report of one model and explainer on images ``x`` [N, C, H, W], labels ``y`` [N], masks [N, 1, H, W].

    The model gives one logit an image (labels 0 and 1) or one for each of K classes (labels 0 to K - 1), of which the
    map explains the predicted one. ``validation``: (x, masks) on which scale and threshold are chosen for the entry
    ``validated``; the entry ``optimal`` takes the best threshold on the *test* masks, an oracle, as the paper does.
    ``alignment_residual`` is of any map; a PiNet that explains itself also has an ``identity_error``.
    Model and ``x`` must lie on one device, the others where they may. Raises ``ValueError`` if ``model`` is not in eval
    mode, no image of a set has a target, or shapes or maps cannot be.
    """
    refuse_training(model)
    if y.shape != x.shape[:1]:
        raise ValueError(f"expected one label per image, [{len(x)}], not {list(y.shape)}")
    for name, some in {"test": masks, "validation": validation[1] if validation else masks}.items():
        if some.ndim != 4 or some.shape[1] != 1:
            raise ValueError(f"expected {name} masks [N, 1, H, W], one an image, not {list(some.shape)}")
        if not some.any():
            raise ValueError(f"no {name} image has a target, so that detection cannot be measured: take more images")
    masks = masks[:, 0].cpu()
    logits, heat = explain(model, explainer, x)
    unit = normalise(heat)
    curve = metrics.detection_curve(unit, masks)
    predicted = accuracy(logits, y)
    own = explainer is own_scores
    told, summed = added_up(model, x) if own else (None, None)
    read = summed if own and not _shows_all(model, x) else None
    report: dict[str, Any] = {
        "accuracy": predicted,
        "scale": float(heat.max()),  # what every map of this model is divided by
        "naive": metrics.mean_detection(unit.clamp(0, 1), masks),
        "optimal": _at(curve, curve.best),
        "curve": {"tdr": curve.tdr.round(5).tolist(), "tar": curve.tar.round(5).tolist()},
        "alignment_residual": alignment_residual(model, logits, heat, x, read),
    }
    if own:
        report["identity_error"] = _difference(told, summed)
    if validation is not None:
        report["validated"] = _validated(model, explainer, heat, masks, *validation)
    report["recursive"] = recursive_accuracy(model, unit.abs()[:, None].to(x) * x, y)
    report["shift"] = predicted - report["recursive"]["accuracy"]
    return report


def recursive_accuracy(model: nn.Module, explained: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy on the explained part of the images [N, C, H, W] alone.

    Of an ensemble: by the mean logit, and beside it by ``majority`` and by the published bundle's ``legacy`` rule,
    which averages hard votes and then takes sigmoid > 0.5: positive as soon as one member says so. Of several classes
    it knows nothing.
    """
    if not isinstance(model, Ensemble):
        return {"accuracy": accuracy(predict(model, explained), y)}
    logits = torch.stack([predict(member, explained) for member in model.members])
    if logits.ndim == 3:
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).double().mean(0)
        return {"accuracy": accuracy(logits.mean(0), y), "majority": accuracy(votes, y)}
    votes = (logits > 0).double().mean(0)
    return {
        "accuracy": accuracy(logits.mean(0), y),
        "majority": accuracy(votes - 0.5, y),
        "legacy": accuracy(votes, y),
    }


def alignment_residual(
    model: nn.Module, logits: Tensor, heat: Tensor, x: Tensor, summed: Tensor | None = None
) -> float:
    """Share of the logits' variance that no linear read-out ``c * sum(map) + d`` of the map gives: 0 is aligned.

    The map is read as the model reads it (times x under a hard second look, alone under a soft one); of a model that
    reads no map, the reading that fits better. 0 up to rounding for a PiNet by construction, which this checks; one
    with another z than x, or several maps for one logit, must be given its own sums (``summed``, see `added_up`). Of
    several classes it is the logit of the predicted one, and each class has a read-out of its own. NaN of two images a
    class or fewer, through which a line always goes.
    """
    predicted = _predicted(logits)
    if summed is not None:
        readings = [summed if predicted is None else summed.gather(1, predicted[:, None])[:, 0]]
    else:
        by_look = {"hard": (heat[:, None] * x.cpu()).double().sum((1, 2, 3)), "soft": heat.double().sum((1, 2))}
        look = getattr(model, "second_look", None)
        readings = [by_look[look]] if look else list(by_look.values())
    if predicted is None:
        classes = [torch.ones(len(logits), dtype=torch.bool)]
    else:
        logits, classes = logits.amax(1), [predicted == k for k in predicted.unique()]
    if len(logits) <= 2 * len(classes):
        return float("nan")
    targets = [_centred(logits[rows]) for rows in classes]
    variance = sum(target @ target for target in targets)
    residuals = []
    for total in readings:
        totals = [_centred(total[rows]) for rows in classes]
        pairs = zip(totals, targets, strict=True)
        explained = sum((total @ target) ** 2 / (total @ total).clamp_min(1e-300) for total, target in pairs)
        residuals.append(1 - float(explained / variance))
    return max(0.0, min(residuals)) if variance > 0 else 0.0  # equal logits leave nothing to read


def identity_error(model: PiNet | Ensemble, x: Tensor, batch_size: int = 100) -> float:
    """Largest ``|logit - (sum(contributions) + bias)|`` on images ``x`` [N, C, H, W], relative to logits above 1:
    alignment, with the network's own weight and bias."""
    return _difference(*added_up(model, x, batch_size))


def added_up(model: PiNet | Ensemble, x: Tensor, batch_size: int = 100) -> tuple[Tensor, Tensor]:
    """The logits of images ``x`` [N, C, H, W], and ``sum(contributions) + bias``, which should be the same: float64 on
    the CPU, [N] or [N, K] each."""
    members = model.members if isinstance(model, Ensemble) else [model]
    parts = []
    with torch.inference_mode(), evaluating(model):
        bias = sum(getattr(member.aggregator, "bias", 0.0) for member in members) / len(members)  # an Area has none
        for chunk in x.split(batch_size):
            output = model(chunk)
            dims = (1, 2, 3) if output.logits.ndim == 1 else (2, 3)
            parts.append((output.logits, model.contributions(output).double().sum(dims) + bias))
    logits, sums = (torch.cat([part.double().cpu() for part in column]) for column in zip(*parts, strict=True))
    return logits, sums


def default_explainer(model: nn.Module) -> Explainer:
    """A PiNet explains itself; the CNN baseline is explained by Grad-CAM on its last feature maps."""
    if isinstance(model, CNN):
        from helpers import attribution

        return attribution.explainer("grad_cam", layer="encoder")
    return own_scores


def _validated(
    model: nn.Module, explainer: Explainer, heat: Tensor, masks: Tensor, x: Tensor, own_masks: Tensor
) -> dict[str, float]:
    """Detection on the test set with scale and threshold chosen on validation images: no test mask is looked at."""
    own = explain(model, explainer, x).heat
    scale = float(own.max())
    chosen = metrics.detection_curve(normalise(own, scale), own_masks[:, 0].cpu())
    threshold = chosen.thresholds[chosen.best : chosen.best + 1]
    return {"scale": scale, **_at(metrics.detection_curve(normalise(heat, scale), masks, threshold), 0)}


def _shows_all(model: PiNet | Ensemble, x: Tensor) -> bool:
    """Is the explanation all that a logit adds up, one map on x itself?"""
    with torch.inference_mode():
        output = model(x[:1])
    logits = 1 if output.logits.ndim == 1 else output.logits.shape[1]
    members = model.members if isinstance(model, Ensemble) else [model]
    return output.scores.shape[1] == logits and all(isinstance(member.z, nn.Identity) for member in members)


def _difference(logits: Tensor, summed: Tensor) -> float:
    return float(((logits - summed).abs() / logits.abs().clamp_min(1)).max())


def _at(curve: metrics.DetectionCurve, index: int) -> dict[str, float]:
    names = {"threshold": curve.thresholds, "tdr": curve.tdr, "tar": curve.tar, "score": curve.score}
    return {name: float(values[index]) for name, values in names.items()}


def _predicted(logits: Tensor) -> Tensor | None:
    """The classes [N] of ``logits`` [N, K]; None where there is but one logit an image."""
    return logits.argmax(1) if logits.ndim == 2 else None


def _centred(values: Tensor) -> Tensor:
    return values.double() - values.double().mean()


def _flat(scores: Tensor, target: Tensor | None) -> Tensor:
    if target is not None and scores.shape[1] > 1:
        return scores[torch.arange(len(scores)), target]
    return scores.sum(1)
