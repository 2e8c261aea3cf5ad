"""The page in a real browser: no error, everything there, search and dark mode work."""

import os
import shutil
from dataclasses import replace

import pytest

import plans
from builders import fleet, problem
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.report import render_html

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


def test_nothing_of_a_document_becomes_markup():
    plan = plans.small_plan()
    evil = '<script>alert("x")</script>'
    named = tuple(replace(d, name=evil, tenant=evil) for d in plan.deployments)
    page = render_html(replace(plan, deployments=named, fleet=evil))
    assert evil not in page


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

    def show(plan, **context):
        file = tmp_path / "plan.html"
        file.write_text(render_html(plan), "utf-8")
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
    assert page.locator(".gpu").count() == len(plan.gpus)
    runs = page.locator("section:has(#h-run) tbody tr").count()
    assert runs == len(plan.deployments)
    if folder := os.environ.get("FLEETSLICE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


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
    replica = held.locator("[data-r]").first.get_attribute("data-r")
    assert replica in page.locator("#card").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#card").is_visible()
