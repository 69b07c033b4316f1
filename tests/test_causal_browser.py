"""The explorer of causal graphs in a real browser, as in `test_browser`: Voila serves it, keys and clicks change it."""

import os
import signal
import socket
import subprocess
import sys

import nbformat
import pytest
from test_browser import BROWSER, DRIVER, ROOT, answers, browser, changes, click, find, picture, until

__all__ = ["browser"]  # a fixture

CELL = """
import sys

sys.path.insert(0, {tests!r})
from causal_shelf import shelf
from helpers.causal_graphs.explore import Explorer

explorer = Explorer(*shelf())
explorer
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its chromedriver is installed here"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page with an explorer of networks that were never trained."""
    folder = tmp_path_factory.mktemp("voila")
    cell = nbformat.v4.new_code_cell(CELL.format(tests=str(ROOT / "tests")))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "explorer.ipynb", "--no-browser", f"--port={port}",
               "--Voila.ip=127.0.0.1"]  # fmt: skip
    paths = {"PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
             "IPYTHONDIR": str(folder / "ipython")}  # fmt: skip
    with (folder / "log").open("w") as log:
        options = {"cwd": folder, "env": os.environ | paths, "stdout": log, "stderr": log}
        server = subprocess.Popen(command, **options, start_new_session=True)
    try:
        until(lambda: answers(port, server, folder / "log"), "Voila listens")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


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
    assert "Jaccard" in browser.find_element("css selector", ".sightline").text

    assert not find(browser, ".sightline [role=alert]")
    browser.save_screenshot(str(tmp_path / "explorer.png"))
    inside, width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= width == 1280, "nothing hangs over the page's edge"
