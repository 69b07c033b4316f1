"""Backbones by name, cut at a stage, with or without weights of ImageNet (spec section 2.1).

Names: ``birdnet``, ``resnet50_v1`` and ``efficientnet_lite0`` to ``4`` (`helpers.prototypes.architectures`), every
convolutional classifier of torchvision, and ``timm:`` with a name of timm's. Stages: module paths (``layer3.0``), or
the names that the study's tables use (`aliases`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.overrides import TorchFunctionMode

from helpers import runtime
from helpers.attribution.base import evaluating
from helpers.config import ConfigError, suggest
from helpers.prototypes import architectures, presets, pretrained, tracing

TRANSFORMERS = ("vit_", "swin", "maxvit")  # of torchvision; no convolutional networks
USUAL_SIZE = 224  # pixels a side, to list the stages that have a map
FILLS = {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_"}  # draw what they fill with
FEW = 6  # stages, of which a network is then said to have more


@dataclass(frozen=True)
class Backbone:
    """``module`` maps x [B, in_channels, S, S] to [B, channels, *size]; ``frozen_norm``: its batch normalisation has to
    stay in evaluation mode."""

    module: fx.GraphModule
    name: str
    layer: str
    channels: int
    size: tuple[int, int]
    frozen_norm: bool = False


def backbone(model: presets.Model, input_size: int, in_channels: int = 3, load_weights: bool = True) -> Backbone:
    """The network ``model.feature_extractor`` up to and including ``model.feature_layer``; what lies behind is gone.

    Random weights come from torch's global generator. ``load_weights=False`` leaves pretrained ones out, for a network
    whose state is loaded next. Raises `ConfigError` for a name or stage that there is not (near misses listed), a stage
    without a map of channels, or images too small for it, and what `helpers.prototypes.pretrained.state` raises.
    """
    name, layer = model.feature_extractor, model.feature_layer
    if model.pretrained and in_channels != 3:
        raise ConfigError(f"pretrained weights are for images of 3 channels, not of {in_channels}")
    network = _network(name, input_size, in_channels, for_weights=model.pretrained)
    traced = tracing.trace(network)
    known, named = tracing.stages(traced), _named(name, network)
    if (path := named.get(layer, layer)) not in known:
        raise ConfigError(f"{name} has no stage {layer!r}: {suggest(layer, {*named, *known})}")
    module = tracing.cut(traced, path)
    frozen = model.pretrained and pretrained.frozen_norm(name, model.weights)
    if model.pretrained and load_weights:
        _load(module, name, layer, model.weights, network)
    return Backbone(module, name, layer, *_probe(module, name, layer, input_size, in_channels), frozen)


def names() -> list[str]:
    """Every name but timm's."""
    models = runtime.import_torchvision().models
    theirs = [name for name in models.list_models(module=models) if not name.startswith(TRANSFORMERS)]
    return [*_own(), *theirs]


def aliases(name: str) -> dict[str, str]:
    """The stages of backbone ``name`` as the study's tables call them (spec section 2.1), with their module paths, in
    order of computation; none for a family that the tables do not have."""
    return _named(name, hollow(name))


def cuts(name: str) -> list[str]:
    """The stages of backbone ``name`` at which prototypes can look at parts, in order of computation: those of
    `aliases`, or else the outermost modules that have a map of more than one cell (of the images of 224 pixels), and
    the modules within those where there are few."""
    return list(_cuts(name))


# ------------------------------------------------------------------------------------------------------ networks


def _own() -> dict[str, Callable[[int, int], nn.Module]]:
    """The backbones that are not torchvision's, made for (input_size, in_channels)."""

    def lite(name: str) -> Callable[[int, int], nn.Module]:
        return lambda size, channels: architectures.EfficientNetLite(name, size, channels)

    return {
        "birdnet": lambda size, channels: architectures.BirdNet(channels),
        "resnet50_v1": lambda size, channels: _with_channels(architectures.resnet50_v1(), channels),
        **{name: lite(name) for name in architectures.LITE},
    }


def _network(name: str, input_size: int, in_channels: int, for_weights: bool = False) -> nn.Module:
    """The whole network ``name``, random or, ``for_weights``, as pretrained ones need it."""
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), in_channels)
    if own := _own().get(name):
        return own(input_size, in_channels)
    if name not in (known := names()):
        raise ConfigError(f"unknown backbone {name!r}: {suggest(name, [*known, 'timm:<name>'])}")
    models, flags = runtime.import_torchvision().models, {}
    if name in ("googlenet", "inception_v3"):  # as torchvision makes them for its weights
        flags = {"transform_input": for_weights, "init_weights": not for_weights, "aux_logits": False}
    elif name.startswith("vgg"):
        flags = {"init_weights": not for_weights}
    with _Undrawn(name.startswith(("vgg", "alexnet"))):
        return _with_channels(models.get_model(name, weights=None, **flags), in_channels)


