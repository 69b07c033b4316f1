"""Settings of the self-explaining study: every option of the original's command line under its own name, with its
default (spec cnn_lsx, section 8), and what the spec proposes beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from helpers.config import Settings, Several, Study

Dataset = Literal[
    "mnist", "decoymnist", "decoymnist-unconf", "decoymnist-unconf-baseline",
    "colormnist", "colormnist-unconf", "colormnist-unconf-baseline",
    "digits", "decoydigits", "decoydigits-unconf", "decoydigits-unconf-baseline",
    "colordigits", "colordigits-unconf", "colordigits-unconf-baseline",
    "fashionmnist", "chestmnist",
]  # fmt: skip
TrainingMode = Literal[
    "only_classification", "joint", "pretrain_and_joint", "pretrain_and_joint_and_finetuning", "pretrained",
    "finetuning", "test", "faithfulness", "save_expls",
]  # fmt: skip
ExplanationMode = Literal["input_x_gradient", "integrated_gradient", "input_x_integrated_gradient", "gradcam", "input"]
Norm = Literal["batch", "sample", "none"]
Label = Literal["true", "predicted"]
NEEDS_MODEL = ("pretrained", "finetuning", "test", "faithfulness", "save_expls")  # training modes that load --model_pt

CONDITIONS = {
    "clean": "{}",
    "decoy": "decoy{}",
    "decoy-unconf": "decoy{}-unconf",
    "color": "color{}",
    "color-unconf": "color{}-unconf",
}
"""What is learned from, as a data set's name of its source: ``-unconf`` has clean images, which the critic of a learner
reads, and a baseline itself."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "cnn": {},  # the baseline: it classifies, for as many epochs as all phases of the others together
    "lsx": {},
    "lsx-batch": {"explanation_norm": "batch"},
    "no-feedback": {"explanation_loss_weight": 0.0},  # a control: all phases, but the critic is not heard
    "permuted": {"rand_critic": True},  # a control: it is heard, and has learned nothing
}
"""How is learned, by what it changes in the settings of the study."""
PUBLISHED = (
    "clean/cnn", "clean/lsx", "clean/lsx-batch", "clean/no-feedback", "decoy/cnn", "decoy/lsx", "decoy-unconf/cnn",
    "decoy-unconf/lsx", "color/cnn", "color/lsx", "color-unconf/cnn", "color-unconf/lsx",
)  # fmt: skip


class Explanation(Settings):
    """How a learner explains itself (spec section 3)."""

    mode: ExplanationMode = "input_x_gradient"
    norm: Norm = "batch"
    target: Literal["logprob", "logit"] = "logprob"
    steps: int = Field(50, ge=1, description="nodes of the integrated gradients")
    gradcam_weights: Literal["differentiated", "constant"] = "differentiated"


