"""The loss of a prototype network, term by term (spec section 5)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.config import ConfigError
from helpers.prototypes import presets
from helpers.prototypes.models import LinearHead, Logits, Network, Output, ProtoHead, ProtoNet

WEIGHTS = {"xent": "xent", "cluster_loss": "cluster", "separation_loss": "separation", "l1_loss": "l1"}
"""The setting that each term is multiplied with."""


def terms(model: Network, output: Logits, labels: Tensor, loss: presets.Loss) -> dict[str, Tensor]:
    """The unweighted terms in use, for ``labels`` int64 [B]. A term of weight 0 is not computed.

    ``xent``: cross-entropy. ``cluster_loss``: mean over images of the least distance to a prototype of the own class
    (to any, where they have no classes). ``separation_loss``: minus that to one of another class; with it
    ``avg_separation_loss``, minus the mean of those distances, to be looked at. ``l1_loss``: of the head's weights (of
    a linear head with classes, those for other classes), where it has any. A classifier has cross-entropy alone.
    """
    found = {"xent": F.cross_entropy(output.logits.float(), labels)} if loss.xent else {}
    if not isinstance(model, ProtoNet):
        return found
    classes = model.class_specific
    own = model.prototype_class == labels[:, None]
    own = own if classes else torch.ones_like(own)
    if loss.cluster:
        found["cluster_loss"] = _least(output, own).mean()
    if loss.separation and classes and model.n_classes > 1:
        found["separation_loss"] = -_least(output, ~own).mean()
        others = output.min_distances.detach() * ~own
        found["avg_separation_loss"] = -(others.sum(1) / (~own).sum(1)).mean()
    if loss.l1 and not isinstance(model.head, ProtoHead):
        weights = model.weights
        if isinstance(model.head, LinearHead) and classes:
            weights = weights * ~model.own
        found["l1_loss"] = weights.abs().sum()
    return found


def total(terms: Mapping[str, Tensor], loss: presets.Loss) -> Tensor:
    """The weighted sum of `terms`. Raises `ConfigError` if there are none to learn from."""
    weighted = [getattr(loss, weight) * terms[term] for term, weight in WEIGHTS.items() if term in terms]
    if not weighted:
        raise ConfigError("nothing to learn from: no term of the loss has a weight, or this model has none of those")
    return torch.stack(weighted).sum()


def _least(output: Output, among: Tensor) -> Tensor:
    """[B]: the least distance to one of the prototypes ``among`` [B, P]."""
    return output.min_distances.masked_fill(~among, torch.inf).min(1).values
