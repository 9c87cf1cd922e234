"""The page in a real browser: choose a picture, see the right neighbour first."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import SOON

from cgd_deploy import read_index
from cgd_deploy.serving.server.settings import Keys

webdriver = pytest.importorskip("selenium.webdriver")
uvicorn = pytest.importorskip("uvicorn")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(serving: Any, index_file: Any) -> Iterator[Any]:
    """Serve the gallery on a port; returns a function that takes settings and gives the page's address."""
    servers = []

    def start(**settings: Any) -> str:
        app = serving(read_index(index_file), **settings).app
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        end = time.monotonic() + SOON
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(SOON)


def wait(browser: Any, holds: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SOON).until(holds)


def captions(browser: Any) -> list[list[str]]:
    """Similarity and path of each neighbour, once every picture is there."""
    figures = browser.find_elements("css selector", "figure")
    parts = [(one.find_element("tag name", "b"), one.find_element("tag name", "span")) for one in figures]
    return [[similarity.text, path.get_attribute("title")] for similarity, path in parts]


def choose(browser: Any, path: Any) -> list[list[str]]:
    browser.find_element("id", "file").send_keys(str(path))
    wait(browser, lambda _: captions(browser))
    loaded = "return [...document.querySelectorAll('.frame')].every(one => one.querySelector('img')?.naturalWidth > 0)"
    wait(browser, lambda _: browser.execute_script(loaded))
    return captions(browser)


def test_the_right_neighbour_comes_first(browser, opened, photos):
    browser.get(opened())
    found = choose(browser, photos / "3.jpg")
    assert len(found) == 8
    assert found[0][0] == "1.000"
    assert found[0][1].endswith("3.jpg")
    stages = browser.execute_script("return [...document.querySelectorAll('dt')].map(one => one.textContent)")
    assert stages == ["decode", "queue", "compute", "search", "network and page", "in all"]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_dropped_picture_is_searched(browser, opened, photos):
    """Chromium cannot be told to drag a file, so the page gets the event that a drop makes."""
    browser.get(opened())
    script = """
        const [url, done] = arguments;
        fetch(url).then(answer => answer.blob()).then(blob => {
            const data = new DataTransfer();
            data.items.add(new File([blob], "dropped.jpg", {type: "image/jpeg"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
            done();
        });
    """
    import base64

    url = "data:image/jpeg;base64," + base64.b64encode((photos / "5.jpg").read_bytes()).decode()
    browser.execute_async_script(script, url)
    wait(browser, lambda _: captions(browser))
    assert captions(browser)[0][1].endswith("5.jpg")


def test_the_page_works_with_the_keyboard(browser, opened):
    from selenium.webdriver.common.keys import Keys as Pressed

    browser.get(opened())
    browser.find_element("tag name", "body").send_keys(Pressed.TAB, Pressed.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "file"


def test_a_bad_picture_is_told(browser, opened, tmp_path):
    browser.get(opened())
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    browser.find_element("id", "file").send_keys(str(bad))
    error = browser.find_element("id", "error")
    wait(browser, lambda _: error.is_displayed())
    assert "cannot be decoded" in error.text


def test_a_server_with_keys_asks_for_one(browser, opened, photos):
    from selenium.webdriver.common.keys import Keys as Pressed

    browser.get(opened(keys=Keys(users=(b"secret",), admins=())))
    key = browser.find_element("id", "key")
    wait(browser, lambda _: key.is_displayed())
    key.send_keys("secret", Pressed.TAB)
    wait(browser, lambda _: "8 pictures" in browser.find_element("id", "facts").text)
    assert choose(browser, photos / "2.jpg")[0][1].endswith("2.jpg")


def test_it_fits_a_phone(browser, opened, photos):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(opened())
        choose(browser, photos / "0.jpg")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