class SelfExplainingStudy(Study):
    """Everything about the self-explaining study; `helpers.config.read_parameters` makes it from a notebook's
    parameters, ``python -m helpers.self_explaining`` from a command line."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},  # the original's defaults
        "paper_full": {
            "training_mode": "pretrain_and_joint_and_finetuning", "n_epochs": 50, "n_finetuning_epochs": 2000,
            "classification_loss_weight": 1.0, "explanation_loss_weight": 100.0,
            "explanation_loss_weight_finetune": 100.0,
        },
        "paper_fewshot": {
            "training_mode": "pretrain_and_joint_and_finetuning", "few_shot_train_percent": 0.02,
            "learning_rate": 0.004, "n_epochs": 1000, "n_finetuning_epochs": 10_000,
            "batch_size": 32, "batch_size_critic": 32, "n_critic_batches": 18,
            "classification_loss_weight": 1.0, "explanation_loss_weight": 50.0,
            "explanation_loss_weight_finetune": 5.0,
        },
        "paper_unconf": {
            "dataset": "decoymnist-unconf", "training_mode": "pretrain_and_joint_and_finetuning",
            "learning_rate": 0.004, "n_epochs": 10, "n_finetuning_epochs": 20,
            "batch_size": 32, "batch_size_critic": 16, "n_critic_batches": 32,
        },
        "quick": {
            "dataset": "digits", "training_mode": "pretrain_and_joint_and_finetuning", "few_shot_train_percent": 0.05,
            "n_pretraining_epochs": 1, "n_epochs": 1, "n_finetuning_epochs": 1, "seeds": 1,
            "batch_size": 64, "batch_size_critic": 16, "n_critic_batches": 2,
            "groups": ("clean/cnn", "clean/lsx", "decoy/cnn", "decoy/lsx"), "critics": 1, "evaluated_images": 10,
        },
        "reduced": {  # paper_fewshot, trained in an hour and a half of two cores, for all groups and seeds
            "training_mode": "pretrain_and_joint_and_finetuning", "few_shot_train_percent": 0.02,
            "n_epochs": 2, "n_finetuning_epochs": 20,  # of 1000 and 10,000
            "learning_rate": 0.3, "learning_rate_finetune": 0.05, "learning_rate_critic": 1.0,  # so that they suffice
            "batch_size": 32, "batch_size_critic": 16, "n_critic_batches": 18,  # half the critic set
            "classification_loss_weight": 1.0, "explanation_loss_weight": 10.0,
            "explanation_loss_weight_finetune": 50.0, "explanation_norm": "sample",
            "critics": 2, "evaluated_images": 500,
        },
    }  # fmt: skip

    of_this_run: ClassVar[frozenset[str]] = Study.of_this_run | {
        "preset", "data_dir", "verbose", "run_name", "logging_disabled", "log_interval", "log_interval_pretraining",
        "log_interval_critic", "log_interval_accuracy", "no_cuda", "model_pt", "vanilla_model_pt", "misc_model_pt",
        "test_batch_size", "seeds", "chunk", "workers", "together",
    }  # fmt: skip

    training_mode: TrainingMode = Field("pretrain_and_joint", description="which phases are run")
    dataset: Dataset = Field("mnist", description="digits: scikit-learn's, no download; decoy..., color...: confounded")
    model: str = Field("Net1", description="Net1, SimpleConvNet, MedNet1, MLP, or learner-critic: Net1-MLP, MLP-Net1")
    explanation_mode: ExplanationMode = Field("input_x_gradient", description="how the learner explains itself")
    few_shot_train_percent: float = Field(1.0, gt=0, le=1, description="a fraction (!) of the training set")
    classification_loss_weight: float = Field(50.0, ge=0, description="lambda_c, in the joint phase alone")
    explanation_loss_weight: float = Field(50.0, ge=0, description="lambda_e, of the mean loss of the critic")
    explanation_loss_weight_finetune: float = Field(50.0, ge=0, description="lambda_ft, of the mean squared error")
    learning_rate: float = Field(0.01, ge=0, description="of the joint phase")
    pretrain_learning_rate: float = Field(0.05, ge=0)
    learning_rate_finetune: float = Field(0.001, ge=0)
    learning_rate_critic: float = Field(0.2, ge=0)
    lr_scheduling: bool = Field(False, description="multiply the rate by learning_rate_step after every epoch")
    learning_rate_step: float = Field(0.7, gt=0, le=1)
    optimizer: Literal["adadelta", "adam"] = Field("adadelta", description="of the learner")
    n_pretraining_epochs: int = Field(10, ge=0)
    n_epochs: int = Field(40, ge=0, description="of the joint phase")
    n_finetuning_epochs: int = Field(50, ge=0)
    batch_size: int = Field(128, ge=1)
    batch_size_critic: int = Field(128, ge=1)
    test_batch_size: int = Field(128, ge=1, description="decides results under explanation_norm=batch")
    n_critic_batches: int = Field(68, ge=1, description="N: the critic reads N x batch_size_critic explanations")
    sep_critic_set: bool = Field(False, description="take the critic's images away from the learner's")
    rand_critic: bool = Field(False, description="a control: the labels that the critic is shown are permuted")
    model_pt: str = Field("", description="weights that the modes after training start from")
    vanilla_model_pt: str = Field("", description="weights of the baseline that `evaluate` compares with")
    misc_model_pt: str = Field("", description="weights of the encoder of the explanation similarity")
    random_seed: int | None = Field(None, ge=0, description="the original's name of SEED; wins where it is given")
    no_cuda: bool = Field(False, description="the original's name of DEVICE='cpu'")
    run_name: str = Field("", description="ends the name of the run's folder")
    logging_disabled: bool = Field(False, description="no TensorBoard events")
    log_interval: int = Field(1, ge=1, description="learner batches between two points of the joint phase")
    log_interval_pretraining: int = Field(1, ge=1)
    log_interval_critic: int = Field(5, ge=1, description="critic batches between two points of its learning curve")
    log_interval_accuracy: int = Field(50, ge=1, description="learner batches between two tests")

    seed: int = Field(30, ge=0, description="the first of the seeds used")
    explanation_norm: Norm = Field("batch", description="maps are divided by the maximum of: batch, sample, or not")
    explanation_target: Literal["logprob", "logit"] = Field("logprob", description="what is differentiated")
    gradcam_weights: Literal["differentiated", "constant"] = Field(
        "differentiated", description="constant: gradcam's channel weights pass no gradient, as in the original"
    )
    integration_steps: int = Field(50, ge=1, description="nodes of the integrated gradients")
    class_weights: Literal["none", "frequency", "inverse"] = Field("none", description="frequency: the original's")
    finetune_init: Literal["scratch", "continue"] = Field("scratch", description="weights that finetuning starts from")
    color_test: Literal["random", "reversed"] = Field("random", description="colours of the test images")
    color_channels: Literal[1, 3] = Field(1, description="1: grey, as the original")
    feedback: Literal["vjp", "jvp", "batches"] = Field("vjp", description="how the critic's loss reaches the learner")
    chunk: int = Field(1152, ge=1, description="images explained at a time: memory, not results")
    data_dir: str = Field("", description="folder of the data sets, if not SIGHTLINE_DATA")
    verbose: bool = Field(True, description="a progress bar with the time left")
    seeds: int = Field(5, ge=1, description="training seeds, from SEED upwards")

    groups: Several[str] = Field(PUBLISHED, description="what is compared: a condition and a kind of learning each")
    evaluated_labels: Several[Label] = Field(
        ("true", "predicted"), description="labels whose explanations are measured"
    )
    evaluated_norms: Several[Norm] = Field(("batch", "sample"), description="norms under which they are")
    evaluated_images: int | None = Field(None, ge=1, description="test images that pixels are removed from; None: all")
    critics: int = Field(5, ge=1, description="fresh critics that a measurement is the mean of")
    workers: int = Field(1, ge=1, description="fits side by side, each with its share of the cores")
    together: int = Field(1, ge=1, description="seeds of a group trained at once, as one stack of nets, on one GPU")

    @property
    def first_seed(self) -> int:
        return self.seed if self.random_seed is None else self.random_seed

    @property
    def explanation(self) -> Explanation:
        return Explanation(
            mode=self.explanation_mode,
            norm=self.explanation_norm,
            target=self.explanation_target,
            steps=self.integration_steps,
            gradcam_weights=self.gradcam_weights,
        )
