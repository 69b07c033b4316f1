"""The floods explorer: what is chosen is what is shown, by hand and from code; pictures that are shipped, and made."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from browsing import browser, changes, click, find, picture, served, until, with_browser
from PIL import Image

from helpers import artifacts, config, figures
from helpers.artifacts import ArtifactError
from helpers.config import ConfigError
from helpers.data.flood_chips import Chips
from helpers.figures import png
from helpers.pinets.floods import figures as own_figures
from helpers.pinets.floods import fits, maps, publish, study
from helpers.pinets.floods.explore import Explorer, readout, table
from helpers.pinets.floods.fits import Member
from helpers.pinets.floods.maps import Maps, NoMaps
from helpers.pinets.floods.presets import published

__all__ = ["browser"]  # a fixture

CELL = """
from helpers.pinets.floods.explore import Explorer
from helpers.pinets.floods.presets import published

explorer = Explorer(published("quick").override({changes}))
explorer
"""


def made(folder):
    """A study of two fits that were trained for one epoch, in ``folder``."""
    changes = {"out": str(folder), "budgets": (), "rules": ("corrected",), "training.epochs": 1, "data.chips": 4}
    changes |= {"test_chips": 3, "data.tile": 128, "channels": 4}
    own = published("quick").override(changes)
    study.collect(own.override({"retrain": True}))
    return own, changes


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return made(tmp_path_factory.mktemp("floods"))[0]


@pytest.fixture
def explorer(quick):
    return Explorer(quick)


def test_publishing_one_half_does_not_lose_the_other(quick, monkeypatch):
    monkeypatch.setattr(publish, "shipping", lambda *_: pytest.fail("shipped"))
    monkeypatch.setattr(artifacts, "listed", lambda folder: {"other/pinet/0.json": {}, "manifest.csv": {}})
    with pytest.raises(ArtifactError, match=r"other/pinet/0 .*would be lost"):
        publish.publish([quick])


def test_the_readout_counts_pixels():
    water = np.array([[0.9, 0.4], [0.6, 0.2]], np.float32)
    mask = np.array([[1, 1], [-1, 0]], np.int8)
    found = readout(water, mask, 0.3)
    assert (found.cut, found.true, found.known, found.iou) == (2, 2, 3, 1.0)
    assert found.predicted == pytest.approx(1.5)
    assert readout(water, mask, 0.95).iou == 0
    nothing = readout(water, np.full((2, 2), -1, np.int8), 0.3)
    assert nothing.known == 0 and nothing.iou != nothing.iou
    assert "no pixel has data" in table(nothing) and "no water to find" in table(nothing)


def test_choices_change_what_is_shown_and_the_threshold_never_the_prediction(explorer):
    explorer.select(threshold=0.0)  # all is above
    before = bytes(explorer.panels["map"].image.value), explorer.readout
    explorer.select(threshold=1.0)
    assert explorer.readout.predicted == before[1].predicted
    assert (explorer.readout.cut, before[1].cut) == (0, before[1].known)
    assert explorer.panels["map"].image.value != before[0]
    image = bytes(explorer.panels["image"].image.value)
    explorer.select(bands="short-wave (SWIR2, NIR, red)")
    assert explorer.panels["image"].image.value != image
    chip = explorer.state.chip
    explorer.step()
    assert explorer.state.chip != chip and explorer.chip.value == explorer.state.chip
    explorer.step(-1)
    assert explorer.state.chip == chip
    explorer.model.value = "SegNet, all masks"  # a hand on the control
    assert explorer.state.model == "SegNet, all masks" and "Σ of the map" in explorer.table.value


def test_the_swipe_goes_from_the_prediction_to_the_truth(explorer):
    _, mask = explorer.maps.scene(explorer.state.chip)
    water = explorer.maps.water(explorer.state.model, explorer.state.chip)
    decided = own_figures.decided(water, mask, explorer.state.threshold)

    def shown(swipe):
        explorer.select(swipe=swipe)
        picture = np.asarray(Image.open(io.BytesIO(explorer.panels["swipe"].image.value)))[1::2, 1::2]
        return picture[:, 2:-2], swipe

    for swipe, values in ((100, mask), (0, decided)):
        expected = (own_figures.paint(values) * 255).round().astype(np.uint8)[:, 2:-2]
        assert (shown(swipe)[0] == expected).all()
    assert (decided != mask).any(), "else there is nothing to tell"


def test_what_there_is_not_is_refused_and_nothing_changes(explorer):
    state = explorer.state
    for wrong, message in (
        ({"chip": "test-0001"}, "did you mean test-001"),
        ({"model": "PiNet"}, "unknown model"),
        ({"bands": "x-ray"}, "unknown bands"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"zoom": 2}, "unknown setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            explorer.select(**wrong)
    assert explorer.state == state


def test_the_static_picture_shows_every_model(explorer):
    with Image.open(io.BytesIO(explorer.static())) as picture:
        assert picture.width > 4 * 160


def test_shipped_maps_are_read_where_nothing_vouches_for_more(quick, tmp_path, monkeypatch):
    """Published as drawn scenes are: records, two heads and maps; and what was changed afterwards is refused."""
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(maps, "SHOWN", ("test-000", "test-001"))
    baseline = fits.working_folder(quick) / "results" / f"{study.baseline_name(quick)}.json"
    baseline.unlink(missing_ok=True)  # else publishing would not be the first to ask for it
    names = publish.publish([quick])
    assert len(names) == 3 and artifacts.verify_tree(tmp_path)[0] == []
    shipped = Maps(quick.override({"out": ""}))
    assert shipped.shelf.shipped and shipped.chips == maps.SHOWN
    made_here = Maps(quick)
    for model in shipped.models:
        difference = shipped.water(model, "test-001") - made_here.water(model, "test-001")
        assert np.abs(difference).max() <= 0.5 / 255 + 1e-6
    path = tmp_path / "results" / "floods" / maps.map_name(shipped.models["PiNet, areas alone"], "test-000")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated or changed"):
        shipped.water("PiNet, areas alone", "test-000")


def test_weights_of_real_chips_are_not_shipped(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "DRAWN", "something else")
    publish.publish([quick])
    kept = [path.name for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".png")]
    assert kept == []


def test_without_maps_it_is_said_what_to_take(quick, tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(NoMaps, match='PRESET="scenes"'):
        Explorer(quick.override({"out": str(tmp_path)}))


def test_where_there_are_no_maps_those_of_drawn_scenes_are_shown_and_it_is_said(quick, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    real = published("water").override({"out": str(tmp_path)})
    assert maps.pictured(real, quick).study == quick
    assert "no maps of water_multispectral: the pictures are of water_scenes" in capsys.readouterr().out
    assert maps.pictured(quick, real).study == quick and not capsys.readouterr().out
    with pytest.raises(NoMaps):
        maps.pictured(real, real)


def test_of_the_published_data_the_chips_of_the_published_figure_are_shown():
    names = tuple(f"chip-{row}" for row in range(90))
    tiles = SimpleNamespace(chips=Chips("sen1floods11", 512, {"test": names}, None, ""))
    of = SimpleNamespace(study=published("paper"), chips=names, tiles=lambda: tiles)
    assert Maps.shown.fget(of) == ("chip-33", "chip-11", "chip-20", "chip-27", "chip-63", "chip-84")
    of.chips = names[:30]
    assert Maps.shown.fget(of) == ("chip-11", "chip-20", "chip-27"), "those that there are maps of"
    of.study = published("water")
    assert Maps.shown.fget(of) == names[:6]


def test_a_map_of_several_tiles_is_put_together_in_their_order(quick):
    """At 64 pixels a tile, a chip has four."""
    member = Member(quick, "corrected", "pinet", 0, 0)
    shelf = study.choose_shelf(quick)
    whole = maps.computed(member, shelf, "test-001")
    data = fits.stored(quick, "corrected", "test")
    assert whole.shape == (128, 128) and len(data) == 3
    assert label_of(0) == "PiNet, areas alone" and label_of(10) == "PiNet, 10 % of the masks"


def label_of(share):
    return maps.label(Member(published("quick"), "corrected", "pinet", share, 0))


def test_figures_are_drawn_and_say_what_they_show(quick):
    side = study.Measured(quick, study.collect(quick))
    shown = Maps(quick)
    image, mask = shown.scene(shown.chips[0])
    classes = np.array([[-1, 0, 1]])
    painted = own_figures.paint(classes)
    assert (own_figures.shade(np.array([[0.7, 0.0, 1.0]]), classes) == painted).all()
    half = own_figures.shade(np.full((1, 3), 0.5), classes)[0, 2]
    np.testing.assert_allclose(half, painted[0, 1:].mean(0))
    comparison = own_figures.comparison(shown, shown.chips[:2], list(shown.models))
    share = (mask == 1).sum() / (mask >= 0).sum()
    assert f"{share:.1%}" in [ax.get_xlabel() for ax in comparison.axes]
    budget = own_figures.label_budget(side)
    dots = [line for line in budget.axes[0].lines if line.get_marker() == "o"]
    assert sorted(float(y) for line in dots for y in line.get_ydata()) == sorted(side.table.iou_water)
    index = side.baselines["test"]["iou_water"]
    assert any(list(line.get_ydata()) == [index, index] for line in budget.axes[0].lines)
    drawn = [own_figures.chip(image, mask), own_figures.areas(side), comparison, budget]
    for figure in [*drawn, own_figures.training_curves(side)]:
        assert isinstance(figure, figures.Picture) and png(figure)


@pytest.mark.slow
@with_browser
def test_keys_and_clicks_change_the_pictures(tmp_path, browser):
    _, changed = made(tmp_path / "shelf")
    with served(tmp_path, CELL.format(changes=changed)) as address:
        browser.get(address)
        until(lambda: find(browser, "img.sightline-swipe") and picture(browser, "swipe"), "it stands")
        changes(browser, lambda: click(browser, "the next chip"), "image", "map", "swipe")
        from selenium.webdriver.common.keys import Keys

        sliders = browser.find_elements("css selector", ".sightline [role=slider]")
        changes(browser, lambda: sliders[1].send_keys(Keys.END), "swipe")
        changes(browser, lambda: sliders[0].send_keys(Keys.HOME), "map")
        assert "Σ of the map" in browser.find_element("css selector", ".sightline table").text
        assert not find(browser, ".sightline [role=alert]")


