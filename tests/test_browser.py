"""The explorer in a real browser: Chromium opens the page that Voila serves, and keys and clicks change what it shows.

Voila rather than JupyterLab: its page is the notebook's output and nothing else, its kernel starts with the page, and
there is no editor to find a way through. The browser resolves no name, so whatever works here works without a network.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from shelves import untrained

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000""".split()
PATIENCE = 90  # seconds until the page stands, on a busy machine

CELL = """
from pathlib import Path
from helpers.pinets.explore import Explorer
from helpers.pinets.presets import ToyShapesStudy
from helpers.pinets.study import Shelf

explorer = Explorer(ToyShapesStudy().override({settings}), Shelf(Path({folder!r})))
explorer
"""
SETTINGS = {"groups": ["cnn", "pinet"], "fits": 1, "test_images": 12, "data.n_images": 20}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its chromedriver is installed here"),
]

# The bytes of a picture, as the page has them: a widget's picture is a blob, whose address says nothing.
PICTURE = """
const done = arguments[1], image = document.querySelector("img.sightline-" + arguments[0]);
fetch(image.src).then(r => r.arrayBuffer()).then(b => done(Array.from(new Uint8Array(b)).join())).catch(() => done(""));
"""


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """The address of a page with an explorer of networks that were never trained."""
    folder = tmp_path_factory.mktemp("voila")
    untrained(folder / "shelf", SETTINGS)
    cell = nbformat.v4.new_code_cell(CELL.format(settings=SETTINGS, folder=str(folder / "shelf")))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "voila",
        "explorer.ipynb",
        "--no-browser",
        f"--port={port}",
        "--Voila.ip=127.0.0.1",
    ]
    paths = {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {name: str(path) for name, path in paths.items()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
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


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def answers(port, server, log):
    assert server.poll() is None, f"Voila ended:\n{log.read_text()[-2000:]}"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition, what, seconds=PATIENCE):
    """What ``condition()`` returns once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s until {what}"
        time.sleep(0.1)
    return value


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def pressed(browser, tooltip):
    """Is the toggle button with this tooltip the chosen one?"""
    return bool(find(browser, f'button.mod-active[title="{tooltip}"]'))


def click(browser, tooltip):
    """Click the button with this tooltip; the page may put another in its place while a hand is on its way."""
    from selenium.common.exceptions import StaleElementReferenceException

    def clicked():
        (button,) = find(browser, f'button[title="{tooltip}"]')
        try:
            button.click()
        except StaleElementReferenceException:
            return False
        return True

    until(clicked, f"{tooltip} can be clicked", 20)


def text(browser):
    """What the table says."""
    return browser.execute_script("return document.querySelector('.sightline table').innerText")


def picture(browser, name):
    return browser.execute_async_script(PICTURE, name)


def changes(browser, action, *names):
    """Do ``action`` and wait until each of the named pictures has changed."""
    before = {name: picture(browser, name) for name in names}
    action()

    def changed():
        now = {name: picture(browser, name) for name in names}
        return all(now[name] and now[name] != before[name] for name in names)

    until(changed, f"{names} change", 20)


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
