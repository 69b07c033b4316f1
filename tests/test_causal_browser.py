"""The explorer of causal graphs in a real browser: keys and clicks change it."""

import pytest
from browsing import ROOT, browser, changes, click, find, picture, served, until, with_browser

__all__ = ["browser"]  # a fixture

CELL = """
import sys

sys.path.insert(0, {tests!r})
from causal_shelf import shelf
from helpers.causal_graphs.explore import Explorer

explorer = Explorer(*shelf())
explorer
"""

pytestmark = [pytest.mark.slow, with_browser]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with an explorer of networks that were never trained."""
    with served(tmp_path_factory.mktemp("voila"), CELL.format(tests=str(ROOT / "tests"))) as address:
        yield address


def graphs(browser):
    """The drawings that are seen, as text."""
    script = "return [...document.querySelectorAll('.sightline-svg')].filter(s => s.offsetParent || s.getClientRects()"
    return browser.execute_script(script + ".length).map(s => s.outerHTML).filter(t => t.includes('<path'))")


def redraws(browser, action):
    """Do ``action`` and wait until the graph has changed."""
    before = graphs(browser)
    action()
    until(lambda: graphs(browser) != before, "the graph changes", 30)


def test_keys_and_clicks_change_the_graph_and_the_node(page, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    def dropdown(name):
        return Select(browser.find_element("css selector", f".sightline-{name} select"))

    browser.get(page)
    until(lambda: graphs(browser) and find(browser, ".sightline-delta [role=slider]"), "it stands")
    until(lambda: picture(browser, "map-left"), "the pictures are there")
    assert browser.find_element("css selector", ".jp-OutputArea img").get_attribute("src").startswith("data:image/png")

    slider = browser.find_element("css selector", ".sightline-delta [role=slider]")
    redraws(browser, lambda: slider.send_keys(Keys.END))
    redraws(browser, lambda: dropdown("target").select_by_visible_text("class 1"))
    redraws(browser, lambda: dropdown("layer").select_by_index(1))
    changes(browser, lambda: click(browser, "the next weaker node"), "map-left")
    image = browser.find_element("css selector", ".sightline-image [role=slider]")
    changes(browser, lambda: image.send_keys(Keys.END), "image-left", "map-left")
    redraws(browser, lambda: dropdown("beside").select_by_index(3))
    until(lambda: len(graphs(browser)) == 2 and picture(browser, "map-right"), "two graphs stand side by side")
    until(lambda: "Jaccard" in browser.find_element("css selector", ".sightline").text, "they are compared")

    assert not find(browser, ".sightline [role=alert]")
    browser.save_screenshot(str(tmp_path / "explorer.png"))
    inside, width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width == 1280, "nothing hangs over the page's edge"
