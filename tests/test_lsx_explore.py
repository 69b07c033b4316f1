"""The explorer of self-explaining nets, driven as plain Python; its numbers are those of the library."""

import copy
from dataclasses import replace
from functools import partial

import ipywidgets
import numpy as np
import pytest
import torch
from lsx_small import small

from helpers import runtime, widgets
from helpers.config import ConfigError
from helpers.data import decoys
from helpers.data.images import Preprocess
from helpers.self_explaining import evaluate, examples, models, removal, views
from helpers.self_explaining.controls import THUMBNAILS
from helpers.self_explaining.explanations import explain
from helpers.self_explaining.explore import Explorer
from helpers.self_explaining.models import MLP, Net1
from helpers.self_explaining.presets import Explanation, SelfExplainingStudy
from helpers.self_explaining.sets import source_images
from helpers.self_explaining.views import CORNERS, Decoy, Lab

CNN, LSX = ("clean digits", "CNN"), ("clean digits", "LSX")
SQUARE = Decoy(7, "lower right")


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with small():
        yield


@pytest.fixture(scope="module")
def images():
    return source_images("digits", "test", "")[:140]


@pytest.fixture(scope="module")
def nets():
    """Of fresh nets, whose outputs are spread a little."""

    def fresh(seed):
        with runtime.seeded(seed, "explored"):
            net = models.build("Net1", 1, 10).eval()
        with torch.no_grad():
            net.fc2.weight *= 20
        return net

    return {"clean digits": {"CNN": fresh(0), "LSX": fresh(1)}, "decoys": {"CNN": fresh(2)}}


@pytest.fixture
def explorer(nets, images):
    return Explorer(nets, images)


@pytest.fixture(scope="module")
def lab(nets, images):
    return Lab(nets, images, Explanation())


def net_of(nets, key):
    return nets[key[0]][key[1]]


# ------------------------------------------------------------------------------------------------------ the decoy


@pytest.mark.parametrize("stored", ["float32", "uint8"])
def test_a_decoy_is_that_of_the_data_set_but_in_the_corner_that_is_chosen(nets, images, stored):
    if stored == "uint8":
        images = replace(images, x=(images.x * 255).round().to(torch.uint8))
    lab, painted, seen = Lab(nets, images, Explanation()), decoys.paint(images, 3, test=False), set()
    whole = painted.images.inputs()
    for image in range(40):
        (corner,) = [c for c in CORNERS if torch.equal(Decoy(0, c).mask(28, 28), painted.mask[image])]
        square = Decoy(int(images.y[image]), corner)
        assert torch.equal(lab.inputs([image], square)[0], whole[image])
        seen.add(corner)
    assert seen == set(CORNERS)
    assert torch.equal(lab.inputs([5], None), images.inputs([5]))


def test_the_share_on_the_decoy_is_the_metric_of_the_study(lab, nets):
    look = lab.look(CNN, 4, SQUARE, "true", "sample", 20, "without")
    heat = explain(net_of(nets, CNN), lab.inputs([4], SQUARE), lab.images.y[[4]], Explanation(norm="sample")).sum(1)
    assert look.mass == pytest.approx(removal.decoy_mass(heat, SQUARE.mask(28, 28)[None]), abs=1e-9)
    assert 0 < look.mass < 1
    assert lab.look(CNN, 4, None, "true", "sample", 20, "without").mass is None


# ------------------------------------------------------------------------------------------------------- the maps


@pytest.mark.parametrize("label", ["true", "predicted"])
@pytest.mark.parametrize("square", [None, SQUARE])
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_a_map_is_that_of_the_library_in_its_batch(lab, nets, norm, square, label):
    net, options = net_of(nets, LSX), Explanation(norm=norm)
    for image in (3, 135):  # among the first 128, and with the first 127
        rows = list(range(128)) if image < 128 else [image, *range(127)]
        x, y = lab.inputs(rows, square), lab.images.y[rows]
        classes = y if label == "true" else evaluate.predictions(net, x)
        expected = evaluate.explanations(net, x, classes, options, 128).sum(1)[rows.index(image)]
        found = lab.heat(LSX, image, square, label, norm)
        torch.testing.assert_close(found, expected.double(), rtol=1e-3, atol=1e-6)
        assert lab.explained(LSX, image, square, label) == classes[rows.index(image)]


