"""The page in Chromium, as people use it: by pointer, by keyboard, on a desk and on a phone.

Run by `make test-browser`. With SCREENSHOTS=folder it uses the embedded model, and leaves pictures
of the page there.
"""

import base64
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip import UnCLIPPipeline
from unclip_sample.png import encode_png, read_png

webdriver = pytest.importorskip("selenium.webdriver", reason="install the extra browser")
pytestmark = pytest.mark.browser

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SCREENSHOTS = os.environ.get("SCREENSHOTS")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
PATIENCE_S = 900 if SCREENSHOTS else 60
DESK, PHONE = (1280, 900), (390, 844)


class Page:
    """A window with the page in it."""

    def __init__(self, driver, url: str, folder: Path):
        self.driver, self.folder = driver, folder
        driver.get(url)
        self.until(lambda: self.all("#sizes input"))

    def until(self, condition):
        """Wait for a condition and return what it gave."""
        return WebDriverWait(self.driver, PATIENCE_S, 0.05).until(lambda _: condition())

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def do(self, name: str) -> None:
        """Press one of the buttons for what is chosen."""
        self.until(lambda: self.find(f'[data-do="{name}"]').is_displayed())
        self.find(f'[data-do="{name}"]').click()

    def drawn(self, count: int = 1) -> None:
        """Wait until a request is done and all its pictures are there."""
        self.until(lambda: self.find("#told").text.startswith(("Drawn", f"{count} pictures")))
        assert len(self.all("#sheet .tile:not(.drawing)")) == count

    def sides(self) -> list[int]:
        """Pixels a side of the pictures on the stage."""
        script = "return [...document.querySelectorAll('#sheet img')].map((i) => i.naturalWidth)"
        return self.driver.execute_script(script)

    def files(self, count: int = 1) -> list[bytes]:
        """The newest files that the page keeps, the last drawn first."""
        script = """
            const [count, done] = arguments, request = indexedDB.open('unclip', 1);
            request.onsuccess = () => {
              const all = request.result.transaction('pictures').objectStore('pictures').getAll();
              all.onsuccess = async () => {
                const newest = all.result.sort((a, b) => b.id - a.id).slice(0, count);
                done(await Promise.all(newest.map((each) => new Promise((resolve) => {
                  const reader = new FileReader();
                  reader.onload = () => resolve(reader.result.split(',')[1]);
                  reader.readAsDataURL(each.blob);
                }))));
              };
            };"""
        found = self.driver.execute_async_script(script, count)
        return [base64.b64decode(text) for text in found]

    def drop(self, content: bytes) -> None:
        """Let a file fall onto the page."""
        script = """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], 'picture.png', { type: 'image/png' }));
            window.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true }));"""
        self.driver.execute_script(script, base64.b64encode(content).decode())

    def choose(self, name: str, value: object) -> None:
        """Press a segment."""
        self.driver.execute_script(
            f"document.querySelector('input[name={name}][value=\"{value}\"]').click()"
        )

    def set(self, field: str, value: object) -> None:
        """Give a field a value as a user's hand would."""
        script = """const field = document.getElementById(arguments[0]);
            field.value = arguments[1]; field.dispatchEvent(new Event('input', {bubbles: true}));"""
        self.driver.execute_script(script, field, str(value))

    def keep(self, name: str) -> None:
        """A picture of the window, where they are wanted."""
        if SCREENSHOTS:
            time.sleep(0.5)  # for what fades
            self.driver.save_screenshot(str(self.folder / f"{name}.png"))

    def check_quiet(self) -> None:
        """Refuse errors on the console, and any address but the server's own."""
        noise = [line for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]
        assert not noise, noise
        script = "return performance.getEntriesByType('resource').map((r) => r.name)"
        origin = self.driver.execute_script("return location.origin")
        names = self.driver.execute_script(script)
        assert all(name.startswith((origin, "blob:")) for name in names), names