class _Undrawn(TorchFunctionMode):
    """Does not fill with random numbers what has no values (on the meta device), nor, ``huge``, matrices of more than
    ten million: those of VGG's classifier, which no stage with a map needs, take seconds."""

    def __init__(self, huge: bool):
        super().__init__()
        self._most = 10**7 if huge else torch.inf

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in FILLS and (filled.is_meta or filled.numel() > self._most):
            return filled
        return func(*args, **kwargs)


def _timm(name: str, in_channels: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone 'timm:{name}' needs timm: `pip install timm`") from None
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"unknown backbone 'timm:{name}': {suggest(name, timm.list_models())}")
    return timm.create_model(name, in_chans=in_channels)


def _with_channels(network: nn.Module, in_channels: int) -> nn.Module:
    """``network`` with a first convolution of as many input channels, drawn anew if they were others."""
    path, first = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != in_channels:
        fresh = nn.Conv2d(in_channels, first.out_channels, first.kernel_size, first.stride, first.padding,
                          first.dilation, bias=first.bias is not None)  # fmt: skip
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
        network.set_submodule(path, fresh)
    return network


def _load(module: nn.Module, name: str, layer: str, source: presets.Weights, network: nn.Module) -> None:
    state, own = pretrained.state(name, source, network), module.state_dict()
    if missing := [key for key in own if key not in state and not key.endswith("num_batches_tracked")]:
        raise ConfigError(
            f"the weights of {name} cover {pretrained.covered(name, source)}, not {layer!r} (no {missing[0]}): choose "
            "an earlier stage"
        )
    module.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def _probe(
    module: nn.Module, name: str, layer: str, input_size: int, in_channels: int
) -> tuple[int, tuple[int, int]]:
    """(channels, (Hz, Wz)) of the map that a black image gives."""
    x = torch.zeros(1, in_channels, input_size, input_size, device=next(module.parameters()).device)
    try:
        with torch.no_grad(), evaluating(module):
            found = module(x)
    except RuntimeError as error:
        raise ConfigError(
            f"images of {input_size} pixels are too small for {name} up to {layer!r}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 4:
        what = f"a value of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else "several values"
        raise ConfigError(f"{name} has no map of channels at {layer!r} but {what}: choose another stage")
    if min(found.shape) < 1:
        raise ConfigError(f"images of {input_size} pixels are too small for {name} up to {layer!r}: no cell is left")
    return found.shape[1], tuple(found.shape[2:])


# --------------------------------------------------------------------------------------------------- stage names


@lru_cache(maxsize=64)
def hollow(name: str) -> nn.Module:
    """The whole network without values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is initialised
        try:
            with torch.device("meta"):
                return _network(name, USUAL_SIZE, 3)
        except NotImplementedError:  # it computes its widths with tensors, as RegNet does
            return _network(name, USUAL_SIZE, 3).to("meta")


def _named(name: str, network: nn.Module) -> dict[str, str]:
    """`aliases` of ``network``, the backbone ``name``."""
    children = [child for child, _ in network.named_children()]
    if name == "birdnet":
        return {child: child for child in children}
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        behind = ("maxpool", "layer1", "layer2", "layer3", "layer4")
        return {"conv1": "relu"} | {child: child for child in behind}
    if name == "inception_v3":
        return {child: child for child in children if child.startswith(("Conv2d", "maxpool", "Mixed"))}
    if name.startswith("densenet"):
        return {child: f"features.{child}" for child, _ in network.features.named_children()}
    if not name.startswith(("vgg", "squeezenet")):
        return {}
    layers = dict(network.features.named_children())
    first = next(index for index, layer in layers.items() if isinstance(layer, nn.ReLU))
    pools = [index for index, layer in layers.items() if isinstance(layer, nn.MaxPool2d)]
    found = {"conv1": first} | {f"maxpool{number}": index for number, index in enumerate(pools, 1)}
    last = {"features": "features", "final_conv": "classifier.1"} if name.startswith("squeezenet") else {}
    return {stage: f"features.{index}" for stage, index in found.items()} | last


@lru_cache(maxsize=64)
def _cuts(name: str) -> tuple[str, ...]:
    if named := aliases(name):
        return tuple(named)
    traced = tracing.trace(hollow(name)).eval()
    ShapeProp(traced).propagate(torch.empty(1, 3, USUAL_SIZE, USUAL_SIZE, device="meta"))
    found: dict[fx.Node, str] = {}
    for path, node in tracing.stages(traced).items():
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if path.count(".") < 2 and len(shape) == 4 and min(shape[2:]) > 1:
            found[node] = path  # the outermost of those that give the same value comes last
    outermost = [path for path in found.values() if "." not in path]
    return tuple(found.values() if len(outermost) < FEW else outermost)
