"""The page that `taillift suggest` writes, in a real browser, from the disk and by keyboard."""

import csv
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from taillift.models.names import NONE_OF_THE_CLASSES
from taillift.service.serve_cli import app
from taillift.training.data.dataset import load_dataset
from tests.support.palette import CLASSES, Colour, new_photo

HOSTILE = "<img src=x onerror=\"document.title='taken'\">.png"


@pytest.fixture(scope="module")
def suggested(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 suggestions, whose path needs to be escaped in an address."""
    root = tmp_path_factory.mktemp("a folder #1 100%")
    (root / "pool").mkdir()
    for index in range(23):
        colour: Colour = (100 + 3 * index, 160 - 2 * index, 120 + index)
        (root / f"pool/{index:02}.png").write_bytes(new_photo(colour))
    (root / "pool" / HOSTILE.replace("/", "")).write_bytes(new_photo((140, 140, 140)))
    out = root / "suggested"
    result = CliRunner().invoke(
        app, ["suggest", str(bundle), str(root / "pool"), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def page(browser: Browser, suggested: Path) -> Iterator[Page]:
    """The page, opened from the disk; nothing else may be loaded, and nothing may go wrong."""
    complaints: list[str] = []
    with browser.new_context(reduced_motion="reduce", accept_downloads=True) as context:
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file://", "data:", "blob:"))
                else complaints.append(request.url)
            ),
        )
        page.goto((suggested / "label.html").as_uri())
        yield page
        assert page.title() != "taken"
    assert complaints == []


def saved(page: Page, to: Path) -> list[dict[str, str]]:
    """Save the labels by keyboard, and return their rows."""
    with page.expect_download() as download:
        page.keyboard.press("Control+s")
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(to)
    with to.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_twenty_photos_are_labelled_by_keyboard_and_trained_on(
    page: Page, suggested: Path, tmp_path: Path
) -> None:
    expected: dict[str, str] = {}
    for number in range(20):
        expect(page.locator("#photo")).to_have_attribute("alt", f"Photo {number + 1} of 24")
        path = page.locator("#photo").get_attribute("src")
        assert path is not None
        assert page.evaluate("document.getElementById('photo').decode().then(() => true)")
        labels = page.locator("#top .label").all_text_contents()
        assert len(labels) == 6
        match number % 4:
            case 0 | 1:
                page.keyboard.press(str(number % 4 + 1))
                expected[path] = labels[number % 4]
            case 2:
                page.keyboard.type("YELL")
                page.keyboard.press("Enter")
                expected[path] = "yellow"
            case _:
                page.keyboard.press("0")
                expected[path] = NONE_OF_THE_CLASSES
    none = sum(label == NONE_OF_THE_CLASSES for label in expected.values())
    expect(page.locator("#counts")).to_contain_text(f"{20 - none} of 24 photos labelled")
    expect(page.locator("#counts")).to_contain_text(f"{none} of no class, 0 skipped")
    # Next to the page, as it says, the file names the photos that are there.
    rows = saved(page, suggested / "labels.csv")
    assert {row["path"]: row["label"] for row in rows} == expected
    expect(page.locator("#saved")).to_contain_text(f"Put it into {suggested}/, next to this page")
    command = f"taillift train photos/ --add {shlex.quote(f'{suggested}/labels.csv')}"
    expect(page.locator("#saved")).to_contain_text(command)
    for index, label in enumerate(("red", "green")):
        (tmp_path / "photos/train" / label).mkdir(parents=True)
        image = tmp_path / "photos/train" / label / f"{index}.png"
        image.write_bytes(new_photo(CLASSES[label][0]))
    dataset = load_dataset(str(tmp_path / "photos"), add=[str(suggested / "labels.csv")])
    assert sum(dataset.counts) == 2 + 20 - none
    assert "yellow" in dataset.classes
    assert NONE_OF_THE_CLASSES not in dataset.classes


def test_photos_are_skipped_undone_and_kept_over_a_reload(page: Page) -> None:
    photo = page.locator("#photo")
    page.keyboard.press("1")
    page.keyboard.press("Space")
    expect(photo).to_have_attribute("alt", "Photo 3 of 24")
    expect(page.locator("#counts")).to_contain_text("1 of 24 photos labelled")
    page.reload()
    expect(photo).to_have_attribute("alt", "Photo 3 of 24")
    page.keyboard.press("Backspace")
    expect(photo).to_have_attribute("alt", "Photo 2 of 24")
    page.keyboard.press("Control+z")
    expect(photo).to_have_attribute("alt", "Photo 1 of 24")
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#save")).to_be_disabled()


def test_a_class_is_found_by_a_part_of_its_name_and_may_be_new(page: Page, tmp_path: Path) -> None:
    page.keyboard.type("e")
    expect(page.locator("#matches .label")).to_have_text(
        ["red", "green", "blue", "yellow", "white", "e"]
    )
    page.keyboard.press("Escape")
    expect(page.locator("#matches button")).to_have_count(0)
    page.keyboard.type('scarf, "wool" 2')
    expect(page.locator("#matches")).to_contain_text("a new class")
    page.keyboard.press("Enter")
    (row,) = saved(page, tmp_path / "labels.csv")
    assert row["label"] == 'scarf, "wool" 2'


def test_the_class_that_was_typed_comes_before_those_that_begin_with_it(page: Page) -> None:
    script = """async () => {
      const { matching } = await import("class_box.js");
      return matching(["Caterpillar", "bobcat", "cat"], " CAT ");
    }"""
    assert page.evaluate(script) == ["cat", "Caterpillar", "bobcat"]


def test_the_end_offers_the_skipped_photos_again(page: Page) -> None:
    for _ in range(24):
        page.keyboard.press("Space")
    expect(page.locator("#finished")).to_be_visible()
    expect(page.locator("#work")).to_be_hidden()
    page.keyboard.press("1")
    page.get_by_role("button", name="Look at the skipped ones again").click()
    expect(page.locator("#photo")).to_have_attribute("alt", "Photo 1 of 24")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_accessibility_violations(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.keyboard.type("re")
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()
