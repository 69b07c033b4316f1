"""A phase takes the steps of the plain loop, and after a cut at any of them goes on as if there had been none."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import artifacts, runtime
from helpers.self_explaining import phases
from helpers.self_explaining.phases import Phase, Standing, Watcher

PHASE = Phase("joint", epochs=3, n=10, batch_size=4, learning_rate=0.5, seed=7, decay=0.5)
FACTS = {"settings": "abc", "seed": 7}


class Cut(BaseException):
    """What a kill is to the loop: nothing runs after it."""


def make(optimizer=torch.optim.Adadelta):
    with runtime.seeded(0, "init"):
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
    return net, optimizer(net.parameters(), 1.0)


def data():
    x = torch.randn(10, 5, generator=runtime.generator(0, "x"))
    return x, torch.arange(10) % 3


def reviser(net, optimizer, cut_at=math.inf, seen=None):
    x, y = data()

    def revise(rows, step):
        if step == cut_at:
            raise Cut
        if seen is not None:
            seen.append((step, rows.tolist(), optimizer.param_groups[0]["lr"]))
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"ClassificationLoss": loss.detach(), "TotalLoss": 2 * loss.detach()}

    return revise


def go(folder=None, cut_at=math.inf, seen=None, phase=PHASE, optimizer=torch.optim.Adadelta, **options):
    net, optimizer = make(optimizer)
    options = {"folder": folder, "facts": FACTS} | options
    standing = phases.run(phase, net, optimizer, reviser(net, optimizer, cut_at, seen), **options)
    return net, standing


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own_at_its_rate():
    seen = []
    _, standing = go(seen=seen)
    assert [step for step, _, _ in seen] == list(range(9)) and [len(rows) for _, rows, _ in seen] == [4, 4, 2] * 3
    epochs = [sum((rows for _, rows, _ in seen[i : i + 3]), []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    assert [rate for _, _, rate in seen] == [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    other = Phase("finetune", **{k: v for k, v in vars(PHASE).items() if k != "name"})
    assert other.batches(1, "cpu")[0].tolist() != PHASE.batches(1, "cpu")[0].tolist()
    assert (standing.epoch, standing.batch) == (4, 0)


def test_it_takes_the_steps_of_the_plain_loop():
    net, optimizer = make()
    revise, losses = reviser(net, optimizer), []
    for epoch in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = 0.5 * 0.5 ** (epoch - 1)
        order = torch.randperm(10, generator=runtime.generator(7, "order", "joint", epoch))
        for index, rows in enumerate(order.split(4)):
            step = 3 * (epoch - 1) + index
            with runtime.seeded(7, "dropout", "joint", step):
                losses.append(float(revise(rows, step)["ClassificationLoss"]))
    ours, standing = go()
    assert same(net, ours)
    means = [row["ClassificationLoss"] for row in standing.history]
    assert means == pytest.approx([sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)])
    assert [row["TotalLoss"] for row in standing.history] == pytest.approx([2 * mean for mean in means])


@pytest.mark.parametrize("optimizer", [torch.optim.Adadelta, torch.optim.Adam])
@pytest.mark.parametrize("cut_at", [1, 3, 5, 8])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, optimizer, cut_at):
    whole, standing = go(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Cut):
        go(tmp_path / "cut", cut_at, optimizer=optimizer, checkpoint_seconds=0)
    seen = []
    net, resumed = go(tmp_path / "cut", seen=seen, optimizer=optimizer, checkpoint_seconds=0)
    assert [step for step, _, _ in seen] == list(range(cut_at, 9)), "no step is taken twice, and none left out"
    assert same(whole, net) and resumed.history == standing.history
    assert (tmp_path / "cut/log.csv").read_bytes() == (tmp_path / "whole/log.csv").read_bytes()
    again, _ = go(tmp_path / "cut", cut_at=0)
    assert same(whole, again), "what has ended stays ended until its weights are kept"


def test_checkpoints_are_as_rare_as_asked_for(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(phases, "save", lambda *arguments: written.append(arguments))
    go(tmp_path, checkpoint_seconds=1000)
    assert not written
    go(tmp_path, checkpoint_seconds=0)
    assert len(written) == 9


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tmp_path):
    go(tmp_path, checkpoint_seconds=0)
    path = phases.checkpoint_path(tmp_path, "joint")
    with pytest.raises(artifacts.ArtifactError, match="is of another seed and settings: delete it"):
        go(tmp_path, facts={"settings": "xyz", "seed": 8})
    other = Phase("pretrain", **{k: v for k, v in vars(PHASE).items() if k != "name"})
    path.rename(phases.checkpoint_path(tmp_path, "pretrain"))
    with pytest.raises(artifacts.ArtifactError, match="is of another phase"):
        go(tmp_path, phase=other)
    path.write_bytes(b"no tensors")
    with pytest.raises(artifacts.ArtifactError, match="is damaged"):
        go(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_kept(tmp_path):
    net, optimizer = make()

    def revise(rows, step):
        return {"TotalLoss": torch.tensor(math.nan if step == 4 else 1.0)}

    with pytest.raises(FloatingPointError, match="TotalLoss is nan in joint, epoch 2, by step 2 of 3"):
        phases.run(PHASE, net, optimizer, revise, folder=tmp_path, checkpoint_seconds=0)
    assert artifacts.load_tensors(phases.checkpoint_path(tmp_path, "joint"))[1]["standing"]["batch"] == 1


def test_no_epochs_leave_the_weights_as_they_are():
    phase = Phase("pretrain", epochs=0, n=10, batch_size=4, learning_rate=0.5, seed=7)
    net, standing = go(phase=phase)
    assert same(net, make()[0]) and standing.history == []


def test_the_log_holds_the_phases_in_their_order_and_each_once(tmp_path):
    for name in ("pretrain", "joint", "joint"):
        go(tmp_path, phase=Phase(name, epochs=2, n=10, batch_size=4, learning_rate=0.5, seed=7))
    rows = phases.read_log(tmp_path / "log.csv")
    assert [(row["phase"], row["epoch"], row["step"]) for row in rows] == [
        ("pretrain", 1, 3), ("pretrain", 2, 6), ("joint", 1, 3), ("joint", 2, 6)]  # fmt: skip
    assert rows[0]["ExplanationLoss"] is None and rows[0]["TotalLoss"] == pytest.approx(
        2 * rows[0]["ClassificationLoss"]
    )
    assert {row["LearningRate"] for row in rows} == {0.5}


def test_who_watches_hears_of_every_step_and_epoch():
    class Listener(Watcher):
        def __init__(self):
            self.heard = []

        def begin(self, step, net):
            self.heard.append(("begin", step))

        def step(self, step, net, rate, values):
            self.heard.append((step, rate))

        def epoch(self, step, net, row):
            self.heard.append(("epoch", step, row["epoch"]))

        def end(self, step, net):
            self.heard.append(("end", step))

    listener = Listener()
    go(watcher=listener, phase=Phase("joint", epochs=2, n=8, batch_size=4, learning_rate=0.5, seed=7))
    assert listener.heard == [
        ("begin", 0), (0, 0.5), (1, 0.5), ("epoch", 1, 1), (2, 0.5), (3, 0.5), ("epoch", 3, 2), ("end", 4)]  # fmt: skip
    assert Standing() == Standing(1, 0, {}, [], 0.0)
