"""Settings of the causal graphs study: its training, and every key of the release's ``config.yaml`` under its own name
(spec explainnn, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from helpers.causal_graphs.discover import Discovery
from helpers.causal_graphs.engines import Engine
from helpers.causal_graphs.interventions import Intervention
from helpers.causal_graphs.stability import Sweep
from helpers.causal_graphs.statistics import Effect, Selection
from helpers.config import Settings, Several, Study


class Training(Settings):
    """One fit. The defaults are those of LeNet on MNIST (spec explainnn, section 7.1)."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="decoupled from the gradient (AdamW), on matrices and kernels")
    batch_size: int = Field(128, ge=1)
    epochs: int = Field(4, ge=1)
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the learning rate, a step an epoch")
    warmup: int = Field(0, ge=0, description="epochs in which the learning rate rises to its value")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    augment: Literal["none", "crop-flip"] = Field("none", description="crop-flip: random part, mirrored half the time")
    min_area: float = Field(0.35, gt=0, le=1, description="of the smallest part that crop-flip shows")
    size: int | None = Field(None, ge=1, description="pixels a side of the inputs; none: the data set's own")
    validation: float = Field(1 / 12, gt=0, lt=1, description="share of the training images that choose the epoch")
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    shortcut: Literal["corner"] | None = Field(None, description="a mark planted on training images of one class")
    shortcut_class: int | None = Field(None, ge=0, description="the class whose images carry the mark")
    shortcut_share: float = Field(0.9, ge=0, le=1, description="share of them that do")

    @model_validator(mode="after")
    def _whole(self) -> Training:
        if (self.shortcut is None) != (self.shortcut_class is None):
            raise ValueError("shortcut and shortcut_class go together: name both or neither")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must end before the last of {self.epochs} epochs, not take {self.warmup}")
        return self


class Lipschitz(Settings):
    """Of the local Lipschitz estimate (spec section 6.1)."""

    k: int = Field(10, ge=1, description="noisy copies of an image")
    mean: float = Field(0.1, description="of the noise")
    std: float = Field(0.1, gt=0, description="of the noise")
    scale: Literal["none", "max", "minmax", "zscore"] = Field("minmax", description="how each map is scaled first")


# Networks and photographs for which a graph takes minutes, not a tenth of a second. LeNet's delta, 2 % of the logit, is
# a little more than a node's share in a layer of 84; in one of 512 that share is 0.2 %.
_LARGER: Mapping[str, Any] = {
    "dataset_name": "Imagenette", "candidates": "screen", "delta": 0.002, "checkpoints": 1, "n_samples": 30,
    "scored_classes": tuple(range(10)), "scored_images": 8, "controls": 5, "chunk_mb": 256, "networks": (),
}  # fmt: skip


