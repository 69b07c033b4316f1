"""A self-explaining study of seconds: 25 digits, a Net1 of 4 and 8 channels, two epochs a phase."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch

from helpers.self_explaining import models
from helpers.self_explaining.models import Net1
from helpers.self_explaining.presets import SelfExplainingStudy

STUDY = SelfExplainingStudy().override({
    "dataset": "digits", "few_shot_train_percent": 0.02, "training_mode": "pretrain_and_joint_and_finetuning",
    "n_pretraining_epochs": 2, "n_epochs": 2, "n_finetuning_epochs": 2, "batch_size": 16, "batch_size_critic": 4,
    "n_critic_batches": 3, "pretrain_learning_rate": 0.5, "learning_rate": 0.3, "learning_rate_finetune": 0.3,
    "explanation_loss_weight": 1.0, "classification_loss_weight": 1.0, "logging_disabled": True, "verbose": False,
    "device": "cpu", "seeds": 1,
})  # fmt: skip


def study(**changes):
    return STUDY.override(changes)


@contextmanager
def small():
    """Net1 is a small one inside, and one core works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "Net1", partial(Net1, widths=(4, 8), hidden=16))
        yield
    torch.set_num_threads(before)
