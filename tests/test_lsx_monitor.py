"""TensorBoard is shown what the spec lists, and looking changes neither weights nor images."""

import pytest
import torch
from lsx_small import STUDY, small, study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import artifacts
from helpers.data.images import Preprocess
from helpers.self_explaining import fits, models, monitor, phases
from helpers.self_explaining.fits import Fit
from helpers.self_explaining.monitor import Monitor
from helpers.self_explaining.presets import Explanation
from helpers.self_explaining.sets import sets

WATCHED = study(dataset="decoydigits", logging_disabled=False, log_interval_accuracy=2, log_interval_critic=2)
PHASES = ("pretrain", "joint", "finetune")


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with small():
        yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    out = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "MEASURED", 20)
        fits.train(Fit(WATCHED, 0), out)
    return out


def events(folder):
    """The events of one phase."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def of_phase(out, phase):
    return events(fits.run_folder(out, Fit(WATCHED, 0)) / "tensorboard" / phase)


def test_the_scalars_of_the_spec_are_there(watched):
    for phase, prefix in monitor.PREFIX.items():
        losses = (
            ["ClassificationLoss"] if phase == "pretrain" else ["ClassificationLoss", "ExplanationLoss", "TotalLoss"]
        )
        measures = ["LearningRate", "TrainAccuracy", "TestAccuracy", "DecoyMass"]
        tags = {f"{prefix}/{name}" for name in [*losses, *measures, *(f"Epoch{name}" for name in losses)]}
        if phase == "joint":
            names = (
                "CriticLoss",
                "LastLoss",
                "TrainingAccuracy",
                "TestAccuracy",
                "InputTestAccuracy",
                "InputTrainingAccuracy",
            )
            tags |= {f"Critic/{name}" for name in names}
        assert set(of_phase(watched, phase).Tags()["scalars"]) == tags


def test_a_step_is_a_learner_batch_and_the_first_is_0(watched):
    found = of_phase(watched, "joint")
    assert [event.step for event in found.Scalars("JointTraining/TotalLoss")] == [0, 1, 2, 3]
    assert [event.step for event in found.Scalars("JointTraining/EpochTotalLoss")] == [1, 3]
    assert [event.step for event in found.Scalars("JointTraining/TestAccuracy")] == [1, 3, 4]
    total, part, mean = (
        found.Scalars(f"JointTraining/{name}Loss") for name in ("Total", "Classification", "Explanation")
    )
    for all_of_it, one, other in zip(total, part, mean, strict=True):
        assert all_of_it.value == pytest.approx(one.value + other.value, rel=1e-5)
    critic = found.Scalars("Critic/CriticLoss")
    assert [event.value for event in critic] == pytest.approx([event.value for event in mean])


def test_the_log_and_the_events_agree(watched):
    rows = phases.read_log(fits.run_folder(watched, Fit(WATCHED, 0)) / "log.csv")
    for phase, prefix in monitor.PREFIX.items():
        shown = of_phase(watched, phase).Scalars(f"{prefix}/EpochClassificationLoss")
        wanted = [row["ClassificationLoss"] for row in rows if row["phase"] == phase]
        assert [event.value for event in shown] == pytest.approx(wanted, rel=1e-5)


def test_there_are_pictures_of_every_stage(watched):
    seen = {tag for phase in PHASES for tag in of_phase(watched, phase).Tags()["images"]}
    stages = ("BeforeTraining", "DuringPretraining", "AfterPretraining", "DuringJointTraining", "AfterJointTraining",
              "AfterFinetuning")  # fmt: skip
    names = ("Inputs", "Explanations", "Gradients", "Overlays", "ClassMeans")
    assert {f"{stage}/{name}" for stage in stages for name in names} <= seen
    assert "AfterJointTraining/CriticLearningCurve" in seen and "AfterFinetuning/CriticLearningCurve" not in seen
    assert of_phase(watched, "joint").Images("AfterJointTraining/Inputs")[0].encoded_image_string.startswith(b"\x89PNG")


def test_looking_changes_no_bit_of_the_weights(watched, tmp_path):
    chosen = WATCHED.override({"logging_disabled": True})
    fits.train(Fit(chosen, 0), tmp_path)
    for phase in PHASES:
        seen, unseen = (
            artifacts.load_tensors(fits.weights_path(out, Fit(chosen, 0), phase))[0] for out in (watched, tmp_path)
        )
        assert all(torch.equal(seen[name], unseen[name]) for name in seen)
    assert not (fits.run_folder(tmp_path, Fit(chosen, 0)) / "tensorboard").exists()


def test_the_images_shown_are_four_of_each_class_and_stay_what_they_are():
    data = sets(STUDY, 0)
    x, y = monitor.shown(data)
    assert y.tolist() == [k for k in range(10) for _ in range(4)]
    first = data.test_x[data.test_y == 7][:4]
    assert torch.equal(x[28:32], first)
    before, test = x.clone(), data.test_x.clone()
    made = monitor.pictures(models.build("Net1", 1, 10), x, y, Explanation(), data.preprocess)
    assert torch.equal(x, before) and torch.equal(data.test_x, test)
    assert torch.allclose(made["Inputs"], data.preprocess.restore(before))
    assert [len(images) for images in made.values()] == [40, 40, 40, 8]
    assert all(images.min() >= 0 and images.max() <= 1 for images in made.values())
    assert made["Explanations"].max() == 1 and made["Overlays"].shape == (8, 3, 28, 28)


@pytest.mark.parametrize("mode", ["gradcam", "input_x_integrated_gradient", "input"])
def test_every_kind_of_explanation_can_be_shown_also_of_colours(mode):
    x, y = torch.rand(9, 3, 28, 28), torch.arange(9)
    x[:, :, :5] = 0  # nothing to divide by
    made = monitor.pictures(models.build("MedNet1", 3, 10), x, y, Explanation(mode=mode, steps=2), Preprocess())
    assert all(images.isfinite().all() and 0 <= images.min() <= images.max() <= 1 for images in made.values())
    assert ("Gradients" in made) == (mode == "input_x_integrated_gradient")


def test_class_means_are_those_of_each_class():
    maps, y = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 3), torch.tensor([0, 2, 0, 2])
    means = monitor.class_means(maps, y, 3)
    assert means[:, 0, 0, 0].tolist() == [2.0, 0.0, 4.0] and means.shape == (3, 1, 3, 3)


def test_a_learning_curve_is_a_picture():
    curve = monitor.learning_curve(torch.linspace(2.3, 1.0, 18), every=5)
    assert curve.shape[2] == 3 and curve.dtype.name == "uint8" and curve.min() < 200


def test_values_wait_until_they_are_written_together(tmp_path, monkeypatch):
    data, net = sets(STUDY, 0), models.build("Net1", 1, 10)
    monkeypatch.setattr(monitor, "PENDING", 3)
    watcher = Monitor(tmp_path, study(logging_disabled=False, log_interval=2), data, "finetune", 0)
    watcher.begin(10, net)  # goes on from a checkpoint
    for step in range(10, 15):
        watcher.step(step, net, 0.5, {"TotalLoss": torch.tensor(float(step))})
    watcher.close()
    found = events(tmp_path / "tensorboard/finetune")
    assert [(e.step, e.value) for e in found.Scalars("Finetuning/TotalLoss")] == [(10, 10.0), (12, 12.0), (14, 14.0)]
    assert {event.value for event in found.Scalars("Finetuning/LearningRate")} == {0.5}
    assert not found.Tags()["images"], "only the first phase has a stage before training"


def test_what_a_resumed_run_repeats_replaces_what_was_there(tmp_path):
    data, net = sets(STUDY, 0), models.build("Net1", 1, 10)
    for first, value in ((0, 1.0), (3, 2.0)):
        watcher = Monitor(tmp_path, study(logging_disabled=False), data, "finetune", 0)
        watcher.begin(first, net)
        for step in range(first, 5):
            watcher.step(step, net, 0.5, {"TotalLoss": torch.tensor(value)})
        watcher.close()
    shown = events(tmp_path / "tensorboard/finetune").Scalars("Finetuning/TotalLoss")
    assert [(event.step, event.value) for event in shown] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_network_is_explained_once_between_two_steps(tmp_path, monkeypatch):
    data, net, made = sets(STUDY, 0), models.build("Net1", 1, 10), []
    explanations = monitor.evaluate.explanations
    monkeypatch.setattr(monitor, "MEASURED", 20)
    monkeypatch.setattr(monitor.evaluate, "explanations", lambda *a: made.append(explanations(*a)) or made[-1])
    watcher = Monitor(tmp_path, study(dataset="decoydigits", logging_disabled=False), data, "finetune", 0)
    watcher.begin(0, net)
    watcher.step(0, net, 0.5, {"TotalLoss": torch.tensor(1.0)})
    watcher.epoch(0, net, {"epoch": 1})
    with torch.no_grad():
        net.fc1.weight.mul_(2)
    watcher.step(1, net, 0.5, {"TotalLoss": torch.tensor(1.0)})
    watcher.epoch(1, net, {"epoch": 2})
    watcher.end(2, net)
    watcher.close()
    assert len(made) == 2 and not torch.equal(*made), "once a step, and anew when the network is another one"
