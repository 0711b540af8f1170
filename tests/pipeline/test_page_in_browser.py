"""The page of a batch in a real browser: opened from a disk and from a bucket, at desk and phone width.

Every page is watched: an error in its console, a dialog, or a request that leaves its batch fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from benchmarks.batches import Made, make_batch
from styleclip.tasks.reports.page.batch import read_batch
from styleclip.tasks.reports.page.page import ALONE, PER_PAGE, build_page
from styleclip.tasks.reports.page.thumbnails import plan_page, thumbnail_chunk
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings.edits import Edit
from tests.chromium import chromium
from tests.pipeline.test_pages import BROKEN, HOSTILE

KEYS = [f"faces/{number:03d}.png" for number in range(50)] + HOSTILE
EDITS = [
    Edit(name="grey-hair", target="face with grey hair", alpha=(1, 4), beta=(0.1, 0.2)),
    Edit(name="red-hair", target="face with red hair", alpha=2, beta=0.2),
]
PHONE = {"width": 390, "height": 844}


def write(place: str, *, beside: bool, keys: list[str] = KEYS) -> tuple[Made, str]:
    """Write a batch and its page; returns both."""
    made = make_batch(place, keys, EDITS, size=32, failed=BROKEN, copies=8)
    plan = plan_page.fn(Run(workspace=made.workspace), made.manifest)
    for chunk in plan.chunks:
        thumbnail_chunk.fn(plan.source, chunk)
    uri, files = build_page(plan, ALONE + 1 if beside else 0, [])
    assert bool(files) == beside
    return made, uri


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Made, str]:
    made, page = write(str(tmp_path_factory.mktemp("alone")), beside=False)
    return made, Path(page).as_uri()


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> tuple[Made, str]:
    made, page = write(str(tmp_path_factory.mktemp("beside")), beside=True)
    return made, Path(page).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the operating system."""
    with chromium() as launched:
        yield launched


@contextmanager
def opened(browser: Browser, url: str, **context: object) -> Iterator[Page]:
    """Open a page and watch it; at the end nothing may have gone wrong."""
    trouble: list[str] = []
    prefix = url.partition("/batches/")[0] + "/"
    with browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}) as made:
        page = made.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda each: trouble.append(f"console: {each.text}"))
        page.on("pageerror", lambda each: trouble.append(f"error: {each}"))
        page.on("dialog", lambda each: (trouble.append(f"dialog: {each.message}"), each.dismiss()))
        page.on("request", lambda each: each.url.startswith(("data:", prefix)) or trouble.append(each.url))
        # as a link says it; without one a page opens on what worked best
        page.goto(url if "#" in url else f"{url}#edit=0&sort=key&order=first")
        page.wait_for_selector("html[data-ready=yes]")
        yield page
    assert trouble == []


def shown(page: Page) -> list[str]:
    return page.locator("#cards .key").all_inner_texts()


def wait_for_first(page: Page, key: str) -> None:
    page.wait_for_function("key => document.querySelector('#cards .key')?.innerText === key", arg=key)


def at(page: Page) -> float:
    return float(
        page.locator(".slide").first.evaluate("box => parseFloat(box.style.getPropertyValue('--at'))")
    )


def test_a_page_opens_on_what_worked_best(alone, browser):
    made, url = alone
    batch = read_batch(made.manifest)
    best = batch.best_edit()
    means = [batch.mean(edit, "directional")[0] for edit in range(len(batch.edits))]
    assert means[best] == max(means)
    scores = np.nan_to_num(batch.values["directional"][best], nan=-9)
    with opened(browser, f"{url}#") as page:
        assert shown(page)[0] == batch.keys[int(scores.argmax())]


@pytest.mark.parametrize("kind", ["alone", "beside"])
def test_pairs_are_paged_searched_sorted_and_shown_for_every_edit(kind, request, browser):
    made, url = request.getfixturevalue(kind)
    batch = read_batch(made.manifest)
    done = [key for key in batch.keys if key not in BROKEN]
    with opened(browser, url) as page:
        assert shown(page) == done[:PER_PAGE]
        pictures = page.locator("#cards img")
        assert pictures.count() == 2 * PER_PAGE
        assert pictures.evaluate_all("all => all.every(each => each.complete && each.naturalWidth === 32)")

        page.get_by_label("Next page").first.click()
        wait_for_first(page, done[PER_PAGE])
        assert shown(page) == done[PER_PAGE : 2 * PER_PAGE]
        page.get_by_label("Page", exact=True).first.fill("3")
        page.keyboard.press("Enter")
        wait_for_first(page, done[2 * PER_PAGE])
        assert shown(page) == done[2 * PER_PAGE :]
        assert page.get_by_label("Next page").first.is_disabled()

        page.get_by_label("Search key").fill("FACES/01")
        wait_for_first(page, "faces/010.png")
        assert shown(page) == [key for key in done if "faces/01" in key]
        page.get_by_label("Search key").fill("nothing of the kind")
        page.get_by_text("No key contains that.").wait_for()
        page.get_by_label("Search key").fill("")
        wait_for_first(page, done[0])

        page.locator("#edit-choice").select_option("4")
        page.locator("#sort").select_option("identity")
        values = batch.values["identity"][4]
        worst = [batch.keys[number] for number in np.argsort(values, kind="stable")][:PER_PAGE]
        wait_for_first(page, worst[0])
        assert shown(page) == worst
        page.locator("#order").select_option("best")
        best = [batch.keys[number] for number in np.argsort(-values, kind="stable")][:PER_PAGE]
        wait_for_first(page, best[0])
        assert shown(page) == best
        assert f"{np.nanmax(values):.3f}" in page.locator("#cards figcaption").first.inner_text()

        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert shown(page) == best  # the view is in the address


