"""The page in a real browser: no error, everything there, search and dark mode work."""

import os
import re
import shutil
from dataclasses import replace

import pytest

import plans
from builders import fleet, problem
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Sighting
from optimizer.report import diff, diff_markdown, render_diff_html, render_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
INFEASIBLE = Outcome(Termination.INFEASIBLE, conflict=("pin of chat", "cordon of n0/0"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-quic"]
PLANS = {
    "scratch": plans.small_plan,
    "rebalance": plans.rebalanced_plan,
    "large": plans.large_plan,
    "infeasible": lambda: plans.plan_of(plans.small_problem(), Placement(), INFEASIBLE),
    "empty": lambda: plans.plan_of(problem(fleet(), ()), Placement()),
}


# Texts whose contrast to what is behind them is under WCAG 2 AA's 4.5 to 1.
PALE = """() => {
  const parts = (c) => {
    const v = c.match(/[\\d.]+/g).map(Number);
    const scale = c.startsWith("color(") ? 255 : 1;
    return [v[0] * scale, v[1] * scale, v[2] * scale, v[3] === undefined ? 1 : v[3]];
  };
  const light = (c) => {
    const f = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]);
  };
  const behind = (e) => {
    const layers = [];
    for (; e && (!layers.length || layers.at(-1)[3] < 1); e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) layers.push(c);
    }
    const over = (below, c) => below.map((v, i) => v * (1 - c[3]) + c[i] * c[3]);
    return layers.reverse().reduce(over, [255, 255, 255]);
  };
  const found = [];
  const walk = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE"].includes(e.tagName) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const pair = [light(parts(e.ownerSVGElement ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) found.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def test_nothing_of_a_document_becomes_markup():
    plan = plans.small_plan()
    evil = '<script>alert("x")</script>'
    named = tuple(replace(d, name=evil, tenant=evil) for d in plan.deployments)
    page = render_html(replace(plan, deployments=named, fleet=evil))
    assert evil not in page


def test_the_page_of_a_difference_says_who_is_touched():
    found = diff(plans.small_plan(), plans.rebalanced_plan())
    assert "no difference" in render_diff_html(found, "a.json", "b.json")
    found = diff(plans.small_current(), plans.rebalanced_plan())
    page = render_diff_html(found, "now.yaml", "night.json")
    told = diff_markdown(found)
    assert "touched: acme 4 replicas, initech 1" in told
    for text in ("now.yaml to night.json", "touched: acme 4 replicas", "support-chat/1", "removed"):
        assert text in page
    assert told.count("| moved |") == len(found.of_kind("moved"))


def test_the_page_draws_price_and_bound_over_time():
    plan = plans.small_plan()
    assert 'class="floor"' not in render_html(plan)
    seen = (Sighting(0.0, None, 20_000_000), Sighting(1, 25_000_000, 20_000_000))
    seen += (Sighting(3, 23_000_000, 22_000_000),)
    page = render_html(replace(plan, run=replace(plan.run, trajectory=seen)))
    assert "23.00 USD/h after 3.0 s" in page
    line, floor = re.findall(r'<polyline(?: class="floor")? points="([^"]*)"', page)[::-1]
    # Stairs: each value is held until the next is known.
    assert len(line.split()) == 3
    assert len(floor.split()) == 5


def test_nothing_is_loaded_from_elsewhere():
    page = render_html(plans.small_plan())
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        with_one = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield with_one
        with_one.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a plan; the errors of its console fail the test."""
    faults: list[str] = []
    pages = []

    def show(plan, answers=None, curve=None, **context):
        file = tmp_path / "plan.html"
        file.write_text(render_html(plan, answers, curve), "utf-8")
        page = browser.new_page(bypass_csp=True, **context)  # the page forbids what tests evaluate
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: faults.append(r.url) if not r.url.startswith("file") else None)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()
    assert [f for f in faults if not f.startswith("data:")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_page_opens_without_error(opened, name):
    plan = PLANS[name]()
    page = opened(plan)
    assert plan.fleet in page.title()
    there = plan.status != "infeasible"
    assert page.locator(".gpu").count() == there * len(plan.gpus)
    runs = page.locator("section:has(#h-run) tbody tr").count()
    assert runs == there * len(plan.deployments)
    assert page.locator(".alert").all_inner_texts() == list(plan.conflict)
    if folder := os.environ.get("FLEETSLICE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_answers_and_the_curve_stand_on_the_page_and_can_be_read(opened, theme):
    plan = plans.rebalanced_plan()
    page = opened(plan, plans.FAMILIES, plans.CURVE, color_scheme=theme)
    heat = page.locator(".heat tbody tr").all_inner_texts()
    assert [row.split()[0] for row in heat] == ["l40s-01", "h100-01", "h200-01"]
    assert "100 % missing" in heat[0]
    assert "50 % missing" in heat[1]
    assert "infeasible" in heat[2]
    assert page.locator("section:has(#h-whatif) svg circle.bad").count() == 1
    best = page.locator("section:has(#h-frontier) svg circle.best")
    best.focus()
    assert "25.50 USD/h after 2 moves, 17 GiB, the knee" in page.locator("#card").inner_text()
    assert page.evaluate(PALE) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_is_no_wider_than_the_screen(opened, width):
    screen = {"width": width, "height": 800}
    page = opened(plans.rebalanced_plan(), plans.FAMILIES, plans.CURVE, viewport=screen)
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_a_dark_page_prints_light(opened):
    page = opened(plans.small_plan(), color_scheme="dark")
    ink = "getComputedStyle(document.body).color"
    dark = page.evaluate(ink)
    page.emulate_media(media="print")
    assert page.evaluate(ink) != dark
    assert not page.get_by_label("Search").is_visible()


@pytest.mark.slow
def test_search_sort_theme_and_keyboard(opened):
    plan = plans.small_plan()
    page = opened(plan, color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Light").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"

    wanted = plan.deployments[0].name
    page.get_by_label("Search").fill(wanted)
    rows = page.locator("section:has(#h-run) tbody tr:visible")
    page.wait_for_function("document.querySelectorAll('tbody tr[hidden]').length > 0")
    assert 0 < rows.count() < len(plan.deployments)
    assert "row" in page.locator("#matches").inner_text()
    page.get_by_label("Search").fill("")

    page.wait_for_function("document.querySelectorAll('tbody tr[hidden]').length === 0")

    tenant = plan.deployments[0].tenant
    page.get_by_label("Search").fill(tenant)
    whose = {d.name: d.tenant for d in plan.deployments}
    own = {r.id for r in plan.placement.replicas if whose[r.deployment] == tenant}
    page.wait_for_function("document.querySelectorAll('.gpu.dim').length > 0")
    bright = page.locator(".gpu:not(.dim) [data-r]:not(.dim)").all()
    assert {piece.get_attribute("data-r") for piece in bright} == own
    page.get_by_label("Search").fill("")
    page.wait_for_function("document.querySelectorAll('tbody tr[hidden]').length === 0")
    head = page.locator("section:has(#h-run) th").last
    head.click()
    prices = page.locator("section:has(#h-run) tbody tr td:last-child").all_inner_texts()
    values = [float(p.replace(",", "")) for p in prices]
    assert values == sorted(values)

    held = page.locator(".gpu:has([data-r])").first
    held.focus()
    assert page.locator("#card").is_visible()
    told = page.locator("#card").inner_text()
    for piece in held.locator("[data-r]").all():
        assert piece.get_attribute("data-r") in told
    for word in ("takes", "GB/s", "of the SMs", "TTFT", "memory", "bandwidth", "compute"):
        assert word in told
    page.keyboard.press("Escape")
    assert not page.locator("#card").is_visible()