@pytest.mark.parametrize("mode", ["integrated_gradient", "input_x_integrated_gradient", "gradcam", "input"])
def test_every_way_to_explain_is_shown_as_the_library_has_it(nets, images, mode):
    few = images[:6]
    for norm in ("sample", "batch"):
        options = Explanation(mode=mode, norm=norm, steps=4)
        explorer = Explorer(nets, few, options)
        explorer.select(image=2, norm=norm)
        expected = explain(net_of(nets, CNN), few.inputs(), few.y, options).sum(1)[2]
        np.testing.assert_allclose(explorer.looks["CNN"].heat, expected, rtol=1e-3, atol=1e-5)
        divided = mode.endswith("gradient")  # by what the norm says
        assert explorer.controls.norm.disabled != divided and ("divided" in explorer.controls.note.value) == divided


def test_what_a_net_says_is_what_it_says(lab, nets):
    look = lab.look(LSX, 7, SQUARE, "predicted", "sample", 30, "without")
    with torch.no_grad():
        said = net_of(nets, LSX)(lab.inputs([7], SQUARE))[0].exp()
    np.testing.assert_allclose(look.before, said, rtol=1e-5)
    assert look.predicted == look.explained == said.argmax()


# ---------------------------------------------------------------------------------------------------- the removal


@pytest.mark.parametrize("keep", ["without", "alone"])
def test_what_is_removed_becomes_background(lab, nets, keep):
    x, net = lab.inputs([9], None), net_of(nets, CNN)
    rank = removal.ranks(x, lab.heat(CNN, 9, None, "true", "sample")[None], 0)[0]
    for percent, count in ((0, 0), (0.5, 3), (20, 156), (100, 784)):
        look = lab.look(CNN, 9, None, "true", "sample", percent, keep)
        highest = (rank < count).numpy()
        assert (look.removed == (highest if keep == "without" else ~highest)).all()
        left = x.clone()
        left[0, 0][torch.from_numpy(look.removed)] = -0.1307 / 0.3081
        with torch.no_grad():
            np.testing.assert_allclose(look.after, net(left)[0].exp(), rtol=1e-4)
        assert look.fall == pytest.approx(look.before.max() - look.after[look.before.argmax()])
    nothing = lab.look(CNN, 9, None, "true", "sample", 0 if keep == "without" else 100, keep)
    assert nothing.fall == pytest.approx(0, abs=1e-6) and not nothing.removed.any()


def test_the_fall_is_that_of_the_removal_by_rank(nets, images):
    """Which fills with 0: the background, where the images are not normalised."""
    plain = replace(images[:5], preprocess=Preprocess(size=28))
    lab, net = Lab(nets, plain, Explanation()), net_of(nets, CNN)
    for image in range(5):
        heat = lab.heat(CNN, image, None, "true", "sample")[None]
        table = removal.by_rank(net, plain.inputs([image]), heat, percents=(10, 35.5)).set_index(["metric", "percent"])
        for percent in (10, 35.5):
            for metric, keep in (("comprehensiveness", "without"), ("sufficiency", "alone")):
                look = lab.look(CNN, image, None, "true", "sample", percent, keep)
                assert look.fall == pytest.approx(table.fall[metric, percent], abs=1e-6)


# ----------------------------------------------------------------------------------------------------- the critic


def test_the_curve_is_the_loss_of_the_critic_that_the_study_measures(explorer, nets, monkeypatch):
    monkeypatch.setattr(views, "N_CRITIC", 3)
    assert explorer.curves == {} and "Not yet asked" in explorer.controls.curves.value
    explorer.controls.ask.click()
    data = explorer.lab.critic_set
    assert data.critic_x.shape == (3, 32, 1, 28, 28) and len(set(data.critic_rows.flatten().tolist())) == 96
    torch.testing.assert_close(data.critic_x[1], explorer.lab.images.inputs(data.critic_rows[1]))
    for name, losses in explorer.curves.items():
        net, options = nets["clean digits"][name], Explanation(norm="sample")
        maps = evaluate.explanations(net, data.test_x, data.test_y, options, 32)
        measured = evaluate.critic_accuracy(net, data, options, maps, critics=1, seed=0)
        assert losses.shape == (3,) and losses[-1] == pytest.approx(measured["critic_last_loss"])
        assert losses.mean() == pytest.approx(measured["critic_loss"])
        assert f"{name}: mean {losses.mean():.3f}, last {losses[-1]:.3f}" in explorer.controls.curves.value
    assert list(explorer.curves) == ["CNN", "LSX"] and "ln 10 = 2.303" in explorer.controls.curves.value


