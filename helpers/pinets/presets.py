"""Settings of the PiNet studies: the groups of the paper, and presets (spec sections 3.3 and 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from helpers.config import Settings, Several, Study, suggest
from helpers.data.toyshapes import ToyShapesSettings
from helpers.pinets.models import SecondLook

Beta = Annotated[float, Field(ge=0, lt=1)]


class Model(Settings):
    """A network. The defaults are the paper's PiNet."""

    kind: Literal["pinet", "cnn"] = "pinet"
    width: int = Field(16, ge=1, description="channels of the first block")
    depth: int = Field(3, ge=1, description="blocks of the encoder")
    skip: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    spatial_decoder: bool = Field(True, description="false: the naive decoder, pooling and one dense layer")
    second_look: SecondLook = "hard"
    activation: Literal["sigmoid", "tanh"] = "sigmoid"


class Training(Settings):
    """One fit. The defaults are the paper's for a PiNet."""

    learning_rate: float = Field(5e-3, gt=0)
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), strict=False)
    batch_size: int = Field(32, ge=1)
    epochs: int = Field(50, ge=1, description="at most; a validation accuracy of 1 stops earlier")
    evaluations: int = Field(3, ge=1, description="validations an epoch")
    min_accuracy: float = Field(0.98, ge=0, le=1, description="validation accuracy that a fit needs to be accepted")
    feedback: float = Field(0.0, ge=0, description="weight of the recursive feedback loss (the paper's alpha_stab)")
    strong: float = Field(0.0, ge=0, description="weight of the mask loss (the paper's gamma)")
    sparsity: float = Field(0.0, ge=0, description="weight of the squared scores (the paper's lambda)")
    mask_rule: Literal["first_positives", "budget"] = Field(
        "first_positives",
        description="first_positives: the bundle's, the first positive of each unshuffled batch; budget: mask_budget "
        "positives drawn at random, batches shuffled",
    )
    mask_budget: int = Field(25, ge=0, description="masks that strong supervision may see under the rule `budget`")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="the paper's; bfloat16 is faster where the hardware multiplies in it, and auto takes it there; "
        "whether the fits stay the same is looked into in notebook 01, section 4",
    )

    @model_validator(mode="after")
    def _budget_counts(self) -> Training:
        """One mask a batch is the bundle's rule: a budget given with it would mean nothing."""
        if self.mask_rule == "first_positives" and self.mask_budget != type(self).model_fields["mask_budget"].default:
            raise ValueError(
                f'mask_budget = {self.mask_budget} means nothing under the mask_rule "first_positives", which takes '
                'one mask a batch: set mask_rule to "budget"'
            )
        if self.mask_rule == "budget" and not self.strong:
            raise ValueError('mask_rule = "budget" means nothing without the mask loss: give its weight, strong')
        return self


class Group(Settings):
    """Fits that share their settings."""

    label: str
    model: Model = Model()
    training: Training = Training()
    ensemble: bool = False

    @model_validator(mode="after")
    def _cnn_is_no_pinet(self) -> Group:
        """The CNN draws no map: what shapes or teaches one would mean nothing."""
        if self.model.kind == "cnn":
            idle = [f"model.{name}" for name in ("spatial_decoder", "second_look", "activation")
                    if getattr(self.model, name) != type(self.model).model_fields[name].default]  # fmt: skip
            idle += [f"training.{name}" for name in ("feedback", "strong", "sparsity") if getattr(self.training, name)]
            idle += ["ensemble"] * self.ensemble
            if idle:
                raise ValueError(f"{', '.join(idle)}: for a PiNet, not a CNN; name the groups that it is for, not *")
        return self


class Groups(Settings):
    """The paper's seven groups, by the names of their folders."""

    cnn: Group = Group(
        label="Grad-CAM",
        model=Model(kind="cnn", width=32, skip=True, dropout=0.1),
        training=Training(learning_rate=1e-3, betas=(0.9, 0.999)),
    )
    naive: Group = Group(label="PiNet Naive", model=Model(spatial_decoder=False))
    soft: Group = Group(label="PiNet Soft", model=Model(second_look="soft"))
    pinet: Group = Group(label="PiNet")
    feedback: Group = Group(label="PiNet Feedback", training=Training(feedback=1000.0))
    ensemble: Group = Group(label="PiNet Ensemble", ensemble=True)
    strong: Group = Group(label="PiNet Strong", training=Training(strong=1000.0))


GROUPS = tuple(Groups.model_fields)
LABELS = {name: getattr(Groups(), name).label for name in GROUPS}


class ToyShapesStudy(Study):
    """Everything about the ToyShapes study; `helpers.config.read_parameters` makes it from a notebook's parameters."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "quick": {
            "groups": ["cnn", "naive", "pinet", "ensemble"],
            "fits": 1,
            "ensembles": 1,
            "members": 2,
            "test_images": 50,
            "baseline_fits": 1,
            "baseline_images": 3,
            "data.n_images": 64,
            "group.*.training.epochs": 2,
            "group.*.training.min_accuracy": 0.0,
        },
    }

    of_this_run: ClassVar[frozenset[str]] = Study.of_this_run | {"workers", "together", "continue_shipped"}

    groups: Several[str] = Field(GROUPS, description="which groups to train and show")
    fits: int = Field(30, ge=1, description="accepted fits a group")
    ensembles: int = Field(10, ge=1, description="ensembles (the paper: 30)")
    members: int = Field(10, ge=1, description="accepted members an ensemble")
    attempts: int = Field(200, ge=1, description="seeds tried before a group or an ensemble is given up")
    test_images: int = Field(1000, ge=14, description="images of the shared test set; notebook 01 shows number 13")
    baseline_fits: int = Field(5, ge=1, description="CNNs on which the post-hoc methods are compared")
    baseline_images: int = Field(50, ge=3, description="test images of that comparison")
    workers: int = Field(1, ge=1, description="fits trained side by side, each with its share of the cores")
    together: int = Field(0, ge=0, description="fits of a group trained at once on one GPU; 0: one by one")
    continue_shipped: bool = Field(False, description="with RETRAIN: count fits whose record is shipped as done")
    data: ToyShapesSettings = ToyShapesSettings()
    group: Groups = Groups()

    @field_validator("groups")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError(f"name at least one group of: {', '.join(GROUPS)}")
        for name in names:
            if name not in GROUPS:
                raise ValueError(f"unknown group {name!r}: {suggest(name, GROUPS)}")
        if len(set(names)) < len(names):
            raise ValueError("name each group once")
        return names

    @model_validator(mode="after")
    def _halved(self) -> ToyShapesStudy:
        """A decoder doubles what the encoder has halved: only then is the map as large as the image."""
        side = self.data.image_size
        for name in self.groups:
            model = getattr(self.group, name).model
            if model.kind == "pinet" and model.spatial_decoder and side % 2 ** (model.depth - 1):
                raise ValueError(
                    f"images {side} pixels wide ({self.data.grid} cells of data.block_size = {self.data.block_size}) "
                    f"cannot be halved {model.depth - 1} times, as group.{name}.model.depth = {model.depth} asks: take "
                    f"a multiple of {2 ** (model.depth - 1)} pixels, or another depth"
                )
        return self
