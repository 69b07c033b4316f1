"""The explorer of self-explaining nets in a real browser: keys and clicks change what it shows."""

import pytest
from browsing import browser, changes, choose, click, find, picture, served, until, with_browser

__all__ = ["browser"]  # a fixture

CELL = """
import torch
from helpers.self_explaining import views
from helpers.self_explaining.explore import Explorer
from helpers.self_explaining.models import Net1
from helpers.self_explaining.sets import source_images

torch.manual_seed(0)
views.N_CRITIC = 3
nets = {data: {name: Net1(widths=(4, 8), hidden=16) for name in ("CNN", "LSX")} for data in ("clean digits", "decoys")}
explorer = Explorer(nets, source_images("digits", "test", "")[:140])
explorer
"""

pytestmark = [pytest.mark.slow, with_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with an explorer of nets that were never trained."""
    with served(tmp_path_factory.mktemp("voila"), CELL) as address:
        yield address


def test_keys_and_clicks_change_the_pictures(page, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    def text():
        return browser.find_element("css selector", ".sightline").text

    browser.get(page)
    until(lambda: find(browser, "img.sightline-left-1") and find(browser, ".sightline-percent [role=slider]"), "it is")
    until(lambda: picture(browser, "left-1"), "the pictures are there")
    assert browser.find_element("css selector", ".jp-OutputArea img").get_attribute("src").startswith("data:image/png")

    slider = browser.find_element("css selector", ".sightline-percent [role=slider]")
    changes(browser, lambda: slider.send_keys(Keys.END), "left-0", "left-1")
    until(lambda: "Highest 100 % removed" in text(), "the title says how much goes")
    changes(browser, lambda: click(browser, "these pixels and nothing else"), "left-0", "left-1")
    changes(browser, lambda: choose(browser, "digit", "3"), "image-0", "map-0", "image-1", "map-1")
    changes(browser, lambda: click(browser, "the next image"), "image-0", "map-0")
    changes(browser, lambda: choose(browser, "decoy", "2 (grey 205)"), "image-0", "map-0")
    until(lambda: "on the decoy" in text(), "the share of the map is said")
    changes(browser, lambda: choose(browser, "corner", "lower right"), "image-0", "image-1")
    changes(browser, lambda: choose(browser, "norm", "batch maximum"), "map-0")
    changes(browser, lambda: choose(browser, "trained", "decoys"), "map-0", "map-1")

    thumbnail = find(browser, "button.sightline-thumbnail")[0]
    assert thumbnail.value_of_css_property("background-image").startswith('url("data:image/png')
    changes(browser, thumbnail.click, "image-0", "image-1")
    click(browser, "a fresh critic learns from the maps of each net, in seconds")
    until(lambda: "chance, ln 10 = 2.303" in text(), "the curves are drawn", 30)

    number = browser.find_element("css selector", ".sightline-image input")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("999", Keys.ENTER)
    until(lambda: find(browser, ".sightline [role=alert]"), "what cannot be is said")
    changes(browser, lambda: click(browser, "the next image"), "image-0")
    until(lambda: not find(browser, ".sightline [role=alert]"), "the message goes")

    browser.save_screenshot(str(tmp_path / "explorer.png"))
    inside, width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width == 1280, "nothing hangs over the page's edge"
