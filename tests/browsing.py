"""Explorers in a real browser: Chromium opens the page that Voila serves, for keys and clicks to change what it shows.

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
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000""".split()
PATIENCE = 90  # seconds until the page stands, on a busy machine

with_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with its chromedriver is installed here"
)

# The bytes of a picture, as the page has them: a widget's picture is a blob, whose address says nothing.
PICTURE = """
const done = arguments[1], image = document.querySelector("img.sightline-" + arguments[0]);
fetch(image.src).then(r => r.arrayBuffer()).then(b => done(Array.from(new Uint8Array(b)).join())).catch(() => done(""));
"""


@contextmanager
def served(folder, source):
    """The address of a page that shows what the cell ``source`` returns; ``folder`` takes what the server writes."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    paths = {"PYTHONPATH": ROOT, "JUPYTER_RUNTIME_DIR": folder / "runtime", "IPYTHONDIR": folder / "ipython"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "voila", "explorer.ipynb", *options],
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


@contextmanager
def chromium(profile, *, reached="", logged=False):
    """A driver of a browser that resolves no name and may only speak to the host ``reached``. ``logged``: it keeps what
    the console says and what is asked of the network."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    rules = "MAP * ~NOTFOUND" + (f", EXCLUDE {reached}" if reached else "")
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--host-resolver-rules={rules}"):
        options.add_argument(flag)
    if logged:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile", reached="127.0.0.1") as driver:
        yield driver


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


def choose(browser, name, text):
    """Choose ``text`` from the list of this name, once it offers it; the page may put another list in its place."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.select import Select

    def chosen():
        try:
            Select(browser.find_element("css selector", f".sightline-{name} select")).select_by_visible_text(text)
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    until(chosen, f"{text} can be chosen", 20)


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