def test_curves_are_asked_for_once_and_belong_to_norm_and_label(explorer, monkeypatch):
    monkeypatch.setattr(views, "N_CRITIC", 1)
    explorer.learn()
    first, ask = explorer.curves, explorer.controls.ask
    assert ask.disabled and ask.description == "Learn"
    for changes in (
        {"norm": "batch"},
        {"norm": "sample", "label": "predicted"},
        {"label": "true", "trained": "decoys"},
    ):
        explorer.select(**changes)
        assert explorer.curves == {} and not ask.disabled
    explorer.select(trained="clean digits", decoy=3, image=5, percent=60)
    monkeypatch.setattr(evaluate, "critic_curve", lambda *_, **__: pytest.fail("learned again"))
    explorer.learn()
    assert all(explorer.curves[name] is first[name] for name in first)


def test_a_critic_that_learns_no_number_is_said(explorer, monkeypatch):
    monkeypatch.setattr(evaluate, "critic_curve", lambda *_, **__: torch.full((2,), torch.nan))
    explorer.controls.ask.click()
    assert "the loss of the critic of CNN is not finite" in explorer.message.value
    assert explorer.curves == {} and not explorer.controls.ask.disabled


def test_the_critic_is_the_studys(nets, images):
    study = SelfExplainingStudy(model="Net1-MLP", learning_rate_critic=0.7)
    explorer = Explorer(nets, images[:64], **examples.explaining(study))
    key = explorer.keys[0]
    expected = evaluate.critic_curve(
        explorer.lab.nets[key], explorer.lab.critic_set, study.explanation.override({"norm": "sample"}), "true",
        "MLP", 0.7, critics=1, seed=0,
    )  # fmt: skip
    assert explorer.lab.learn(key, "sample", "true").tolist() == expected.tolist()


def test_a_few_images_are_a_small_critic_set(nets, images):
    explorer = Explorer(nets, images[:20])
    explorer.learn()
    assert explorer.lab.critic_set.critic_y.shape == (1, 20) and len(explorer.curves["CNN"]) == 1


# -------------------------------------------------------------------------------------------------------- choices


def test_it_opens_on_the_first_digit_without_a_decoy(explorer, images):
    state = explorer.state
    assert (state.trained, state.digit, state.decoy, state.norm) == ("clean digits", 0, None, "sample")
    assert state.image == int((images.y == 0).nonzero()[0]) and list(explorer.looks) == ["CNN", "LSX"]