@pytest.fixture(scope="module")
def served(serve, make_pipe):
    """A server whose pictures come quickly, or look like something."""
    tiny = {"default_guidance": {"decoder": 2.0, "image": 1.0}}
    pipe = UnCLIPPipeline.from_pretrained() if SCREENSHOTS else make_pipe(**tiny)
    pipe.set_progress_bar_config(disable=True)
    styles = ("noto style", "twemoji style", "fluent style", "flat style")
    with serve(pipe, styles=styles, model="emoji" if SCREENSHOTS else "tiny") as running:
        yield running


@pytest.fixture
def window(served, tmp_path):
    """Open the page in a window of a size and a colour scheme."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or shutil.which("chromedriver") is None:
        pytest.fail("install Chromium: apt-get install chromium chromium-driver")
    drivers = []

    def open_page(size: tuple[int, int] = DESK, dark: bool = False) -> Page:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / str(len(drivers))}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = webdriver.Chrome(options, service)
        drivers.append(driver)
        driver.set_script_timeout(60)
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1 if width > 600 else 2}
        metrics["mobile"] = width < 600
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return Page(driver, served.url, Path(SCREENSHOTS or tmp_path))

    yield open_page
    for driver in drivers:
        driver.quit()


def pixels(content: bytes, path: Path) -> np.ndarray:
    """The pixels of a file."""
    path.write_bytes(content)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_from_words_to_a_painted_picture(window, tmp_path):
    page = window()
    page.keep("page-empty")
    page.find("#prompt").send_keys("a red apple", Keys.ENTER)
    seen = set()  # the previews, as they come

    def at_last():
        seen.update(page.sides())
        return page.find("#told").text.startswith("Drawn")

    page.until(at_last)
    assert page.sides() == [1024]
    assert seen & {64, 256}, seen
    page.keep("page-light")
    (drawn,) = page.files()
    (tmp_path / "apple.png").write_bytes(drawn)
    record = read_png(tmp_path / "apple.png")
    assert record["prompt"] == "a red apple" and record["size"] == 1024

    page.do("paint")
    page.until(lambda: page.find("#board-mask").is_displayed())
    assert not page.find("#paint").is_enabled()
    box = page.find("#board-mask").rect
    hand = webdriver.ActionChains(page.driver)
    hand.move_to_element_with_offset(
        page.find("#board-mask"), -box["width"] // 4, -box["height"] // 4
    )
    hand.click_and_hold().move_by_offset(box["width"] // 4, 20).release().perform()
    page.keep("page-paint")
    page.set("painting-prompt", "a green apple")
    page.until(page.find("#paint").is_enabled)
    page.find("#paint").click()
    page.until(lambda: page.find("#told").text == "Painting a part anew")
    page.drawn()
    before, after = pixels(drawn, tmp_path / "a.png"), pixels(*page.files(), tmp_path / "b.png")
    changed = (before != after).any(axis=2)
    assert changed[:512].any() and not changed[700:].any() and 0.005 < changed.mean() < 0.3
    page.check_quiet()


def test_variations_and_the_way_between_two(window, tmp_path):
    page = window()
    page.choose("size", 256)
    page.find("#prompt").send_keys("a red apple", Keys.ENTER)
    page.drawn()
    page.choose("count", 4)
    page.do("vary")
    page.until(lambda: page.find("#told").text == "Drawing others like it")
    page.drawn(4)
    assert page.sides() == [256] * 4 and len(set(page.files(4))) == 4
    (tmp_path / "like.png").write_bytes(page.files()[0])
    assert read_png(tmp_path / "like.png")["guidance"] == {"decoder": 1.0}  # not the caption's
    page.keep("page-variations")
    wide = page.find("#stage").rect["width"]
    for tile in page.all("#sheet .tile")[:2]:
        tile.click()
    page.do("between")
    page.drawn(5)
    shown = [tile.is_displayed() for tile in page.all("#sheet .tile")]
    assert shown == [True, False, False, False, False]
    page.find("#way-at").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.all("#sheet .tile")[2].is_displayed()
    page.keep("page-between")
    page.find("#sheet .tile:not([hidden])").click()
    page.do("lead")
    page.find("#target").send_keys("a green apple", Keys.ENTER)
    page.until(lambda: page.find("#told").text == "Leading it by words")
    page.drawn(5)
    assert page.find("#way-to").text == "a green apple"
    assert len(page.all("#past .tile")) == 15
    assert page.find("#stage").rect["width"] == wide  # the history scrolls within it
    page.check_quiet()


def test_a_dropped_picture_brings_its_settings_back(window):
    page = window()
    record = {
        "prompt": "a rocket, noto style",
        "negative_prompt": "a cat",
        "seed": 41,
        "size": 64,
        "steps": {"prior": 3, "decoder": 7},
        "guidance": {"decoder": 2.5, "prior": 1.0},
    }
    page.drop(encode_png(Image.new("RGB", (64, 64), "red"), record))
    page.until(lambda: page.find("#prompt").get_property("value") == "a rocket")
    values = {name: page.find(f"#{name}").get_property("value") for name in ("style", "negative")}
    assert values == {"style": "noto style", "negative": "a cat"}
    values = [page.find(f"#{name}").get_property("value") for name in ("seed", "steps", "guidance")]
    assert values == ["41", "7", "2.5"]
    page.find("#prompt").send_keys(Keys.ENTER)
    page.drawn()
    assert page.sides() == [64]
    page.drop(encode_png(Image.new("RGB", (64, 64), "red"), None))
    page.until(lambda: "does not say" in page.find("#told").text)
    page.check_quiet()


def test_by_keyboard_alone_and_after_a_reload(window):
    page = window(dark=True)
    page.choose("size", 256)
    keys = webdriver.ActionChains(page.driver)
    keys.send_keys("a fish", Keys.ENTER).perform()  # the prompt has the focus from the beginning
    page.drawn()
    page.find("#sheet .tile").send_keys("p")
    page.until(lambda: page.find("#board-mask").is_displayed())
    page.find("#board-mask").send_keys(Keys.ARROW_UP, " ", Keys.ARROW_LEFT, " ")
    page.until(page.find("#paint").is_enabled)
    page.find("#paint").send_keys(Keys.ENTER)
    page.until(lambda: page.find("#told").text == "Painting a part anew")
    page.drawn()
    page.keep("page-dark")
    page.driver.refresh()
    page.until(lambda: len(page.all("#past .tile img")) == 2)
    page.check_quiet()


def test_stopping(window, served):
    page = window()
    page.set("steps", 100)
    page.find("#prompt").send_keys("a rocket", Keys.ENTER)
    page.until(lambda: page.find("#told").text == "Drawing")
    webdriver.ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.until(lambda: page.find("#told").text == "Stopped")
    served.settle()
    assert page.find("#empty").is_displayed() and page.find("#draw").is_enabled()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(window, dark):
    page = window(PHONE, dark=dark)
    page.choose("size", 256)
    page.find("#prompt").send_keys("a yellow star", Keys.ENTER)
    page.drawn()
    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= PHONE[0]
    for selector in ("#draw", "#prompt", '[data-do="vary"]', "#sheet .tile"):
        rect = page.find(selector).rect
        assert rect["x"] >= 0 and rect["x"] + rect["width"] <= PHONE[0] and rect["height"] >= 40
    page.driver.execute_script("scrollTo(0, 0)")
    page.keep("page-phone-dark" if dark else "page-phone")


def test_a_key_is_asked_for(window, serve, make_pipe):
    with serve(make_pipe(), api_key="open sesame") as running:
        page = window()
        page = Page(page.driver, running.url, page.folder)
        page.choose("size", 64)
        page.find("#prompt").send_keys("a cat", Keys.ENTER)
        page.until(lambda: page.find("#key").is_displayed())
        page.find("#key").send_keys("open sesame", Keys.ENTER)
        page.until(lambda: "kept" in page.find("#told").text)
        page.find("#draw").click()
        page.drawn()
        page.driver.quit()
