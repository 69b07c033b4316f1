import io

import ipywidgets
import numpy as np
import pytest
from IPython.display import Image as Picture
from PIL import Image

from helpers import widgets
from helpers.config import ConfigError, Settings
from helpers.downloads import DownloadError


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", widgets.COLOURS)
def test_a_colour_map_begins_and_ends_with_its_anchors_and_clips_there(name):
    picture = widgets.colour(np.array([[-5.0, 2.0, 4.0, 9.0]]), name, low=2, high=4)
    ends = [bytes.fromhex(widgets.ANCHORS[name][end][1:]) for end in (0, -1)]
    assert [bytes(pixel) for pixel in picture[0]] == [ends[0], ends[0], ends[1], ends[1]]


def test_the_signed_map_is_white_at_its_middle_and_heat_grows_lighter():
    assert widgets.colour(np.zeros((1, 1)), "signed", -1, 1).min() >= 250
    lightness = widgets.COLOURS["heat"].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -0.5).all()


def test_what_cannot_be_coloured_is_refused():
    with pytest.raises(ValueError, match="unknown colour map 'jet'; there are: grey"):
        widgets.colour(np.zeros((2, 2)), "jet")
    with pytest.raises(ValueError, match="NaN"):
        widgets.colour(np.array([[np.nan]]))


def test_equal_ends_do_not_divide_by_zero():
    assert (widgets.colour(np.zeros((2, 2)), low=0, high=0) == 0).all()


def test_a_png_holds_the_very_pixels_enlarged():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    shown = opened(widgets.png(widgets.enlarge(picture, 3)))
    assert shown.shape == (15, 21, 3)
    for dy in range(3):
        for dx in range(3):
            assert (shown[dy::3, dx::3] == picture).all()


def test_an_outline_runs_inside_the_region_along_its_edge_only():
    region = np.zeros((6, 6), bool)
    region[0:4, 2:5] = True
    picture = np.zeros((24, 24, 3), np.uint8)
    drawn = widgets.outlined(picture, region, "#ffffff", width=1).any(2)
    expected = np.zeros((24, 24), bool)
    expected[0:16, 8:20] = True
    expected[1:15, 9:19] = False  # the picture's border counts as outside
    assert (drawn == expected).all()
    assert not picture.any(), "the picture given is left as it is"


def test_a_sheet_lays_its_pictures_out_in_rows():
    pictures = [(f"title {level}\nsecond line", np.full((10, 10, 3), level, np.uint8)) for level in (60, 120, 180)]
    page = opened(widgets.sheet(pictures, columns=2, caption="what it is", side=40))
    assert page.shape[1] >= 2 * 40 + 3 * 12
    for level in (60, 120, 180):
        assert (page == level).all(2).sum() >= 0.9 * 40 * 40


def test_a_table_has_a_row_a_name():
    text = widgets.table(["", "here"], [("name", "<b>1</b>")])
    assert "<th>here</th>" in text and "<tr><th>name</th><td><b>1</b></td></tr>" in text


# ------------------------------------------------------------------------------------------------- explorers


class Count(Settings):
    number: int = 3
    word: str = "none"


class Counting(widgets.Explorer[Count]):
    """The least explorer: a slider, a dropdown whose options hang on it, a line of text."""

    def __init__(self):
        super().__init__(Count())
        self.rendered = 0
        self.slider = self.bind(ipywidgets.IntSlider(max=9), lambda number: self.select(number=number))
        self.word = self.bind(ipywidgets.Dropdown(), lambda word: self.select(word=word))
        self.more = self.bind_click(ipywidgets.Button(), lambda: self.select(number=self.state.number + 1))
        self.text = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.slider, self.word, self.text, self.message])
        self.refresh()

    def changed(self, changes):
        if changes.get("number") == 7:
            raise ConfigError("not <seven>")
        if changes.get("number") == 9:
            raise DownloadError("nine is out of reach")
        return super().changed(changes)

    def render(self):
        self.rendered += 1
        if self.state.number == 8:
            raise ValueError("eight cannot be shown")
        self.slider.value = self.state.number
        widgets.set_options(self.word, ["none", *map(str, range(self.state.number))], self.state.word)
        self.text.value = f"{self.state.number} {self.state.word}"

    def static(self):
        return widgets.png(np.zeros((4, 6, 3), np.uint8))


def test_code_and_controls_drive_the_same_state():
    explorer = Counting()
    explorer.select(number=5)
    assert explorer.slider.value == 5 and explorer.text.value == "5 none"
    explorer.slider.value = 4
    assert explorer.state == Count(number=4) and explorer.text.value == "4 none"
    explorer.more.click()
    assert explorer.state.number == 5 and explorer.slider.value == 5


def test_one_change_renders_once():
    explorer = Counting()
    before = explorer.rendered
    explorer.slider.value = 5  # sets the dropdown's options on its way, which must not come back as a choice
    assert explorer.rendered == before + 1


def test_a_name_that_is_not_there_is_refused_with_near_misses():
    explorer = Counting()
    with pytest.raises(ConfigError, match="did you mean number"):
        explorer.select(numbr=1)
    assert explorer.state == Count()


def test_an_error_leaves_state_and_controls_as_they_were_and_tells_the_person():
    explorer = Counting()
    for number, message in ((7, "not &lt;seven&gt;"), (8, "eight cannot be shown"), (9, "nine is out of reach")):
        explorer.slider.value = number
        assert message in explorer.message.value
        assert explorer.state == Count() and explorer.slider.value == 3
    explorer.slider.value = 4
    assert explorer.message.value == "", "the next change clears it"


def test_an_error_from_code_is_raised_and_nothing_is_changed():
    explorer = Counting()
    with pytest.raises(ValueError, match="eight"):
        explorer.select(number=8)
    assert explorer.state == Count()


def test_the_static_picture_is_displayed_first_as_an_output_of_its_own(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer = Counting()
    explorer._ipython_display_()
    picture, live = shown
    assert isinstance(picture, Picture) and picture.data.startswith(b"\x89PNG") and picture.width == 6
    assert live is explorer.widget


def test_a_panel_shows_text_as_text():
    panel = widgets.Panel("map")
    panel.show("a < b", np.zeros((2, 2, 3), np.uint8), "c & d")
    assert panel.title.value == "<b>a &lt; b</b>" and "c &amp; d" in panel.note.value
    assert opened(panel.image.value).shape == (2, 2, 3)
