"""The explorers of prototypes in a real browser: keys and clicks change what they show."""

import pytest
from browsing import browser, changes, choose, click, find, picture, served, until, with_browser

__all__ = ["browser"]  # a fixture

CELL = """
import torch
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes import models
from helpers.prototypes.evaluation import explore
from helpers.prototypes.explore import Explorer
from helpers.prototypes.presets import Model

torch.set_num_threads(1)
settings, nets = ToyBirdsSettings(size=64, classes=6), {}
for stage in ("stage2", "stage3"):
    net = models.build(Model(feature_layer=stage, num_prototypes=30, prototype_dim=8), 6, settings.size, seed=0)
    net.source_image[:], net.source_cell[:] = torch.arange(30), 2
    nets[f"birdnet@{stage}"] = net
display(Explorer(nets, settings), explore.Explorer(nets, settings))
"""

pytestmark = [pytest.mark.slow, with_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with both explorers, of nets that were never trained."""
    with served(tmp_path_factory.mktemp("voila"), CELL) as address:
        yield address


def test_keys_and_clicks_change_the_pictures(page, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    def text():
        return browser.find_element("css selector", ".sightline").text

    browser.get(page)
    until(lambda: find(browser, "img.sightline-map-3") and picture(browser, "map-3"), "the pictures are there")
    assert browser.find_element("css selector", ".jp-OutputArea img").get_attribute("src").startswith("data:image/png")
    assert "Remove or change a part" in text() and not find(browser, ".sightline-reactions table")

    choose(browser, "part", "body")
    changes(browser, lambda: choose(browser, "what", "colour: plum"), "bird", "map-0")
    until(lambda: len(find(browser, ".sightline-reactions tbody tr")) == 5, "the prototypes that react are listed")
    changes(browser, lambda: click(browser, "as if a cell were about its block of the image"), "map-0", "map-3")
    changes(browser, lambda: choose(browser, "net", "birdnet@stage3"), "this-0", "that-0", "map-0", "before")
    changes(browser, lambda: click(browser, "the next bird"), "bird", "before", "this-0")
    changes(browser, lambda: choose(browser, "bird", "fern"), "bird", "before")
    changes(browser, lambda: choose(browser, "explained", "aster"), "that-0", "map-0")

    noise = browser.find_element("css selector", ".sightline-noise select")
    Select(noise).select_by_index(2)
    until(lambda: picture(browser, "noise-rf") and picture(browser, "noise-upsample"), "the noise is there")
    until(lambda: "unchanged" in text() or "whole image" in text(), "it is said what noise outside the box does")
    changes(browser, lambda: click(browser, "draw the noise anew"), "noise-upsample")

    number = browser.find_element("css selector", ".sightline-image input")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("5000", Keys.ENTER)
    until(lambda: find(browser, ".sightline [role=alert]"), "what cannot be is said")
    changes(browser, lambda: click(browser, "the next bird"), "bird")
    until(lambda: not find(browser, ".sightline [role=alert]"), "the message goes")

    browser.save_screenshot(str(tmp_path / "explorer.png"))
    inside, width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width == 1280, "nothing hangs over the page's edge"


def test_a_slider_gives_the_bird_its_pixels_back(page, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    browser.get(page)
    until(lambda: find(browser, "img.sightline-given") and picture(browser, "given"), "the pictures are there")
    slider = browser.find_element("css selector", ".sightline-percent [role=slider]")
    changes(browser, lambda: slider.send_keys(Keys.ARROW_RIGHT), "given")
    changes(browser, lambda: click(browser, "the map of similarities, enlarged"), "given", "heat")
    changes(browser, lambda: click(browser, "relevance handed back from the best cell"), "given", "heat")
    place = Select(browser.find_element("css selector", ".sightline-place select"))
    changes(browser, lambda: place.select_by_index(1), "given", "heat", "source")
    assert find(browser, ".sightline-curve svg"), "the curve stands beside them"
    browser.execute_script("arguments[0].scrollIntoView()", slider)
    browser.save_screenshot(str(tmp_path / "explorer.png"))
