"""Speed of the self-explaining study against the plain way, as ratios measured in one run (`conftest.compare`): `make
bench`. The bounds are asserted.

Both ways take the same 9 passes of a net an image, most of it in one convolution, so that a CPU core cannot gain much
but by better kernels; a GPU, which waits for launches in small batches, gains from taking all of them at once.
"""

import time

import pytest
import torch
import torch.nn.functional as F

from helpers import runtime
from helpers.self_explaining import lsx
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.models import Net1
from helpers.self_explaining.presets import Explanation, SelfExplainingStudy
from helpers.self_explaining.sets import sets

N, B = 18, 32  # the critic set of the preset paper_fewshot
OPTIONS = Explanation()


def setting(device="cpu", n=N):
    """(learner after an epoch, fresh critic, critic set x [n, B, 1, 28, 28] and y [n, B]) on digits."""
    data = sets(SelfExplainingStudy(dataset="digits", n_critic_batches=n, batch_size_critic=B), 0)
    with runtime.seeded(0, "init"):
        learner, critic = Net1(), Net1()
    optimizer = torch.optim.Adadelta(learner.parameters(), 0.05)
    for rows in torch.arange(len(data.y)).split(B):
        lsx.joint_step(learner, optimizer, (data.x[rows], data.y[rows]), None, 0)
    return learner.to(device), critic.to(device), data.critic_x.to(device), data.critic_y.to(device)


def assert_equal(ours, plain):
    one, other = (torch.cat([g.flatten() for g in gradients]) for gradients in (ours, plain))
    assert (one - other).norm() <= 1e-4 * other.norm()


def test_feedback(compare, threads):
    """One step's way from the critic set to the learner's gradient. The clock is that of the core."""
    threads(1)
    learner, critic, x, y = setting()
    found = {}

    def run(way):
        found[way] = lsx.feedback(learner, critic, x, y, OPTIONS, learning_rate=0.2, way=way)[0]

    plain, ours = (lambda: run("batches")), (lambda: run("vjp"))
    assert compare(f"feedback, {N} x {B} images", plain, ours, clock=time.process_time) >= 1.1
    assert_equal(found["vjp"], found["batches"])


def test_finetuning(compare, threads):
    """A step's gradient, whose two losses share their passes."""
    threads(1)
    learner, _, x, y = setting()
    x, y, wanted, found = x[0], y[0], torch.rand_like(x[0]), {}

    def plain():
        learner.zero_grad()
        loss = F.nll_loss(learner(x), y) + 5 * F.mse_loss(explain(learner, x, y, OPTIONS, graph=True), wanted)
        loss.backward()
        found["plain"] = [parameter.grad for parameter in learner.parameters()]

    def ours():
        learner.zero_grad()
        lsx.finetune_loss(learner, x, y, wanted, OPTIONS, weight=5.0).total.backward()
        found["ours"] = [parameter.grad for parameter in learner.parameters()]

    assert compare(f"finetuning, {B} images", plain, ours, clock=time.process_time) >= 1.3
    assert_equal(found["ours"], found["plain"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_feedback_on_a_gpu(compare):
    learner, critic, x, y = setting("cuda")
    held = lsx.Critique(x[None], y[None], y[None], OPTIONS, critic="Net1", n_classes=10, seeds=(0,))
    found = {}

    def plain():
        critic = lsx.fresh_critic("Net1", 1, 10, 0, 0, "cuda")
        order = lsx.order(0, 0, N)
        found["plain"] = lsx.feedback(learner, critic, x, y, OPTIONS, learning_rate=0.2, order=order, way="batches")[0]
        torch.cuda.synchronize()

    def ours():
        found["ours"] = held.feedback(learner, 0)[0]
        torch.cuda.synchronize()

    ratio = compare(f"feedback on a GPU, {N} x {B} images", plain, ours)
    assert_equal(found["ours"], found["plain"])
    assert ratio >= 20