class CausalGraphsStudy(Study):
    """Everything about the causal graphs study; `helpers.config.read_parameters` makes it from a notebook's parameters.

    The keys of the release's ``config.yaml`` come first. Those that switch a step on compute it here and now for
    ``target_idx``; what is published needs none of them.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "reference": {"mode": "reference", "attribution_method": "reference"},
        "resnet18": _LARGER | {"model_name": "ResNet18", "layer_name": "layer4.1.conv2", "layer_name_soft": "fc"},
        "convnext": _LARGER
        | {"model_name": "ConvNeXt", "layer_name": "features.6.1", "layer_name_soft": "classifier.2"}
        | {"n_samples": 20, "scored_classes": (0, 3, 8)},
        "quick": {
            "networks": (),
            "dataset_name": "Digits",
            "checkpoints": 1,
            "n_samples": 20,
            "stab_runs": 3,
            "beta_grid": (0.0, 0.05, 0.1),
            "scored_images": 4,
            "scored_classes": (3,),
            "lipschitz.k": 3,
            "controls": 2,
            "sample_grid": (5, 10, 20),
            "draws": 2,
        },
    }

    of_this_run: ClassVar[frozenset[str]] = Study.of_this_run | {
        "preset", "verbose", "learn_explainer", "target_idx", "graph_stab", "gen_attr", "save_attr", "vis_attr",
        "eval_attr", "baseline_attr", "attribution_method", "output_dir", "weights", "data_dir", "mode", "checkpoints",
        "chunk_mb", "engine", "networks",
    }  # fmt: skip

    verbose: bool = Field(True, description="a progress bar with the time left")
    dataset_name: str = Field("MNIST", description="MNIST, CIFAR10, Imagenette, Digits (no download), or a folder")
    model_name: str = Field("LeNet", description="LeNet, ResNet18, ResNet50, ConvNeXt, or module:factory")
    learn_explainer: bool = Field(False, description="discover the graph of target_idx anew instead of reading it")
    target_idx: int = Field(3, ge=0, description="the class that is explained")
    n_samples: int = Field(100, ge=1, description="images that a graph is judged on, and maps are scored on")
    soft_interventions: bool = Field(False, description="u ~ U(0, 0.01) instead of 0; mode reference always does")
    graph_stab: bool = Field(False, description="run the stability sweep of target_idx anew")
    gen_attr: bool = Field(True, description="maps of one random test image of the class")
    save_attr: bool = Field(False, description="write these maps to output_dir (with gen_attr)")
    vis_attr: bool = Field(True, description="show them; without gen_attr, the saved ones")
    eval_attr: bool = Field(False, description="score the maps anew and write the metric files")
    baseline_attr: bool = Field(False, description="show the baselines beside them")
    layer_name: str = Field("conv2", description="the layer whose causes and effects give the maps")
    layer_name_soft: str = Field("fc3", description="the layer that the stability sweep tests again")

    mode: Literal["reference", "recommended"] = Field("recommended", description="how nodes are selected")
    effect: Effect = Field("logit", description="logit, margin, logprob, or contrast with other_idx")
    other_idx: int | None = Field(None, ge=0, description="the class that contrast compares with")
    alpha: float = Field(0.05, gt=0, lt=1, description="level of the paired test")
    delta: float = Field(0.02, ge=0, description="least mean effect, as a share of the mean outcome")
    fdr: float = Field(0.05, gt=0, le=1, description="Benjamini-Hochberg's q over a layer; 1: no control")
    intervention: Literal["value", "scale", "additive", "mean", "resample"] = Field(
        "value", description="what takes the place of the cut edges"
    )
    amount: float = Field(0.0, description="u, lambda or sigma of the intervention")
    refine: bool = Field(False, description="measure single edges between the nodes that were found")
    beta_grid: Several[float] = Field(
        tuple(round(i / 100, 2) for i in range(51)), description="the largest soft values of the stability sweep"
    )
    stab_runs: int = Field(10, ge=2, description="runs at each of them")
    candidates: Literal["all", "screen", "reference"] = Field("all", description="which nodes are tested")
    engine: Engine = Field("delta", description="how cuts are computed: delta, or vmap, slower and to compare with")
    chunk_mb: int = Field(64, ge=1, description="memory that is worked in at a time")
    dtype: Literal["float32", "float64", "bfloat16"] = Field("float32", description="of the interventions")
    attribution_method: Literal["reference", "spatial_do", "contribution", "channel_activation", "act_grad"] = Field(
        "spatial_do", description="how a graph becomes a map"
    )
    output_dir: str = Field("", description="where graphs, maps and metrics of these steps go; empty: OUT/output")
    weights: str = Field("", description="a safetensors file of this trainer instead of the study's checkpoints")
    data_dir: str = Field("", description="folder of the data sets, if not SIGHTLINE_DATA")

    checkpoints: int = Field(3, ge=1, description="training seeds, from SEED upwards")
    scored_images: int = Field(40, ge=2, description="images a class that metrics are computed on")
    scored_classes: Several[int] = Field((3, 8), description="classes whose maps are scored")
    controls: int = Field(10, ge=1, description="random graphs that each graph is compared with")
    sample_grid: Several[int] = Field((25, 50, 100, 400, 800), description="numbers of images graphs are judged on")
    draws: int = Field(6, ge=2, description="draws of them")
    lipschitz: Lipschitz = Lipschitz()
    networks: Several[str] = Field(("resnet18", "convnext"), description="presets of larger networks shown beside")

    @model_validator(mode="after")
    def _contrasted(self) -> CausalGraphsStudy:
        if (self.effect == "contrast") != (self.other_idx is not None):
            raise ValueError("effect 'contrast' needs other_idx, the other class, and no other effect has one")
        return self

    @property
    def screened(self) -> bool:
        """Are graphs so dear that a gradient chooses the candidates? Then only `scored_classes` have one."""
        return self.candidates == "screen"

    @property
    def modes(self) -> tuple[str, ...]:
        """The rules that graphs are found by; a screen needs the threshold of ``recommended``."""
        return ("recommended",) if self.screened else ("recommended", "reference")

    def sweep(self) -> Sweep:
        """The grid of the stability sweep."""
        return Sweep(betas=self.beta_grid, runs=self.stab_runs, n_samples=self.n_samples, engine=self.engine)

    def discovery(self, mode: Literal["reference", "recommended"] | None = None) -> Discovery:
        """How graphs are found, in ``mode`` (default: the study's)."""
        mode = mode or self.mode
        selection = Selection(mode=mode, alpha=self.alpha, delta=self.delta, fdr=self.fdr)
        return Discovery(
            intervention=Intervention(kind=self.intervention, amount=self.amount),
            soft=self.soft_interventions,
            effect=self.effect,
            other=self.other_idx,
            selection=selection,
            candidates=self.candidates,
            refine=self.refine,
            engine=self.engine,
            dtype=self.dtype,
            chunk_mb=self.chunk_mb,
        )
