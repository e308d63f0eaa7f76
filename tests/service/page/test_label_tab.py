"""The tab "Label" in a real browser: twenty photos by keyboard alone, undo, keys, accessibility."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from taillift.models.bundle.version_store import Challenger, Shadow, VersionStore
from taillift.service.review.review_folder import ReviewFolder
from tests.service.inference.test_swap import running_store
from tests.service.page.test_page import opened, sideways, violations
from tests.service.review.test_reviewer import MANY, fill
from tests.support.palette import CLASSES, palette_manifest, write_bundle
from tests.support.serving import running, until

KEY = "a-label-key-of-the-tests"
# The five classes that `fill` gives each photo, in their order.
GUESSES = list(CLASSES)[-5:]


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def page(
    request: pytest.FixtureRequest, browser: Browser, bundle: Path, queue: Path
) -> Iterator[Page]:
    """The tab, with four photos that wait or as many as the test wants."""
    fill(queue, getattr(request, "param", 4))
    with (
        running(bundle, review_dir=queue, **MANY) as client,
        opened(browser, client, "#label") as page,
    ):
        expect(photo(page, 0, queue)).to_be_visible()
        yield page


def keys_of(queue: Path) -> list[str]:
    return [photo.entry.id for photo in ReviewFolder(queue, 1, 10**9).photos()]


def photo(page: Page, number: int, queue: Path) -> Any:
    """The photo that came as the `number`-th, once it can be seen."""
    return page.locator(f"#labelling[data-id='{keys_of(queue)[number]}'] img")


def given(queue: Path) -> dict[int, str | None]:
    """The labels in the queue, by the number of the photo."""
    photos = ReviewFolder(queue, 1, 10**9).photos()
    return {
        number: photo.given.label for number, photo in enumerate(photos) if photo.given is not None
    }


def expect_labels(queue: Path, wanted: dict[int, str | None]) -> None:
    until(lambda: given(queue) == wanted)


@pytest.mark.parametrize("page", [23], indirect=True)
def test_twenty_photos_are_labelled_by_keyboard_alone(page: Page, queue: Path) -> None:
    page.get_by_role("tab", name="Label").focus()
    wanted: dict[int, str | None] = {}
    for number in range(20):
        expect(photo(page, number, queue)).to_be_visible()
        if number < 5:
            page.keyboard.press(str(number + 1))
            wanted[number] = GUESSES[number]
        elif number < 8:
            page.keyboard.press("0")
            wanted[number] = None
        elif number < 14:
            page.keyboard.type("GRE" if number % 2 else "bl")
            page.keyboard.press("Enter")
            wanted[number] = "green" if number % 2 else "blue"
        elif number == 14:
            page.keyboard.type("bl")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
            wanted[number] = "black"
        else:
            page.keyboard.press("2")
            wanted[number] = GUESSES[1]
    expect(page.locator("#label-news")).to_have_text(f"Labelled {GUESSES[1]}.")
    expect(page.locator("#label-counts")).to_contain_text("3 waiting, 20 labelled")
    expect_labels(queue, wanted)


def test_a_skipped_photo_waits_and_undo_goes_back_to_label_again(page: Page, queue: Path) -> None:
    news = page.locator("#label-news")
    undo = page.get_by_role("button", name="Undo")
    expect(undo).to_be_disabled()
    page.keyboard.press(" ")
    expect(news).to_have_text("Skipped.")
    expect(photo(page, 1, queue)).to_be_visible()
    page.keyboard.press("1")
    expect(photo(page, 2, queue)).to_be_visible()
    page.keyboard.press("Backspace")
    expect(photo(page, 1, queue)).to_be_visible()
    expect(news).to_contain_text(f"{GUESSES[0]} stands until you choose again")
    page.keyboard.press("Control+z")
    expect(photo(page, 0, queue)).to_be_visible()
    expect(undo).to_be_disabled()
    page.keyboard.press("3")
    expect(photo(page, 1, queue)).to_be_visible()
    page.keyboard.press("0")
    expect(photo(page, 2, queue)).to_be_visible()
    expect(page.locator("#label-counts")).to_contain_text("2 waiting, 2 labelled")
    expect_labels(queue, {0: GUESSES[2], 1: None})


def test_a_name_that_is_being_typed_takes_no_key_for_a_command(page: Page, queue: Path) -> None:
    box = page.get_by_role("combobox", name="Another class")
    page.keyboard.type("x1 0")
    expect(box).to_be_focused()
    expect(box).to_have_value("x1 0")
    expect(page.get_by_role("option")).to_have_count(0)
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    expect(box).to_have_value("x1 ")
    page.keyboard.press("Escape")
    expect(box).to_have_value("")
    page.keyboard.type("e")
    expect(page.get_by_role("option")).to_have_text(["red", "green", "blue", "yellow", "white"])
    page.get_by_role("option", name="yellow").click()
    expect(photo(page, 1, queue)).to_be_visible()
    expect_labels(queue, {0: "yellow"})


def test_everything_can_be_done_by_pointer_as_well(page: Page, queue: Path) -> None:
    page.get_by_role("button", name=GUESSES[1]).click()
    expect(photo(page, 1, queue)).to_be_visible()
    page.get_by_role("button", name="None of them").click()
    expect(photo(page, 2, queue)).to_be_visible()
    page.get_by_role("button", name="Skip").click()
    expect(photo(page, 3, queue)).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(photo(page, 2, queue)).to_be_visible()
    expect_labels(queue, {0: GUESSES[1], 1: None})


def test_at_the_end_the_skipped_photos_can_be_seen_again(page: Page, queue: Path) -> None:
    for number in range(4):
        expect(photo(page, number, queue)).to_be_visible()
        page.keyboard.press(" ")
    expect(page.locator("#label-left")).to_have_text("No further photo waits.")
    page.get_by_role("button", name="Look again").click()
    expect(photo(page, 0, queue)).to_be_visible()


def test_a_label_that_is_refused_is_told(page: Page, queue: Path) -> None:
    page.route("**/feedback", lambda route: route.abort())
    page.keyboard.press("1")
    expect(page.locator("#label-problem")).to_contain_text(
        f"{GUESSES[0]} was not kept: The service cannot be reached."
    )
    expect(photo(page, 1, queue)).to_be_visible()
    expect_labels(queue, {})
    page.unroute("**/feedback")
    page.keyboard.press("Backspace")
    expect(photo(page, 0, queue)).to_be_visible()
    page.keyboard.press("1")
    expect(page.locator("#label-problem")).to_be_hidden()
    expect(photo(page, 1, queue)).to_be_visible()
    expect_labels(queue, {0: GUESSES[0]})


def test_the_tab_has_no_accessibility_violations(page: Page) -> None:
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme, width in zip(schemes, (1280, 320), strict=True):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        assert violations(page) == []
        assert sideways(page) == 0
    page.keyboard.type("e")
    expect(page.get_by_role("option")).to_have_count(5)
    assert violations(page) == []


def test_the_key_that_may_label_is_asked_for(
    browser: Browser, bundle: Path, queue: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} person feedback\n")
    fill(queue, 1)
    with (
        running(bundle, review_dir=queue, keys_file=keys, **MANY) as client,
        opened(browser, client, "#label") as page,
    ):
        page.get_by_role("dialog", name="API key").get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Label").click()
        expect(photo(page, 0, queue)).to_be_visible()
        page.keyboard.press("1")
        expect(page.locator("#label-left")).to_have_text(re.compile("No further photo"))
        expect_labels(queue, {0: GUESSES[0]})


def test_a_class_that_only_a_challenger_knows_can_be_given(
    browser: Browser, bundle: Path, queue: Path, tmp_path: Path
) -> None:
    infos = palette_manifest("", {}).classes
    lime = infos[1].model_copy(update={"label": "lime"})
    classes = (infos[0], lime, *infos[2:])
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write_bundle(tmp_path / "next", classes=classes), classes_change=True)
    store.challenge(Challenger(version=2, shadow=Shadow()))
    fill(queue, 1)
    with running_store(store, review_dir=queue, **MANY) as (client, engine):
        until(lambda: engine.challenge is not None)
        offered = client.get("/review/summary").json()["classes"]
        assert [info["label"] for info in offered] == [*CLASSES, "lime"]
        assert offered[-1]["group"] == infos[1].group
        with opened(browser, client, "#label") as page:
            expect(photo(page, 0, queue)).to_be_visible()
            page.keyboard.type("li")
            page.keyboard.press("Enter")
            expect(page.locator("#label-news")).to_have_text("Labelled lime.")
            expect_labels(queue, {0: "lime"})
            expect(page.locator("#label-problem")).to_be_hidden()


def test_without_review_dir_there_is_no_tab(browser: Browser, bundle: Path) -> None:
    with running(bundle) as client, opened(browser, client, "#label") as page:
        expect(page.locator("#model")).not_to_be_empty()
        expect(page.get_by_role("tab")).to_have_count(2)
        expect(page.get_by_role("tabpanel", name="Photos")).to_be_visible()
