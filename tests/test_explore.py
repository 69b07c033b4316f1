"""The ToyShapes explorer, driven as plain Python. `test_browser` drives it with a hand's means."""

import re
from collections.abc import Iterator
from operator import methodcaller
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
import torch
from shelves import TINY, untrained

from helpers import artifacts, config, metrics, widgets
from helpers.config import ConfigError
from helpers.pinets import evaluate, examples, fits
from helpers.pinets.explore import Explorer
from helpers.pinets.presets import GROUPS, ToyShapesStudy
from helpers.pinets.study import Shelf
from helpers.pinets.views import Board, view

every_group = pytest.mark.parametrize("group", GROUPS)
PINETS = [group for group in GROUPS if group != "cnn"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def explorer(made):
    return Explorer(*made)


def test_image(made, index):
    study, _ = made
    data = fits.test_set(study)
    return data.x[index, 0].numpy(), data.masks[index, 0].numpy()


test_image.__test__ = False


def middle(explorer):
    """A threshold that divides the pixels of the map that is shown."""
    return float(np.median(explorer.view.unit))


# ------------------------------------------------------------------------------------------ what is shown


def test_it_opens_on_the_pinet_and_an_image_with_a_target(explorer):
    assert explorer.state.group == "pinet" and explorer.state.fit == "pinet/0"
    assert explorer.view.mask.any()
    assert explorer.drawing.cells[explorer.state.cell].shape == "triangle"


def test_its_images_are_the_test_set(made, explorer):
    for image in range(24):
        explorer.select(image=image)
        x, mask = test_image(made, image)
        assert (explorer.view.x == x).all() and (explorer.view.mask == mask).all()


@every_group
def test_the_map_is_the_fits_own_divided_by_its_record_wide_maximum(made, explorer, group):
    study, shelf = made
    explorer.select(group=group, image=5)
    record = shelf.record(explorer.state.fit)
    model = examples.load_model(record, study, shelf)
    x, _ = test_image(made, 5)
    expected = evaluate.explain(model, evaluate.default_explainer(model), torch.from_numpy(x)[None, None])
    assert explorer.view.look.logit == pytest.approx(expected.logits.item(), rel=1e-5)
    assert np.allclose(explorer.view.unit, expected.heat[0] / record["test"]["scale"], rtol=1e-5, atol=1e-7)


@every_group
def test_what_is_shown_of_each_image_adds_up_to_the_record(made, explorer, group):
    """Accuracy, detection and recursive accuracy of the record are the means of what the explorer shows."""
    record = made[1].record(f"{group}/0")["test"]
    data = fits.test_set(made[0])

    def shown(**changes) -> Iterator:
        for image in range(24):
            explorer.select(image=image, **changes)
            yield explorer.view

    naive = list(shown(group=group, mode="naive"))
    assert np.nanmean([view.tdr for view in naive]) == pytest.approx(record["naive"]["tdr"], rel=1e-5)
    assert np.mean([view.tar for view in naive]) == pytest.approx(record["naive"]["tar"], rel=1e-5)
    positive = data.y.numpy() > 0
    assert np.mean([(view.look.logit > 0) for view in naive] == positive) == pytest.approx(record["accuracy"])
    again = np.mean([(view.again > 0) for view in naive] == positive)
    assert again == pytest.approx(record["recursive"]["accuracy"], abs=1 / 24)  # a logit near 0 may fall either way
    oracle = list(shown(threshold="oracle"))
    assert np.nanmean([view.tdr for view in oracle]) == pytest.approx(record["optimal"]["tdr"], abs=1e-3)
    assert np.mean([view.tar for view in oracle]) == pytest.approx(record["optimal"]["tar"], abs=1e-3)


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_evidence_against_the_class_finds_nothing_in_the_explorer_as_in_the_record(threshold):
    mask = np.eye(8, dtype=np.float32)
    heat = np.where(mask > 0, 0.8, -0.8).astype(np.float32)

    class Signed:
        open, logit = (lambda self, name: SimpleNamespace(scale=0.8)), (lambda self, name, x: 0.0)

        def look(self, name, x):
            return SimpleNamespace(heat=heat)

    shown = view(Signed(), "pinet/0", mask, mask, threshold, recursive=False)
    assert (shown.tdr, shown.tar) == (1, 1)
    assert (shown.kept == 1).all() and (shown.unit == 1).all(), "the part that is fed back goes by magnitude"


@pytest.mark.parametrize("group", PINETS)
def test_the_contributions_and_the_bias_are_the_logit(explorer, group):
    explorer.select(group=group)
    _, bias = explorer.fits.open(explorer.state.fit).read_out
    view = explorer.view
    assert view.look.contributions.sum(dtype=float) + bias == pytest.approx(view.look.logit, rel=1e-4)
    written = re.search(r"= (.*) = <b>(.*)</b>", explorer.controls.values.value.split("Aligned")[1].split("</td>")[0])
    left = eval(written[1].replace("−", "-").replace("·", "*"))  # what is written down can be computed by hand
    assert left == pytest.approx(float(written[2].replace("−", "-")), rel=0.01)
    assert float(written[2].replace("−", "-")) == pytest.approx(view.look.logit, rel=1e-3, abs=0.01)


def test_grad_cam_has_no_contributions_and_says_so(explorer):
    explorer.select(group="cnn")
    assert explorer.view.look.contributions is None
    assert "made after the prediction" in explorer.controls.values.value
    assert "none" in explorer.controls.panels["contributions"].note.value


def test_an_ensemble_shows_the_mean_of_its_members_and_their_votes(made, explorer):
    explorer.select(group="ensemble")
    votes = explorer.view.look.votes
    assert len(votes) == 2 and np.mean(votes) == pytest.approx(explorer.view.look.logit, rel=1e-5)
    assert "2 members" in explorer.controls.values.value


def test_a_threshold_keeps_what_is_above_it(explorer):
    threshold = middle(explorer)
    explorer.select(threshold=threshold)
    view = explorer.view
    assert (view.kept == (view.unit > threshold)).all() and 0.2 < view.kept.mean() < 0.8
    assert (view.explained == view.kept * view.x).all()
    tdr, tar = metrics.detection_rates(torch.from_numpy(view.kept)[None], torch.from_numpy(view.mask)[None])
    assert (view.tdr, view.tar) == (tdr.item(), tar.item())


def test_the_recursive_look_is_the_look_at_the_explained_part(explorer):
    explorer.select(threshold=middle(explorer))
    explained, again = explorer.view.explained, explorer.view.again
    explorer.select(recursive=True)
    assert (explorer.view.x == explained).all()
    assert explorer.view.look.logit == pytest.approx(again, rel=1e-5)


def test_without_a_target_no_detection_rate_is_claimed(explorer):
    explorer.select(images="negative")
    assert np.isnan(explorer.view.tdr) and "nan" not in explorer.controls.values.value.lower()
    assert "no triangle" in explorer.controls.values.value


# ---------------------------------------------------------------------------------------------- choices


def test_a_fit_brings_its_group_and_a_group_the_fit_of_the_same_seed(explorer):
    explorer.select(fit="soft/1")
    assert explorer.state.group == "soft"
    explorer.select(group="feedback")
    assert explorer.state.fit == "feedback/1"
    explorer.select(group="ensemble")
    assert explorer.state.fit == "ensemble/0"


def test_a_tuned_threshold_follows_the_fit_and_ones_own_stays(explorer):
    explorer.select(threshold="oracle")
    for group in ("cnn", "strong"):
        explorer.select(group=group)
        assert explorer.state.threshold == explorer.fits.open(f"{group}/0").record["test"]["optimal"]["threshold"]
    explorer.select(threshold=0.02)
    explorer.select(group="naive")
    assert explorer.state.threshold == 0.02 and explorer.state.rule == "own"


def test_choosing_a_threshold_shows_the_thresholded_map(explorer):
    assert explorer.state.mode == "naive"
    explorer.select(threshold="validation")
    assert explorer.state.mode == "thresholded"


def test_the_filter_decides_where_a_step_leads(explorer):
    positive = explorer.board.counts > 0
    explorer.select(images="negative")
    assert not positive[explorer.state.image]
    seen = []
    for _ in range((~positive).sum()):
        explorer.step()
        seen.append(explorer.state.image)
    assert sorted(seen) == np.flatnonzero(~positive).tolist(), "round and back to the first"
    explorer.step(-1)
    assert explorer.state.image == seen[-2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "pinett"}, "did you mean pinet"),
        ({"fit": "pinet/9"}, "pinet/9"),
        ({"group": "soft", "fit": "pinet/0"}, "no weights of a fit 'pinet/0'"),
        ({"image": 24}, "they are 0 to 23"),
        ({"image": "3"}, "image"),
        ({"cell": 9}, "they are 0 to 8"),
        ({"mode": "soft"}, "mode"),
        ({"threshold": 2.0}, "threshold"),
        ({"threshold": "best"}, "rule"),
        ({"thresold": 0.1}, "did you mean threshold"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_changes(explorer, changes, message):
    before = explorer.state
    with pytest.raises(ConfigError, match=message):
        explorer.select(**changes)
    assert explorer.state == before


# ---------------------------------------------------------------------------------------------- drawing


def test_every_test_image_drawn_again_is_itself(made, explorer):
    for image in range(24):
        picture, mask = explorer.board.render(explorer.board.drawing(image))
        x, expected = test_image(made, image)
        assert (picture == (x * 255).round()).all() and (mask == expected).all()


def test_an_image_that_the_test_set_left_out_is_left_out_here():
    settings = {"data.backgrounds": False, "data.hollow": 0.0, "data.n_blocks": 1, "data.block_size": 8}
    study = ToyShapesStudy().override(settings | {"test_images": 60})
    images, board = fits.test_set(study).x[:, 0].numpy(), Board(study)
    assert len(board.counts) == len(images) < 60, "images that repeat an earlier one are dropped"
    for i, image in enumerate(images):
        assert np.array_equal(board.render(board.drawing(i))[0], (image * 255).round())


def test_a_shape_placed_changes_image_mask_and_prediction_at_once(explorer):
    explorer.select(images="negative")
    before = explorer.view
    explorer.place(cell=5, shape="triangle", side=9, shade=255, hollow=False)
    assert explorer.state.cell == 5 and explorer.board.count(explorer.drawing) == 1
    rows, columns = np.nonzero(explorer.view.mask)
    assert set(rows // 12) == {1} and set(columns // 12) == {2}, "cell 5 of 3 x 3 from the bottom left"
    assert (explorer.view.x[explorer.view.mask > 0] == 1).all()
    assert explorer.view.look.logit != before.look.logit
    explorer.place(cell=5, shape="void")
    assert not explorer.view.mask.any()


def test_a_shape_moved_takes_its_mask_along_and_moving_it_back_undoes_it(explorer):
    start = explorer.view
    cell = explorer.state.cell
    to = next(i for i, c in enumerate(explorer.drawing.cells) if c.shape != "triangle")
    explorer.move(cell, to)
    moved = explorer.view.mask
    assert moved.sum() == start.mask.sum() and (moved != start.mask).any() and explorer.state.cell == to
    explorer.move(to, cell)
    assert (explorer.view.x == start.x).all() and explorer.view.look == start.look


def test_the_background_can_be_changed(explorer):
    explorer.select(image=int(np.argmin(explorer.board.scenes.background)))
    old = explorer.drawing.background
    explorer.fill(90)
    assert (explorer.view.x == np.float32(90 / 255)).sum() > (explorer.view.x == np.float32(old / 255)).sum()


def test_a_drawing_stays_under_another_fit_and_goes_with_another_image(explorer):
    explorer.place(0, shape="circle")
    drawn = explorer.state.drawing
    explorer.select(group="cnn", threshold=0.1, recursive=True)
    assert explorer.state.drawing == drawn
    explorer.step()
    assert explorer.state.drawing is None
    explorer.fill(60)
    explorer.reset()
    assert explorer.state.drawing is None


def test_a_triangle_of_a_new_side_keeps_within_its_cell(explorer):
    for side in (4, 8, 12):
        explorer.place(4, shape="triangle", side=side)
        before = explorer.view.mask.sum()
        cells = explorer.view.mask.reshape(3, 12, 3, 12).any((1, 3))
        assert cells[1, 1] and before > 0


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        (9, {}, "there is no cell 9"),
        (-1, {}, "there is no cell -1"),
        (0, {"shape": "star"}, "unknown shape 'star'"),
        (0, {"side": 13}, "does not fit a cell of 12"),
        (0, {"shade": 256}, "shade"),
        (0, {"colour": 3}, "unknown setting 'colour'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(explorer, cell, changes, message):
    before = explorer.state
    with pytest.raises(ConfigError, match=message):
        explorer.place(cell, **changes)
    assert explorer.state == before


def test_what_no_training_image_shows_is_pointed_out(explorer):
    explorer.place(0, shape="square", shade=255, side=12)
    explorer.fill(240)
    for words in ("contrast below 50", "side outside 6–9 px", "background outside 50–199"):
        assert words in explorer.controls.hint.value
    explorer.reset()
    assert explorer.controls.hint.value == ""


# ---------------------------------------------------------------------------------------------- controls


def test_controls_do_what_calls_do(explorer):
    controls = explorer.controls
    controls.group.value = "strong"
    controls.threshold.value = 0.1
    controls.image.value = 7
    assert (explorer.state.group, explorer.state.image) == ("strong", 7)
    assert explorer.state.threshold == pytest.approx(0.1) and explorer.state.mode == "thresholded"
    controls.fit.value = "strong/1"
    controls.rules["oracle"].click()
    assert explorer.state.fit == "strong/1" and explorer.state.rule == "oracle"
    assert controls.threshold.value == pytest.approx(explorer.state.threshold)
    controls.mode.value, controls.recursive.value, controls.images.value = "naive", True, "positive"
    assert (explorer.state.mode, explorer.state.recursive, explorer.state.images) == ("naive", True, "positive")


def test_controls_draw(explorer):
    controls = explorer.controls
    controls.cells[4].click()
    controls.shape.value, controls.shade.value, controls.side.value = "triangle", 200, 9
    controls.hollow.value, controls.background.value = True, 60
    cell = explorer.drawing.cells[4]
    assert (cell.shape, cell.shade, cell.side, cell.hollow) == ("triangle", 200, 9, True)
    assert explorer.drawing.background == 60
    controls.moving.value = True
    controls.cells[8].click()
    assert explorer.drawing.cells[8] == cell and not controls.moving.value and explorer.state.cell == 8
    controls.undo.click()
    assert explorer.state.drawing is None


def test_controls_follow_calls_without_answering_back(explorer, monkeypatch):
    explorer.select(group="soft", image=9, threshold="oracle")
    calls = []
    monkeypatch.setattr(explorer, "become", calls.append)
    explorer.refresh()
    assert calls == []
    controls = explorer.controls
    assert (controls.group.value, controls.fit.value, controls.image.value) == ("soft", "soft/0", 9)


def test_the_pictures_change_with_what_is_chosen(explorer):
    panels = explorer.controls.panels

    def pictures():
        return {name: panel.image.value for name, panel in panels.items()}

    before = pictures()
    explorer.select(threshold=middle(explorer))
    after = pictures()
    assert {name for name in panels if before[name] != after[name]} == {"map", "explained"}
    explorer.select(group="naive")
    assert panels["image"].image.value == after["image"] and panels["map"].image.value != after["map"]
    explorer.step()
    assert panels["image"].image.value != after["image"]


def test_only_core_widgets_that_papermill_survives(explorer):
    def inside(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    kinds = {type(widget) for widget in inside(explorer.widget)}
    assert all(kind.__module__.startswith("ipywidgets.") for kind in kinds)
    assert ipywidgets.Output not in kinds and ipywidgets.Image in kinds
    sliders = [widget for widget in inside(explorer.widget) if hasattr(widget, "continuous_update")]
    assert len(sliders) >= 4 and not any(slider.continuous_update for slider in sliders)


def test_the_static_picture_shows_every_group(explorer):
    static = explorer.static()
    assert static.startswith(b"\x89PNG") and len(static) < 100_000
    assert explorer.static() == static, "no draw, no clock: the same bytes again"


def test_an_explorer_displays_a_picture_and_then_its_controls(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer._ipython_display_()
    assert shown[0].data.startswith(b"\x89PNG") and shown[1] is explorer.widget


# ---------------------------------------------------------------------------------------------- honesty


def test_an_empty_shelf_says_what_to_do(made, tmp_path):
    with pytest.raises(artifacts.ArtifactError, match="RETRAIN=True"):
        Explorer(made[0], Shelf(tmp_path))


def test_only_fits_with_weights_are_offered(tmp_path):
    study, shelf = untrained(tmp_path, TINY | {"groups": ["pinet", "soft", "ensemble"]})
    shelf.weights_path(fits.Fit("soft", 0)).unlink()
    shelf.weights_path(fits.Fit("ensemble", 1, 0)).unlink()
    assert Explorer(study, shelf).fits.names == {"pinet": ["pinet/0", "pinet/1"], "soft": ["soft/1"]}


def test_weights_that_are_not_the_records_are_refused_in_words_and_the_old_view_stays(tmp_path):
    study, shelf = untrained(tmp_path, TINY | {"groups": ["pinet"]})
    explorer = Explorer(study, shelf)
    path = shelf.weights_path(fits.Fit("pinet", 1))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    explorer.controls.fit.value = "pinet/1"
    assert "is not what the record of pinet/1 was computed from" in explorer.message.value
    assert explorer.state.fit == explorer.controls.fit.value == "pinet/0"


def test_weights_that_went_away_are_missed_in_words(tmp_path):
    study, shelf = untrained(tmp_path, TINY | {"groups": ["pinet"]})
    explorer = Explorer(study, shelf)
    shelf.weights_path(fits.Fit("pinet", 1)).unlink()
    explorer.controls.fit.value = "pinet/1"
    assert "pinet/1.safetensors is not there" in explorer.message.value
    assert explorer.state.fit == "pinet/0"


def test_a_study_of_other_settings_is_refused(made):
    study, shelf = made
    other = study.override({"data.hollow": 0.9})
    with pytest.raises(artifacts.ArtifactError, match="other data, model or training settings"):
        Explorer(other, shelf)


# ---------------------------------------------------------------------------------------------- speed, shipped


@pytest.mark.parametrize("group", ["cnn", "pinet", "naive"])
def test_no_event_takes_above_100_ms_of_a_core(tmp_path, slowest_event, group):
    study, shelf = untrained(tmp_path, {"fits": 2, "test_images": 20, "data.n_images": 20, "groups": [group]})
    events = [methodcaller("step"), {"fit": f"{group}/1"}, {"threshold": 0.5}, {"recursive": True},
              methodcaller("place", 5, shape="square", shade=7), methodcaller("move", 5, 6)]  # fmt: skip
    seconds, event = slowest_event(lambda: Explorer(study, shelf), events)
    assert seconds < 0.1, event


def test_what_was_looked_at_is_remembered(explorer, monkeypatch):
    explorer.step()
    explorer.step(-1)
    monkeypatch.setattr("helpers.pinets.views._look", lambda *_: pytest.fail("looked again"))
    explorer.step()


def shipped():
    return (config.ROOT / "weights" / "toyshapes" / artifacts.MANIFEST).exists()


@pytest.mark.skipif(not shipped(), reason="no ToyShapes weights are shipped yet: helpers.pinets.publish makes them")
def test_the_shipped_pinet_sees_a_triangle_that_is_drawn():
    explorer = Explorer(ToyShapesStudy(), Shelf())
    explorer.select(group="feedback", images="negative")
    assert explorer.view.look.logit < 0
    explorer.place(5, shape="triangle", side=14, shade=250 if explorer.drawing.background < 150 else 0, hollow=False)
    assert explorer.view.look.logit > 0
    explorer.select(threshold="validation")
    assert explorer.view.tdr > 0.9 and explorer.view.tar > 0.7
