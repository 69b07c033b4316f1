"""The explorer of ToyShapes in a real browser: keys and clicks change what it shows."""

import pytest
from browsing import browser, changes, click, find, picture, pressed, served, until, with_browser
from shelves import untrained

__all__ = ["browser"]  # a fixture

CELL = """
from pathlib import Path
from helpers.pinets.explore import Explorer
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf

explorer = Explorer(ToyShapesStudy().override({settings}), Shelf(Path({folder!r})))
explorer
"""
SETTINGS = {"groups": ["cnn", "pinet"], "fits": 1, "test_images": 20, "data.n_images": 20}

pytestmark = [pytest.mark.slow, with_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with an explorer of networks that were never trained."""
    folder = tmp_path_factory.mktemp("voila")
    untrained(folder / "shelf", SETTINGS)
    with served(folder, CELL.format(settings=SETTINGS, folder=str(folder / "shelf"))) as address:
        yield address


def text(browser):
    """What the table says."""
    return browser.execute_script("return document.querySelector('.sightline table').innerText")


def test_keys_and_clicks_change_the_pictures(page, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    browser.get(page)
    until(
        lambda: find(browser, "img.sightline-map") and find(browser, ".sightline-threshold [role=slider]"), "it stands"
    )
    until(lambda: picture(browser, "contributions"), "the pictures are there")
    assert browser.find_element("css selector", ".jp-OutputArea img").get_attribute("src").startswith("data:image/png")

    slider = browser.find_element("css selector", ".sightline-threshold [role=slider]")
    changes(browser, lambda: slider.send_keys(Keys.END), "map", "explained")
    changes(browser, lambda: slider.send_keys(Keys.HOME), "explained")
    until(lambda: "TAR 0.00" in text(browser), "the table says that all is kept at 1e-4")

    group = Select(browser.find_element("css selector", ".sightline-group select"))
    changes(browser, lambda: group.select_by_visible_text("Grad-CAM"), "map", "contributions")
    until(lambda: "made after the prediction" in text(browser), "the table speaks of Grad-CAM")
    changes(browser, lambda: group.select_by_visible_text("PiNet"), "map", "contributions")

    click(browser, "cell 5")
    until(lambda: pressed(browser, "square"), "the controls show what the cell holds")
    changes(browser, lambda: click(browser, "triangle"), "image", "mask", "map")
    changes(browser, lambda: click(browser, "void"), "image", "mask", "map")
    until(lambda: not find(browser, 'button[title="cell 5"]')[0].text.strip(), "the cell on the grid is empty")
    changes(browser, lambda: click(browser, "the next image"), "image", "map")

    assert not find(browser, ".sightline [role=alert]")
    browser.save_screenshot(str(tmp_path / "explorer.png"))
    inside, width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width == 1280, "nothing hangs over the page's edge"
