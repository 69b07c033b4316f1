"""Weights of the self-explaining study on disk: safetensors with all that is known of them, and what is refused.

A ``.pt`` file of another program is read as tensors only: unpickling anything else of it is an error.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import __version__, artifacts
from helpers.artifacts import ArtifactError
from helpers.self_explaining import models
from helpers.self_explaining.models import Net
from helpers.self_explaining.presets import SelfExplainingStudy
from helpers.self_explaining.sets import Sets, parts

STUDY = "self_explaining"
FORMAT = 1  # of weights and checkpoints
NAMED = {"study", "format", "model", "in_channels", "classes"}  # what a file has to say of its network
PICKLED = (".pt", ".pth", ".tar")

log = logging.getLogger(__name__)


def keep(path: Path, net: Net, data: Sets, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights of ``net`` in float32; return the file's metadata, ``facts`` and what `load` needs."""
    metadata = {
        **facts,
        "study": STUDY,
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "model": type(net).__name__,
        "in_channels": data.in_channels,
        "classes": list(data.classes),
        "preprocess": data.preprocess.model_dump(mode="json"),
    }
    artifacts.save_tensors(path, net.state_dict(), metadata)
    return metadata


def load(path: Path, wanted: Mapping[str, Any] | None = None) -> tuple[Net, dict[str, Any]]:
    """(the network in eval mode, the file's metadata), which have to say what is ``wanted`` of them. Raises
    `ArtifactError` if the file is missing, damaged, of another program or format, or not the one wanted."""
    state, metadata = artifacts.load_tensors(path)
    if metadata.get("study") != STUDY or not NAMED <= set(metadata):
        raise ArtifactError(f"{path} was not written by this trainer: its metadata name no network of it")
    if metadata["format"] != FORMAT:
        raise ArtifactError(f"{path} is of format {metadata['format']}, not {FORMAT}: train it anew")
    for name, value in (wanted or {}).items():
        if name != "settings" and metadata.get(name) != value:
            held = metadata.get(name)
            raise ArtifactError(
                f"{path} holds the {name} {held!r}, not {value!r}: it was swapped; restore it, or delete it and run "
                "again"
            )
    if wanted and metadata.get("settings") != wanted["settings"]:
        raise ArtifactError(
            f"{path} was trained with other settings; train with these ones into another folder, or delete it"
        )
    net = models.build(metadata["model"], metadata["in_channels"], len(metadata["classes"]))
    _fill(net, state, path)
    return net.eval(), metadata


def read(path: str | Path, study: SelfExplainingStudy, data: Sets, seed: int) -> Net:
    """The network of a ``--..._pt`` option, in eval mode, where ``data`` (of ``seed``) are: a file of this study,
    whatever network it holds, or a ``.pt`` file with the weights of the study's learner. Relative to the working
    directory. Warns of other data, and where a file may have learned from images of this test set.

    Raises `ArtifactError` as `load` does, and for networks that do not fit the data.
    """
    path = Path(path)
    if path.suffix in PICKLED:
        net = models.build(models.pair(study.model)[0], data.in_channels, data.n_classes)
        _fill(net, _unpickled(path), path)
        return net.eval().to(data.x.device)
    net, metadata = load(path)
    if (trained_on := metadata.get("config", {}).get("dataset", study.dataset)) != study.dataset:
        log.warning("%s was trained on %s, not on %s", path, trained_on, study.dataset)
    trained = metadata.get("config", {}) | {"seed": metadata.get("seed", seed)}
    wanted = {"seed": seed, "n_critic_batches": study.n_critic_batches, "batch_size_critic": study.batch_size_critic}
    other = [name for name, value in wanted.items() if trained.get(name, value) != value]
    confounder, _, variant = parts(study.dataset)
    if other and confounder == "color" and variant.startswith("unconf"):  # clean images are taken out of the test set
        log.warning("%s has another %s: it may have learned from images of this test set", path, " and ".join(other))
    held, needed = (metadata["in_channels"], len(metadata["classes"])), (data.in_channels, data.n_classes)
    if held != needed:
        raise ArtifactError(
            f"{path} takes images of {held[0]} channel(s) and {held[1]} classes; these have {needed[0]} and {needed[1]}"
        )
    return net.to(data.x.device)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The state in a ``.pt`` file, as it is or as an entry of a checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is not there") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{path} cannot be read as tensors alone, and nothing else is unpickled: {reason}"
        ) from None
    if isinstance(content, Mapping):
        for state in (content, *content.values()):
            if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
                return dict(state)
    raise ArtifactError(f"{path} holds no state of a network")


def _fill(net: Net, state: Mapping[str, Tensor], path: Path) -> None:
    """Put ``state`` into ``net``: by name, or, where the shapes agree one by one, in its order."""
    own = net.state_dict()
    if state.keys() != own.keys() and path.suffix in PICKLED:
        log.info("%s names its tensors in other words: they are taken in their order", path)
        state = dict(zip(own, state.values(), strict=False)) if len(state) == len(own) else state
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        raise ArtifactError(f"{path} holds no weights of a {type(net).__name__}: names or shapes differ")
    artifacts.load_state(net, state)
