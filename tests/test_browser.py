"""The HTML report in a real browser: keyboard, themes, phones, print, accessibility, and hostile names.

Needs Debian's `chromium`, or another named by AUTOOPT_CHROMIUM; skipped where there is none, except in
continuous integration, where it must be there.
"""

import os
import shutil
from importlib import resources

import pytest
from report_example import HOSTILE, deviating, recommendation, transformer

from autoopt.optimizers.plan import OptimizerPlan
from autoopt.report import Candidate, Event, NearestTask
from autoopt.report.formatting import visible

CHROMIUM = os.environ.get("AUTOOPT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
WIDTHS = (360, 800, 1280)

if CHROMIUM is None and not IN_CI:
    pytest.skip("needs chromium (apt-get install chromium), or AUTOOPT_CHROMIUM", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, one for all tests here."""
    assert CHROMIUM is not None, "continuous integration must have chromium: see .ci/run"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers have no user namespaces for the sandbox, and little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


class Watched:
    """A page and everything that it did beside showing itself.

    Attributes:
        page: Playwright's page.
        noise: Console messages, errors, dialogs and requests for anything but the file itself.
    """

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**options)
        self.page, self.noise = self.context.new_page(), []
        self.page.on("console", lambda message: self.noise.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.noise.append("dialog"), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.url = path.as_uri()
        self.page.goto(self.url)

    def _requested(self, request):
        if request.url.split("#")[0] not in (self.url, "data:,"):
            self.noise.append(f"request: {request.url}")

    def rows(self, table="groups"):
        """The first cells of the rows that are shown, top to bottom."""
        return self.page.eval_on_selector_all(
            f"table[data-search={table}-search] tbody tr:not([hidden])", "rows => rows.map(r => r.cells[0].innerText)"
        )


@pytest.fixture
def opened(browser, tmp_path, monkeypatch):
    """A function that opens a recommendation's page; what the page did is checked at the end."""
    monkeypatch.setattr(OptimizerPlan, "to_python", lambda plan: "import torch\n# <script>alert(1)</script>\n")
    pages = []

    def open_page(content, **options):
        text = content if isinstance(content, str) else content.to_html()
        path = tmp_path / f"report{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        pages.append(Watched(browser, path, **options))
        return pages[-1]

    yield open_page
    for watched in pages:
        watched.context.close()
        assert watched.noise == []


def violations(page, *rules):
    """What axe-core finds, as `rule: selectors`, where it is serious or critical.

    Args:
        page: Playwright's page.
        *rules: The only rules to check, all where there are none.
    """
    source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{rule['id']}: {[node['target'] for node in rule['nodes']]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def test_the_table_sorts_by_keyboard(opened):
    watched = opened(transformer(3))
    page, before = watched.page, watched.rows()
    page.focus("table[data-search=groups-search] thead th:nth-child(3) button")
    page.keyboard.press("Enter")
    sizes = "rows => rows.map(r => Number(r.cells[2].dataset.value))"
    values = page.eval_on_selector_all("table[data-search=groups-search] tbody tr", sizes)
    assert values == sorted(values) and len(set(values)) > 3
    assert page.get_attribute("table[data-search=groups-search] thead th:nth-child(3)", "aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert page.eval_on_selector_all("table[data-search=groups-search] tbody tr", sizes) == sorted(values)[::-1]
    assert "descending" in page.inner_text("#groups-status")
    page.keyboard.press("Shift+Tab")  # the column before it, and back to the model's order by the first
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert watched.rows() == before


def test_numbers_sort_as_numbers_and_what_is_unknown_comes_last(opened):
    watched = opened(transformer(2))
    page = watched.page
    page.click("table[data-search=groups-search] thead th:nth-child(6) button")
    first, second, *rest = watched.rows()
    assert (first, second) == ("tok.weight", "head.weight") and len(rest) > 5
    page.click("table[data-search=groups-search] thead th:nth-child(6) button")
    assert watched.rows()[:2] == ["head.weight", "tok.weight"]


def test_the_table_filters_by_keyboard(opened):
    watched = opened(transformer(3))
    page, everything = watched.page, watched.rows()
    page.focus("#groups-search")
    page.keyboard.type("muon QKV")
    assert watched.rows() == ["blocks.0-2.attn.qkv.weight"]
    assert page.inner_text("#groups-status") == f"1 of {len(everything)} rows shown."
    page.keyboard.press("Escape")
    assert watched.rows() == everything
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert watched.rows() == ["tok.weight", "head.weight"]
    page.click("text=The optimizer of every tensor")
    page.fill("#tensors-search", "blocks.1.norm2")
    assert watched.rows("tensors") == ["blocks.1.norm2.weight", "blocks.1.norm2.bias"]


def test_a_changed_layer_leads_to_its_reasons_and_keyboard_reaches_everything(opened):
    page = opened(transformer(1)).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.click("a[href='#why-1']")
    page.wait_for_function("document.getElementById('why-1').open")  # the page hears of it after the click
    focusable = page.evaluate(
        "[...document.querySelectorAll('button, input, summary, a, [tabindex]')].every(e => e.tabIndex >= 0)"
    )
    assert focusable


@pytest.mark.parametrize(
    "width, scheme, rules", [(360, "light", ()), (1280, "light", ()), (1280, "dark", ("color-contrast",))]
)
def test_axe_finds_nothing_serious(opened, width, scheme, rules):
    page = opened(transformer(1), color_scheme=scheme, viewport={"width": width, "height": 900}).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(page, *rules) == []


def test_axe_would_find_something(opened):
    page = opened("<!doctype html><html lang=en><title>x</title><p style='color: #ccc'>faint</p>").page
    assert [found.split(":")[0] for found in violations(page)] == ["color-contrast"]


def test_the_theme_follows_the_system(opened):
    background = "getComputedStyle(document.body).backgroundColor"
    assert opened(transformer(1), color_scheme="light").page.evaluate(background) == "rgb(255, 255, 255)"
    assert opened(transformer(1), color_scheme="dark").page.evaluate(background) == "rgb(15, 19, 24)"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_hangs_over_the_edge_of_the_screen(opened, width):
    page = opened(transformer(2, note=HOSTILE[-1]), viewport={"width": width, "height": 780}).page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """[...document.querySelectorAll('h1, h2, p, li, dd, summary, caption, .stack td, .stack th, .chart svg')]
        .filter(e => e.offsetParent !== null && e.getBoundingClientRect().right > innerWidth + 1)
        .filter(e => !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_print_is_black_on_white_without_controls_and_with_every_reason(opened):
    page = opened(transformer(1), color_scheme="dark").page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.is_visible("#groups-search") and page.is_visible("#why-1 p")


def test_without_javascript_everything_but_the_controls_is_there(opened):
    page = opened(transformer(1), java_script_enabled=False).page
    assert not page.is_visible("#groups-search")
    shown = page.locator("table[data-search=groups-search] tbody tr >> visible=true")
    assert shown.count() == len(transformer(1).groups)
    assert page.locator("figure svg >> visible=true").count() >= 4


def hostile():
    """A recommendation in which every free text is hostile, with a layer for each hostile name."""
    layers = [deviating(f"tok.{name}", note=name) for name in HOSTILE]
    return recommendation(
        layers,
        warnings=HOSTILE,
        counterfactuals=HOSTILE,
        nearest_tasks=[NearestTask(name, 0.5, name) for name in HOSTILE],
        events=[Event(step, name, name) for step, name in enumerate(HOSTILE)],
        candidates=[Candidate(name, -0.1, (-0.2, 0.1)) for name in HOSTILE],
        provenance={name: name for name in HOSTILE},
        statistics={item.name: {name: 1.0 for name in HOSTILE} for item in layers},
        losses=[(0, 2.0), (20, 1.0)],
    )


@pytest.mark.parametrize("form", ["page", "notebook", "plan"])
def test_hostile_names_show_as_text_and_do_nothing(opened, form):
    content = hostile()
    fragments = {"notebook": content._repr_html_(), "plan": content.plan._repr_html_()}
    page = opened(content if form == "page" else f"<!doctype html><title>x</title>{fragments[form]}").page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    words = " ".join(page.inner_text("body").split())
    for name in HOSTILE:
        shown = " ".join(visible(f"tok.{name}").split())
        assert words.count(shown) >= (2 if form == "page" else 1), name
    assert page.locator("img, iframe, object, base, b, link[rel=stylesheet]").count() == 0
    assert page.locator("script").count() == (form == "page")


def test_an_empty_recommendation_is_a_page_too(opened):
    page = opened(recommendation([])).page
    assert "o trainable parameters" in page.inner_text("h1") and violations(page) == []
