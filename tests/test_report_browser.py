"""The report in headless Chromium: it works, asks for nothing, and is usable by all (`make test-browser`)."""

import base64
import io
import json
import os
import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from reports import HOSTILE, records, verdict_of, verdicts

from resrepro.figures import Style, draw_figure
from resrepro.records.collection import collect
from resrepro.report import build_report

pytestmark = pytest.mark.browser

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"desktop": 1280, "phone": 375}
SCHEMES = ("light", "dark")
AXE = ROOT / "tests" / "axe" / "axe.min.js"
FIGURE = '[data-figure="figure6"]'


class Browser:
    """A Chromium with one page, and what it did."""

    def __init__(self, profile):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.binary_location = _installed("chromium")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(_installed("chromedriver")))

    def show(self, page, width=1280, scheme="light"):
        """Open a page in a window of this width, without anything from the page before."""
        self.driver.get("about:blank")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        self.media("", scheme)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(page.as_uri())

    def tell(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def media(self, media, scheme="light"):
        """Show the page as on a screen (""), or as in "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", media=media, features=features)

    def js(self, program, *arguments):
        return self.driver.execute_script(program, *arguments)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def seen(self, selector):
        """Those that take room on the page, and are not folded away."""
        program = "return arguments[0].filter((one) => one.checkVisibility() && one.getClientRects().length)"
        return list(self.js(program, self.all(selector)))

    def requests(self):
        """The addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        kinds = ("Network.requestWillBeSent", "Network.webSocketCreated")
        sent = [message["params"] for message in messages if message["method"] in kinds]
        return [one["request"]["url"] if "request" in one else one["url"] for one in sent]

    def area(self, page):
        """The chart of Figure 6 in sight, and the pointer."""
        from selenium.webdriver import ActionChains

        self.show(page)
        area = self.find(f"{FIGURE} .u-over")
        self.js("arguments[0].scrollIntoView({block: 'center'})", area)
        return area, ActionChains(self.driver)

    def drawn(self):
        """The pixels of the first panel of Figure 6, once they are drawn."""
        program = (
            "const [selector, done] = arguments, canvas = document.querySelector(selector);"
            "requestAnimationFrame(() => requestAnimationFrame(() => done(canvas.toDataURL())));"
        )
        return str(self.driver.execute_async_script(program, f"{FIGURE} canvas"))


def _installed(program):
    path = shutil.which(program)
    assert path, f"{program} is not installed: make test-browser installs it"
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "SE_AVOID_STATS", "true")
        browser = Browser(tmp_path_factory.mktemp("profile"))
        yield browser
        browser.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    found = records(folder / "runs", (HOSTILE,))
    hostile = verdict_of(27, "failed", text=HOSTILE)
    path.write_text(build_report(found, [*verdicts(26), hostile]), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_is_quiet_fits_and_passes_the_accessibility_check(browser, page, width, scheme):
    browser.show(page, width, scheme)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    if scheme == "dark":  # the check knows the contrast of what is unfolded only
        browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.js(AXE.read_text(encoding="utf-8"))
    result = browser.driver.execute_async_script("axe.run().then(arguments[0])")
    told = [(one["id"], one["nodes"][0]) for one in result["violations"]]
    assert told == []
    assert len(result["passes"]) > 20
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert browser.driver.get_log("browser") == []


def test_no_request_leaves_the_page_and_no_record_runs_as_a_script(browser, page):
    browser.show(page)
    for part in ("summary", ".zoom button", ".more", ".filters button"):
        for element in browser.all(part):
            browser.js("arguments[0].click()", element)
    browser.js("scrollTo(0, document.body.scrollHeight)")
    browser.drawn()
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data"}
    assert browser.js("return window.hacked") is None
    assert browser.driver.get_log("browser") == []


@pytest.mark.parametrize("exhibit", ["figure3", "figure6", "figure7"])
def test_the_pages_picture_is_the_png_that_plot_writes(browser, page, tmp_path, exhibit):
    style = Style("safe", caption=exhibit != "figure6", formats=("png",))
    runs = collect([page.parent / "runs"]).runs
    [path], _ = draw_figure(exhibit, runs, tmp_path, paper=True, style=style)
    wanted = Image.open(path)
    browser.show(page, wanted.width)
    place = "glance" if exhibit == "figure6" else exhibit
    browser.js(
        "const one = document.querySelector(`#${arguments[0]} .picture`);"
        "document.body.replaceChildren(one);"
        "for (const { style } of [one, document.body])"
        "  Object.assign(style, { padding: 0, margin: 0, minWidth: 0, maxWidth: 'none' });",
        place,
    )
    clip = {"x": 0, "y": 0, "width": wanted.width, "height": wanted.height, "scale": 1}
    data = browser.tell("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert max(outside(shown, wanted), outside(wanted, shown)) < 24  # letters a quarter larger: 47 to 80


def outside(one, other):
    """How far, of 255, the grey of blocks of 16x16 pixels leaves the range of the other's blocks around."""
    small, around = (np.asarray(image.convert("L").reduce(16), int) for image in (one, other))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(around, 1, "edge"), (3, 3))
    return int(np.maximum(small - near.max((2, 3)), near.min((2, 3)) - small).max())


def test_on_a_phone_the_pictures_letters_are_large(browser, page):
    browser.show(page, WIDTHS["phone"])
    shown = "const one = document.querySelector(arguments[0]); return one.currentSrc === one.src"
    assert not browser.js(shown, "#glance .picture")  # but the one of panels below each other
    assert not browser.js(shown, "#figure7 .picture")
    assert browser.find("#figure3 .picture").size["width"] > 500  # in a box that scrolls
    assert browser.js("return document.documentElement.scrollWidth") <= WIDTHS["phone"]


def test_claims_are_filtered_by_verdict(browser, page):
    browser.show(page)
    assert len(browser.seen(".claims > li")) == 27
    button = browser.find('.filters [data-kind="failed"]')
    button.send_keys("\n")  # by the keyboard
    shown = browser.seen(".claims > li")
    assert {claim.get_attribute("data-kind") for claim in shown} == {"failed"}
    assert browser.find(".shown").text == f"{button.text.split()[0]} of 27 claims shown"
    assert button.get_attribute("aria-pressed") == "true"
    browser.find('.filters [data-kind=""]').click()
    assert len(browser.seen(".claims > li")) == 27


@pytest.mark.parametrize("switch", ["[data-depth='56']", "[data-line='train']", "[data-line='seed']"])
def test_lines_are_switched_by_mouse_and_keyboard(browser, page, switch):
    browser.show(page)
    before = browser.drawn()
    box = browser.find(f"{FIGURE} {switch}")
    box.click()
    assert browser.drawn() != before
    box.send_keys(" ")
    assert browser.drawn() == before


def test_one_zooms_by_dragging_and_resets_by_double_click_or_button(browser, page):
    area, pointer = browser.area(page)
    whole = browser.drawn()
    pointer.move_to_element_with_offset(area, -40, 0).click_and_hold().move_by_offset(
        90, 0
    ).release().perform()
    assert browser.drawn() != whole
    pointer.double_click(area).perform()
    assert browser.drawn() == whole
    for kind in ("in", "right", "left", "out"):
        browser.find(f"{FIGURE} [data-zoom='{kind}']").send_keys("\n")
        assert (browser.drawn() == whole) == (kind == "out"), kind
    browser.find(f"{FIGURE} [data-zoom='in']").click()
    browser.find(f"{FIGURE} [data-zoom='reset']").click()
    assert browser.drawn() == whole


def test_a_curve_is_read_by_pointing_at_it(browser, page):
    area, pointer = browser.area(page)
    width, height = area.size["width"], area.size["height"]
    pointer.move_to_element_with_offset(area, width // 2 - 2, height // 2 - 20).perform()
    told = browser.find(f"{FIGURE} .readout").text
    assert (" error, " in told, " iterations" in told) == (True, True)


def test_tables_scroll_in_their_box_and_fold_rows(browser, page):
    browser.show(page, WIDTHS["phone"])
    box = browser.find("#table6 .scroll")
    assert browser.js("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    rows, folded = len(browser.all("#table6 tbody tr")), len(browser.all("#table6 tr.lacking"))
    assert len(browser.seen("#table6 tbody tr")) == rows - folded < rows
    button = browser.find("#table6 .more")
    button.send_keys("\n")
    assert button.get_attribute("aria-expanded") == "true"
    assert len(browser.seen("#table6 tbody tr")) == rows


@pytest.mark.parametrize("scripts", [True, False])
def test_print_has_everything_and_no_controls(browser, page, scripts):
    if not scripts:
        browser.tell("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(page)
        if scripts:
            browser.find('.filters [data-kind="held"]').click()
        browser.media("print")
        assert len(browser.seen(".claims > li")) == 27
        for part in ("tbody tr", ".picture", "details li", "details tr", ".counts"):
            assert len(browser.seen(part)) == len(browser.all(part)) > 0, part
        assert browser.seen("button, input, nav, .plot") == []
        pdf = base64.b64decode(browser.tell("Page.printToPDF")["data"])
        assert pdf.startswith(b"%PDF")
    finally:
        browser.tell("Emulation.setScriptExecutionDisabled", value=False)


def test_the_committed_report_opens_with_one_screen_and_is_short(browser):
    browser.show(ROOT / "docs" / "report.html", WIDTHS["desktop"])
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    for part in ("#glance .picture", "#glance table", "#glance .marks li:last-child"):
        assert browser.js(bottom, part) < 900
    assert len(browser.seen("#glance .marks a")) == 27
    assert browser.js("return document.documentElement.scrollHeight") <= 15_000
    browser.find("#glance a[href='#claim5']").click()
    assert browser.find("#claim5").is_displayed()
    assert len(browser.seen(".claims dl")) == 1  # the others stay folded