def test_an_image_brings_its_digit_and_a_digit_its_first_image(explorer, images):
    explorer.select(image=17)
    assert explorer.state.digit == images.y[17]
    explorer.select(digit=3)
    rows = (images.y == 3).nonzero()[:, 0].tolist()
    assert explorer.state.image == rows[0]
    seen = []
    for _ in rows:
        seen.append(explorer.state.image)
        explorer.step()
    assert seen == rows and explorer.state.image == rows[0], "round and back to the first"
    explorer.step(-1)
    assert explorer.state.image == rows[-1]
    explorer.select(digit=3)
    assert explorer.state.image == rows[-1], "the digit that is shown already"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained": "decoy"}, "no net was trained on 'decoy': did you mean decoys"),
        ({"digit": 10}, "no image shows digit 10: there are: 0, 1"),
        ({"image": 140}, "there is no image 140: they are 0 to 139"),
        ({"image": -1}, "there is no image -1"),
        ({"image": 0, "digit": 12}, "no image shows digit 12"),
        ({"decoy": 10}, "decoy"),
        ({"decoy": -1}, "decoy"),
        ({"corner": "middle"}, "upper left"),
        ({"percent": 100.5}, "percent"),
        ({"percent": -1}, "percent"),
        ({"norm": "none"}, "norm"),
        ({"label": "other"}, "label"),
        ({"keep": "with"}, "keep"),
        ({"percnt": 3}, "did you mean percent"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_changes(explorer, changes, message):
    before, looks = explorer.state, explorer.looks
    with pytest.raises(ConfigError, match=message):
        explorer.select(**changes)
    assert explorer.state is before and explorer.looks is looks


def test_an_image_of_another_digit_is_refused(explorer, images):
    digit = (int(images.y[8]) + 1) % 10
    with pytest.raises(ConfigError, match=f"image 8 shows digit {images.y[8]}, not {digit}"):
        explorer.select(image=8, digit=digit)


def test_controls_do_what_calls_do(explorer, images):
    controls = explorer.controls
    controls.trained.value, controls.decoy.value, controls.corner.value = "decoys", 4, "lower left"
    controls.norm.value, controls.label.value, controls.keep.value = "batch", "predicted", "alone"
    controls.percent.value, controls.digit.value = 7.5, 6
    state = explorer.state
    assert (state.trained, state.square, state.norm) == ("decoys", Decoy(4, "lower left"), "batch")
    assert (state.label, state.keep, state.percent, state.digit) == ("predicted", "alone", 7.5, 6)
    rows = explorer.lab.rows[6]
    controls.thumbnails[2].click()
    assert explorer.state.image == controls.image.value == rows[2]
    controls.image.value = 11
    assert (explorer.state.image, controls.digit.value) == (11, images.y[11])


def test_controls_follow_calls_without_answering_back(explorer, monkeypatch):
    explorer.select(trained="decoys", image=20, decoy=2, corner="upper right", norm="batch", percent=33, keep="alone")
    calls = []
    monkeypatch.setattr(explorer, "become", calls.append)
    explorer.refresh()
    assert calls == []
    controls, state = explorer.controls, explorer.state
    for name in type(state).model_fields:
        assert getattr(controls, name).value == getattr(state, name), name
    assert not controls.corner.disabled and [net.widget.layout.display for net in controls.nets] == ["", "none"]


def test_what_a_control_asks_for_in_vain_is_said_to_the_person(explorer):
    shown = explorer.state.image
    explorer.controls.image.value = 999
    assert "there is no image 999: they are 0 to 139" in explorer.message.value
    assert explorer.state.image == explorer.controls.image.value == shown
    explorer.controls.percent.value = 50
    assert explorer.message.value == ""


def test_a_net_that_makes_no_number_is_said_and_the_old_view_stays(nets, images):
    broken = copy.deepcopy(nets["decoys"]["CNN"])
    with torch.no_grad():
        broken.fc1.weight.fill_(torch.nan)
    explorer = Explorer({"clean digits": nets["clean digits"], "broken": {"CNN": broken}}, images)
    explorer.controls.trained.value = "broken"
    assert "heat holds NaN" in explorer.message.value
    assert explorer.state.trained == explorer.controls.trained.value == "clean digits"


# ---------------------------------------------------------------------------------------------------- what is shown


def test_panels_and_bars_say_what_the_looks_hold(explorer):
    explorer.select(image=12, decoy=7, percent=25, label="predicted")
    for (name, look), net in zip(explorer.looks.items(), explorer.controls.nets, strict=True):
        classes, panels = explorer.lab.images.classes, net.panels
        verdict = "right" if look.predicted == explorer.state.digit else "wrong"
        assert name in net.head.value and net.head.value.endswith(verdict)
        assert f"says {classes[look.predicted]}, {100 * look.before.max():.1f} %" in panels["image"].note.value
        assert f"{100 * look.mass:.1f} % on the decoy" in panels["map"].note.value
        assert f"Map for {classes[look.predicted]} (predicted)" in panels["map"].title.value
        assert f"says {classes[look.after.argmax()]}, " in panels["left"].note.value
        word = "falls" if look.fall >= 0 else "rises"
        assert f"p({classes[look.predicted]}) {word} by {abs(look.fall):.3f}" in panels["left"].note.value
        for k, title in enumerate(classes):
            numbers = f"{title}: {100 * look.before[k]:.1f} % before, {100 * look.after[k]:.1f} % after"
            assert f"<title>{numbers}</title>" in net.bars.value
    assert "The decoy is outlined" in explorer.controls.note.value
    explorer.select(norm="batch", decoy=None)
    assert "this image's and the first 127 others'." in explorer.controls.note.value
    assert "decoy is outlined" not in explorer.controls.note.value
    assert "decoy" not in explorer.controls.nets[0].panels["map"].note.value


def test_the_thumbnails_are_a_page_of_the_digit_with_the_chosen_image(explorer):
    digit, rows = max(explorer.lab.rows.items(), key=lambda item: len(item[1]))
    assert len(rows) > THUMBNAILS
    explorer.select(image=rows[THUMBNAILS])
    thumbnails = [t for t in explorer.controls.thumbnails if t.layout.display == ""]
    assert [t.description for t in thumbnails] == [str(row) for row in rows[THUMBNAILS : 2 * THUMBNAILS]]
    assert thumbnails[0].tooltip.endswith("chosen") and thumbnails[0].style.font_weight == "bold"
    assert f"{THUMBNAILS + 1} of {len(rows)} with this digit" in explorer.controls.place.value
    style = explorer.controls.thumbnail_style.value
    assert style.count("data:image/png") == len(thumbnails)
    explorer.select(decoy=0)
    assert explorer.controls.thumbnail_style.value != style, "they bear the decoy"
    assert Explorer({"a": {"b": explorer.lab.nets[CNN]}}, explorer.lab.images).controls.scope != explorer.controls.scope


def test_names_are_text_and_no_markup(nets, images, monkeypatch):
    monkeypatch.setattr(views, "N_CRITIC", 1)
    explorer = Explorer({"<i>data": {"<b>net": nets["decoys"]["CNN"]}}, images)
    explorer.learn()
    shown = explorer.controls.nets[0].head.value + explorer.controls.curves.value
    assert "&lt;b&gt;net" in shown and "&lt;i&gt;data" in shown and "<i>" not in shown


def test_only_core_widgets_that_papermill_survives_and_each_has_a_name(explorer):
    def inside(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    found = list(inside(explorer.widget))
    kinds = {type(widget) for widget in found}
    assert all(kind.__module__.startswith("ipywidgets.") for kind in kinds)
    assert ipywidgets.Output not in kinds and ipywidgets.Image in kinds
    sliders = [widget for widget in found if hasattr(widget, "continuous_update") and hasattr(widget, "readout")]
    assert len(sliders) == 1 and not sliders[0].continuous_update
    for name in type(explorer.state).model_fields:
        control = getattr(explorer.controls, name)
        assert control.description or control.tooltips, name
    buttons = [widget for widget in found if isinstance(widget, ipywidgets.Button)]
    assert all(button.tooltip for button in buttons if button.layout.display != "none")


def test_it_displays_a_picture_of_what_is_chosen_and_then_its_controls(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer._ipython_display_()
    assert shown[0].data.startswith(b"\x89PNG") and shown[1] is explorer.widget
    one = explorer.static()
    assert one == explorer.static() and len(one) < 100_000
    explorer.select(decoy=1, keep="alone", trained="decoys")
    assert explorer.static() != one


# ------------------------------------------------------------------------------------------- what cannot be opened


def test_what_there_is_nothing_to_see_of_is_refused_in_words(nets, images):
    for none in ({}, {"clean digits": {}}):
        with pytest.raises(ConfigError, match="no net to explore"):
            Explorer(none, images)
    with pytest.raises(ConfigError, match="no image to explain"):
        Explorer(nets, images[:0])
    with pytest.raises(ConfigError, match=r"CNN of clean digits does not take images of shape \(1, 32, 32\)"):
        Explorer(nets, replace(images, preprocess=Preprocess(size=32)))
    with pytest.raises(ConfigError, match="net MLP of clean digits knows 4 classes, the images have 10"):
        Explorer({"clean digits": {"MLP": MLP(1, 4)}}, images)


# ---------------------------------------------------------------------------------------------------------- speed


@pytest.fixture(scope="module")
def full(images):
    """Makes explorers of nets of full size that have shown one image."""
    with runtime.seeded(0, "full"):
        nets = {data: {"CNN": Net1(), "LSX": Net1()} for data in ("clean digits", "decoys")}

    def make(**chosen):
        explorer = Explorer(nets, images)
        explorer.select(**chosen)
        return explorer

    return make


def test_no_event_takes_above_150_ms_of_a_core(full, slowest_event):
    events = [{"image": 7}, {"digit": 5}, {"image": 135}, {"percent": 5}, {"keep": "alone"}, {"norm": "sample"},
              {"decoy": 7}, {"corner": "lower left"}, {"label": "predicted"}, {"decoy": None}, {"label": "true"},
              {"norm": "batch"}, {"norm": "sample"}, {"trained": "decoys"}]  # fmt: skip
    seconds, event = slowest_event(partial(full, norm="batch"), events)  # the batch is explained
    assert seconds < 0.15, event


def test_a_batch_is_explained_once(full, core_seconds, monkeypatch):
    """It is the one event that takes longer: two nets explain 128 images each."""
    explorer = full(norm="sample", decoy=6)
    assert core_seconds(lambda: explorer.select(norm="batch")) < 1
    explorer.select(norm="sample", percent=30)
    monkeypatch.setattr(views, "raw", lambda *_, **__: pytest.fail("explained again"))
    explorer.select(norm="batch")
    assert set(explorer.looks) == {"CNN", "LSX"}