def test_the_slider_follows_pointer_touch_and_keyboard(alone, browser):
    with opened(browser, alone[1], has_touch=True) as page:
        box = page.locator(".slide").first.bounding_box()
        assert at(page) == 50
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 30, steps=4)
        page.mouse.up()
        assert at(page) == pytest.approx(20, abs=1.5)
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 30)
        assert at(page) == pytest.approx(20, abs=1.5)  # only while it is held
        page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + 40)
        assert at(page) == pytest.approx(75, abs=1.5)
        slider = page.get_by_role("slider").first
        slider.focus()
        before = at(page)
        page.keyboard.press("ArrowLeft")
        assert at(page) == before - 1
        page.keyboard.press("Home")
        assert at(page) == 0
        assert slider.get_attribute("aria-valuetext") == "0 % before"
        assert slider.get_attribute("aria-label").startswith("Before and after: ")


def test_hostile_keys_are_shown_as_they_are(alone, browser):
    with opened(browser, alone[1]) as page:
        for key in HOSTILE:
            if key not in BROKEN:
                page.get_by_label("Search key").fill(key[-12:])
                page.locator("#cards .key", has_text=key).first.wait_for()
        assert page.locator("#failed h3", has_text=BROKEN[1]).count() == 1
        assert page.title().startswith("StyleCLIP")


def test_an_image_opens_large_with_all_its_edits(alone, browser):
    made, url = alone
    with opened(browser, url) as page:
        page.get_by_label("Search key").fill("quoted")
        page.locator("#cards .key", has_text="quoted").click()
        viewer = page.locator("#viewer")
        assert viewer.locator("h2").inner_text() == HOSTILE[1]
        assert viewer.locator(".strip img").count() == len(made.variants)
        link = viewer.get_by_role("link", name="Edited image").get_attribute("href")
        image = page.evaluate("link => new URL(link, location.href).href", link)
        assert image.startswith(Path(made.out).as_uri() + "/" + made.folder(0))
        page.wait_for_function(
            "src => document.querySelector('#viewer .over').src === src", arg=image
        )  # the whole image has been loaded in place of the thumbnail
        viewer.locator(".strip button").nth(4).click()
        page.wait_for_function("() => document.querySelector('#viewer-edit').innerText.includes('red-hair')")
        page.keyboard.press("Escape")
        assert not viewer.is_visible()


def test_extremes_and_sweeps_appear_when_somebody_scrolls_there(beside, browser):
    made, url = beside
    batch = read_batch(made.manifest)
    with opened(browser, url) as page:
        page.locator("#extremes").scroll_into_view_if_needed()
        row = page.locator("#extremes .score-row", has_text="Identity")
        row.locator("img").nth(7).wait_for()
        values = batch.values["identity"][0]
        ends = [*np.sort(values[np.isfinite(values)])[::-1][:4], *np.sort(values)[:4]]
        assert row.locator(".thumb > span:last-child").all_inner_texts() == [f"{value:.3f}" for value in ends]
        page.locator("#sweeps").scroll_into_view_if_needed()
        cells = page.locator("#sweep-table td img")
        cells.nth(4).wait_for()
        assert cells.count() == 1 + 4
        assert page.locator("#sweep-table th[scope=col]").all_inner_texts() == ["alpha 1", "alpha 4"]
        assert page.locator("#sweep-table th[scope=row]").all_inner_texts() == ["beta 0.1", "beta 0.2"]
        first = page.locator("#sweep-key").inner_text()
        page.get_by_label("Next image").first.click()
        page.wait_for_function("old => document.querySelector('#sweep-key').innerText !== old", arg=first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(alone, browser, scheme):
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with opened(browser, alone[1], **options) as page:
        for section in page.locator("section").all():
            section.scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        wide = page.evaluate(
            "() => [...document.querySelectorAll('main *')]"
            ".filter(each => !each.closest('.wide, pre, svg, .problems, .key'))"
            ".filter(each => each.getBoundingClientRect().right > innerWidth + 1)"
            ".map(each => each.className || each.tagName)"
        )
        assert wide == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(19, 20, 22)") == (scheme == "dark")
        page.get_by_label("Switch between dark and light").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
        page.locator("#cards .key").first.click()
        assert page.locator("#viewer").evaluate("box => box.scrollWidth <= innerWidth")


def test_a_bucket_serves_it_as_it_is(s3, browser):
    keys = [key for key in KEYS if ".." not in key]  # which this store refuses
    _, page_uri = write("s3://pages/runs/one", beside=True, keys=keys)
    url = page_uri.replace("s3:/", s3.endpoint)
    with opened(browser, url) as page:
        assert len(shown(page)) == PER_PAGE
        page.get_by_label("Next page").first.click()
        page.wait_for_function("() => document.querySelector('.count').innerText.startsWith('25')")
        page.locator("#cards .key").first.click()
        page.wait_for_function("() => document.querySelector('#viewer .over')?.src.startsWith('http')")
