"""The page at / in a real browser: photos, the tail, keys, keyboards, colours and hostile text."""

import csv
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, expect
from typer.testing import CliRunner

from taillift.models.bundle.images import canvas, offsets
from taillift.models.bundle.manifest import Thresholds, classes_from
from taillift.models.bundle.schema import Preprocessing
from taillift.models.bundle.version_store import Challenger, Shadow, VersionStore
from taillift.service.feedback.prediction_id import PredictionId, Signer
from taillift.service.inference.engine import Engine
from taillift.service.serve_cli import app
from taillift.service.settings import read_settings
from tests.support.palette import (
    CLASSES,
    Colour,
    new_photo,
    palette_manifest,
    photo,
    write_bundle,
    write_confusion,
)
from tests.support.serving import running, serving, until

KEY = "a-key-for-the-page-0123"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
LONG = "a label that goes on and on " * 12 + "withoutaspace" * 40
RED, GREEN, WHITE = (CLASSES[label][0] for label in ("red", "green", "white"))
BETWEEN: Colour = (140, 120, 0)
# The browser's own message if a request fails.
FAILED = "Failed to load resource:"
# Milliseconds after which the page has certainly requests for the tail again.
PAUSE = 60_000
ONE_VIEW = "1 view: the centre"
FIVE_VIEWS = "5 views: the centre and the four corners"


@pytest.fixture(scope="module")
def service(known: Path) -> Iterator[httpx.Client]:
    """A service whose tail is as expected except for two classes: no black, too much red."""
    with running(known) as client:
        feed(
            client, {"red": 900, "green": 300, "blue": 200, "yellow": 120, "cyan": 40, "white": 24}
        )
        yield client


@pytest.fixture
def page(browser: Browser, service: httpx.Client) -> Iterator[Page]:
    with opened(browser, service) as page:
        yield page


@contextmanager
def opened(browser: Browser, client: httpx.Client, path: str = "") -> Iterator[Page]:
    """Open the page; fail if it raises an error, breaks its policy or contacts another host."""
    complaints: list[str] = []
    with browser.new_context(reduced_motion="reduce") as context:
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{client.base_url}{path}")
        yield page
        assert page.title() == "taillift"
        own = (str(client.base_url), f"blob:{client.base_url}")
        assert [url for url in requests if not url.startswith(own)] == []
    assert [text for text in complaints if not text.startswith(FAILED)] == []


def feed(client: httpx.Client, photos: dict[str, int]) -> None:
    """Classify so many different photos of each class, in an order that depends on nothing."""
    labels = [label for label, number in photos.items() for _ in range(number)]
    random.Random(0).shuffle(labels)
    for start in range(0, len(labels), 50):
        files = [
            ("images", ("x", new_photo(CLASSES[label][0]))) for label in labels[start : start + 50]
        ]
        assert client.post("/classify", files=files).status_code == 200


def file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def choose(page: Page, *files: FilePayload) -> None:
    page.locator("#files").set_input_files(list(files))


def card(page: Page, number: int = 0) -> Any:
    return page.locator("#results > li").nth(number)


def show_tail(page: Page) -> None:
    page.get_by_role("tab", name="Tail").click()
    expect(page.get_by_role("img", name=re.compile("Predicted against expected"))).to_be_visible()


def sideways(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    width: int = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    return width


# Photos


def test_photos_get_labels_with_confidence_group_and_training_photos(page: Page) -> None:
    choose(page, file("a.png", photo(RED)), file("b.png", photo(WHITE)))
    expect(page.get_by_role("status").first).to_have_text("2 photos classified")
    first, second = card(page, 0), card(page, 1)
    expect(first.get_by_role("heading")).to_have_text("a.png")
    expect(first.locator(".predictions > li")).to_have_count(5)
    expect(first.locator(".predictions > li").first).to_have_text(
        re.compile(r"^red.*%\s*many\s*300 training photos$")
    )
    expect(second.locator(".predictions > li").first).to_have_text(
        re.compile(r"^white.*%\s*few\s*12 training photos$")
    )


def test_the_result_for_one_photo_is_announced_to_a_screen_reader(page: Page) -> None:
    choose(page, file("a.png", photo(GREEN)))
    expect(page.get_by_role("status").first).to_have_text(
        re.compile(r"^1 photo classified: green, .*%$")
    )


def test_a_bar_is_as_long_as_the_confidence(page: Page, service: httpx.Client) -> None:
    answer = service.post("/classify?ensemble=full", content=photo(BETWEEN)).json()
    page.get_by_label("Ensemble").select_option("full")
    choose(page, file("between.png", photo(BETWEEN)))
    expect(card(page).locator(".predictions > li")).to_have_count(5)
    widths = page.locator(".confidence rect").evaluate_all(
        "all => all.map((bar) => parseFloat(bar.getAttribute('width')) / 100)"
    )
    wanted = [entry["confidence"] for entry in answer["results"][0]["predictions"]]
    assert widths == pytest.approx(wanted)
    assert 0.05 < wanted[1] < wanted[0] < 0.95


def test_views_are_drawn_where_the_model_looks(page: Page) -> None:
    how = palette_manifest("v", {}).preprocessing
    sizes = [(20, 16), (300, 200), (60, 171), (8, 8), (640, 21)]
    page.get_by_label("Ensemble").select_option("full")
    choose(page, *[file("a.png", photo(RED, size=size)) for size in sizes])
    expect(page.locator("#results .frame")).to_have_count(5 * len(sizes))
    for number, size in enumerate(sizes):
        height, width = canvas(Image.new("RGB", size), how).shape[:2]
        drawing = card(page, number).locator(".views")
        assert drawing.get_attribute("viewBox") == f"0 0 {width} {height}"
        places = drawing.locator(".frame").evaluate_all(
            "all => all.map((box) => ['y', 'x'].map((side) => Number(box.getAttribute(side))))"
        )
        # The first view is drawn last, on top.
        assert [tuple(corner) for corner in places[::-1]] == offsets(height, width, how.size)
        box, image = drawing.bounding_box(), card(page, number).get_by_role("img").bounding_box()
        assert box is not None
        assert image is not None
        assert list(box.values()) == pytest.approx(list(image.values()), abs=1)


def test_views_can_be_squashed(page: Page) -> None:
    how = Preprocessing(
        size=224,
        expand=48,
        interpolation="bicubic",
        resize_mode="squash",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    script = "([width, height, how]) => import('/page/views.js').then((m) => m.%s)"
    size = page.evaluate(script % "canvasSize(width, height, how)", [640, 480, how.model_dump()])
    assert size == [272, 272]
    places = page.evaluate(script % "places([width, height], how, 4)", [272, 272, 224])
    assert [(top, left) for left, top in places] == offsets(272, 272, 224)[:4]


def test_only_the_views_that_were_used_are_drawn(page: Page) -> None:
    page.get_by_label("Ensemble").select_option("adaptive")
    choose(page, file("sure.png", photo(RED)), file("unsure.png", photo(BETWEEN)))
    expect(card(page, 0).get_by_text(ONE_VIEW)).to_be_visible()
    expect(card(page, 1).get_by_text(FIVE_VIEWS)).to_be_visible()
    expect(card(page, 0).locator(".frame")).to_have_count(1)
    expect(card(page, 1).locator(".frame")).to_have_count(5)
    page.get_by_label("Draw views").uncheck()
    expect(card(page, 1).locator(".views")).to_be_hidden()


def test_another_setting_classifies_the_photos_again(page: Page) -> None:
    page.get_by_label("Ensemble").select_option("full")
    choose(page, file("a.png", photo(RED)))
    expect(card(page).get_by_text(FIVE_VIEWS)).to_be_visible()
    page.get_by_label("Ensemble").select_option("off")
    expect(card(page).get_by_text(ONE_VIEW)).to_be_visible()
    page.get_by_label("Classes named").select_option("3")
    expect(card(page).locator(".predictions > li")).to_have_count(3)
    with page.expect_request(re.compile("prior=train")):
        page.get_by_label("Prior").select_option("train")


def test_decision_and_prediction_set_are_shown(page: Page) -> None:
    requests: list[str] = []

    def answer(route: Route) -> None:
        requests.append(route.request.url)
        response = route.fetch(url=route.request.url.split("&coverage")[0])
        document = response.json()
        reason = {"text": "no threshold for the group few"}
        document["results"][0] |= {
            "decision": "review",
            "decision_reason": reason,
            "set": ["red", HOSTILE],
        }
        route.fulfill(response=response, json=document)

    def can(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"sets": {}})

    page.route("**/classify?*", answer)
    page.route("**/model", can)
    page.reload()
    page.get_by_label("Prediction sets").check()
    choose(page, file("a.png", photo(RED)))
    expect(card(page).get_by_text("review", exact=True)).to_be_visible()
    expect(card(page).get_by_text("let a person look: no threshold for the group")).to_be_visible()
    expect(card(page).get_by_text("Prediction set (2 classes)")).to_be_visible()
    expect(card(page).get_by_text(HOSTILE)).to_be_visible()
    assert "coverage=0.9" in requests[0]


def test_prediction_sets_are_disabled_if_the_bundle_has_none(page: Page) -> None:
    box = page.get_by_label("Prediction sets")
    expect(box).to_be_disabled()
    expect(page.get_by_text("the bundle has no calibration for them")).to_be_visible()


def test_photos_are_cleared(page: Page) -> None:
    choose(page, *[file(f"{number}.png", photo(RED)) for number in range(9)])
    expect(page.get_by_role("status").first).to_have_text("9 photos classified")
    page.get_by_role("button", name="Clear photos").click()
    expect(page.locator("#results > li")).to_have_count(0)
    expect(page.get_by_role("status").first).to_have_text("")
    expect(page.locator("#files")).to_be_focused()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_photos_can_be_dropped_anywhere_or_pasted(page: Page, kind: str) -> None:
    page.evaluate(
        """([kind, bytes]) => {
            const data = new DataTransfer();
            for (const name of ["one.png", "two.png"]) {
                data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            }
            const options = { bubbles: true, cancelable: true };
            const event = kind === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: data })
                : new ClipboardEvent("paste", { ...options, clipboardData: data });
            document.querySelector("h1").dispatchEvent(event);
        }""",
        [kind, list(photo(GREEN))],
    )
    expect(page.locator("#results .predictions")).to_have_count(2)
    expect(card(page, 1).get_by_role("heading")).to_have_text("two.png")


# Errors


def test_a_bad_image_shows_the_error_and_the_others_are_classified(page: Page) -> None:
    damaged = file("damaged.png", photo(RED)[:60])
    choose(page, damaged, file("notes.txt", b"no image"), file("good.png", photo(RED)))
    expect(page.get_by_role("status").first).to_have_text("1 photo classified, 2 failed")
    expect(card(page, 0).locator(".problem")).to_have_text(re.compile("cannot be decoded"))
    expect(card(page, 1).locator(".problem")).to_have_text("not a JPEG, PNG or WebP image")
    expect(card(page, 2).locator(".label").first).to_have_text("red")


def test_a_photo_can_be_tried_again(page: Page) -> None:
    page.route("**/classify?*", lambda route: route.abort())
    choose(page, file("a.png", photo(RED)))
    expect(card(page).locator(".problem")).to_have_text(re.compile("cannot be reached"))
    page.unroute("**/classify?*")
    page.get_by_role("button", name="Try again").click()
    expect(card(page).locator(".label").first).to_have_text("red")
    expect(card(page)).to_be_focused()


def test_hostile_and_long_names_are_only_text(browser: Browser, tmp_path: Path) -> None:
    labels = [HOSTILE, LONG, *list(CLASSES)[2:]]
    counts = [count for _, count in CLASSES.values()]
    renamed = classes_from(labels, labels, counts, Thresholds(), [None] * len(labels))
    bundle = write_bundle(tmp_path / "bundle", classes=renamed)
    with running(bundle) as client, opened(browser, client) as page:
        page.set_viewport_size({"width": 320, "height": 700})
        choose(page, file(f"{HOSTILE.replace('/', '')}.png", photo(RED)), file(LONG, photo(GREEN)))
        expect(card(page, 0).locator(".label").first).to_have_text(HOSTILE)
        expect(card(page, 0).get_by_role("heading")).to_have_text(f"{HOSTILE}.png")
        expect(card(page, 1).locator(".label").first).to_have_text(LONG.strip())
        assert sideways(page) == 0
        show_tail(page)
        expect(page.get_by_role("row", name=HOSTILE)).to_be_visible()
        assert sideways(page) == 0
        assert page.locator("img[src=x]").count() == 0


def test_a_replay_is_a_page_of_its_own(browser: Browser, tmp_path: Path) -> None:
    labels = [HOSTILE, "</script><script>alert(1)</script>", *list(CLASSES)[2:]]
    counts = [count for _, count in CLASSES.values()]
    renamed = classes_from(labels, labels, counts, Thresholds(), [None] * len(labels))
    bundle = write_bundle(tmp_path / "bundle", classes=renamed)
    write_confusion(bundle, {})
    past, report = tmp_path / "past.csv", tmp_path / "tail.html"
    rows = [[label, "0.9"] for label in labels[:-1] * 400]
    with past.open("w", newline="") as lines:
        csv.writer(lines).writerows([["label", "confidence"], *rows])
    arguments = ["watch", str(bundle), str(past), "--reference", "uniform", "--html", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    complaints: list[str] = []
    with browser.new_context(reduced_motion="reduce", offline=True) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(report.as_uri())
        expect(page.locator("#tail-window")).to_contain_text("2,400 predictions against")
        expect(page.locator("#silent")).to_contain_text("black")
        expect(page.locator("#silent")).to_contain_text("found after")
        expect(page.get_by_role("row", name=HOSTILE)).to_be_visible()
        expect(page.get_by_text("1970")).to_have_count(0)
        page.get_by_label("Label contains").fill("alert")
        expect(page.locator("#classes tbody tr")).to_have_count(1)
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert sideways(page) == 0
            assert violations(page) == []
    assert complaints == []


def test_classes_are_named_below_the_chart_as_far_as_there_is_room(page: Page) -> None:
    show_tail(page)
    expect(page.locator("#chart .name")).to_have_text(list(CLASSES))

    def stand_apart() -> bool:
        ends = page.locator("#chart .name").evaluate_all(
            "all => all.map((name) => name.getBoundingClientRect().right)"
        )
        return all(right - left >= 16 for left, right in itertools.pairwise(ends))

    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        until(stand_apart)  # The chart is drawn again after the page has its new size.


# Keys


@pytest.fixture(scope="module")
def guarded(known: Path) -> Iterator[httpx.Client]:
    with running(known, keys=KEY) as client:
        yield client


def test_a_key_is_requested_if_needed_and_kept_in_the_tab(
    browser: Browser, guarded: httpx.Client
) -> None:
    with opened(browser, guarded) as page:
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog.get_by_label("Key")).to_be_focused()
        expect(dialog.get_by_role("alert")).to_be_hidden()
        page.keyboard.type("not-the-right-key-at-all")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text(re.compile("not one of those"))
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#model")).to_have_text(re.compile("^palette"))
        choose(page, file("a.png", photo(RED)))
        expect(card(page).locator(".label").first).to_have_text("red")
        page.reload()
        expect(page.locator("#model")).to_have_text(re.compile("^palette"))
        expect(dialog).to_be_hidden()
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


def test_without_a_key_the_page_says_what_is_missing(
    browser: Browser, guarded: httpx.Client
) -> None:
    with opened(browser, guarded, "#tail") as page:
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#model-problem")).to_have_text(re.compile("send an API key"))
        expect(page.locator("#tail-problem")).to_have_text(re.compile("send an API key"))
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="API key").click()
        dialog.get_by_label("Key").fill(KEY)
        dialog.get_by_role("button", name="Use key").click()
        expect(page.locator("#model")).to_have_text(re.compile("^palette"))
        expect(page.get_by_role("heading", name="Silent classes")).to_be_visible()


# The tail


def test_silent_and_drifting_classes_are_marked_and_listed(page: Page) -> None:
    show_tail(page)
    silent = page.get_by_role("region", name="Silent classes").get_by_role("listitem")
    expect(silent).to_have_count(1)
    expect(silent).to_have_text(re.compile(r"^black.*silent.*few.*predicted 0, expected \d"))
    drifting = page.get_by_role("region", name="Drifting classes").get_by_role("listitem")
    expect(drifting.first).to_have_text(re.compile("^red.*more.*many"))
    for kind in ("silent", "more"):
        drawing = page.locator(f"#chart .mark.{kind}").get_attribute("d")
        assert (drawing or "").count("M") == 1
    expect(page.get_by_role("row", name="black").get_by_text("silent")).to_be_visible()
    groups = page.get_by_role("list", name="Groups").get_by_role("listitem")
    expect(groups).to_have_count(3)
    expect(groups.nth(2)).to_have_text(re.compile("few.*2 classes.*expected.*Prevalence.*Silent"))


def test_labels_that_came_back_are_shown_for_all_photos_and_by_group(
    browser: Browser, bundle: Path
) -> None:
    signer = Signer([KEY.encode()])
    with running(bundle, feedback_key=KEY) as client, opened(browser, client) as page:
        show_tail(page)
        expect(page.get_by_text("came back")).to_be_hidden()
        answer = client.post("/classify", content=new_photo(RED)).raise_for_status().json()
        version = signer.read(answer["results"][0]["id"]).version
        sent = [
            {
                "id": signer.sign(PredictionId(version, index, 0.99, "few", None, probability)),
                "label": label,
            }
            for index, label, probability, labels in ((0, "red", 0.0, 2), (6, "white", 1.0, 20))
            for _ in range(labels)
        ]
        client.post("/feedback", json={"labels": sent}).raise_for_status()
        page.reload()
        show_tail(page)
        expect(page.locator("#tail-labels")).to_have_text(
            re.compile(
                "22 labels came back, 20 .*live accuracy: 0 % .0.0 to 1.*none.*: 0".replace(
                    " ", r"\s"
                )
            )
        )
        groups = page.get_by_role("list", name="Groups").get_by_role("listitem")
        expect(groups.nth(0)).to_have_text(re.compile(r"Labels2, 0 sampled.*recalltoo few \(0\)"))
        expect(groups.nth(1)).not_to_have_text(re.compile("Labels"))
        expect(groups.nth(2)).to_have_text(re.compile(r"Labels20, 20 sampled.*not right any more"))
        assert violations(page) == []


def test_the_tail_is_updated_only_while_it_is_visible(page: Page, service: httpx.Client) -> None:
    page.clock.install()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    looks: Callable[[], int] = lambda: sum(url.endswith("/classes") for url in requests)  # noqa: E731
    page.clock.fast_forward(60_000)
    assert looks() == 0
    show_tail(page)
    row = page.get_by_role("row", name="cyan").get_by_role("cell")
    before = int(row.nth(2).inner_text())
    feed(service, {"cyan": 1})
    with page.expect_response("**/classes"):
        page.clock.fast_forward(PAUSE)
    expect(row.nth(2)).to_have_text(str(before + 1))
    page.get_by_role("button", name="Pause updates").click()
    seen = looks()
    page.clock.fast_forward(60_000)
    assert looks() == seen
    with page.expect_response("**/classes"):
        page.get_by_role("button", name="Pause updates").click()
    page.get_by_role("tab", name="Photos").click()
    seen = looks()
    page.clock.fast_forward(60_000)
    assert looks() == seen


def test_a_failure_is_shown_in_place_and_the_last_state_stays(page: Page) -> None:
    page.clock.install()
    show_tail(page)
    detail = {"detail": "the service is shutting down"}
    page.route("**/classes", lambda route: route.fulfill(status=503, body=json.dumps(detail)))
    page.clock.fast_forward(PAUSE)
    expect(page.locator("#tail-problem")).to_have_text(detail["detail"])
    expect(page.get_by_role("row", name="black")).to_be_visible()
    page.unroute("**/classes")
    page.clock.fast_forward(PAUSE)
    expect(page.locator("#tail-problem")).to_be_hidden()


def test_every_class_can_be_read_from_the_chart_by_keyboard(page: Page) -> None:
    show_tail(page)
    scrub = page.get_by_role("slider", name="Class by frequency")
    scrub.focus()
    page.keyboard.press("End")
    expect(scrub).to_have_attribute("aria-valuetext", re.compile("^black: few, 5 training photos"))
    expect(page.locator("#reading")).to_have_text(re.compile("never seen; silent$"))
    page.keyboard.press("ArrowLeft")
    expect(scrub).to_have_attribute("aria-valuetext", re.compile("^white: few"))
    page.locator("#chart").hover(position={"x": 60, "y": 100})
    expect(page.locator("#reading")).to_have_text(re.compile("^red: many"))


def test_the_table_can_be_sorted_and_searched(page: Page) -> None:
    show_tail(page)
    labels = page.locator("#classes tbody th")
    expect(labels).to_have_text(list(CLASSES))
    heading = page.get_by_role("columnheader", name="Class")
    heading.get_by_role("button").click()
    expect(labels).to_have_text(sorted(CLASSES))
    expect(heading).to_have_attribute("aria-sort", "ascending")
    heading.get_by_role("button").click()
    expect(labels).to_have_text(sorted(CLASSES, reverse=True))
    page.get_by_label("Label contains").fill("BL")
    expect(labels).to_have_text(["blue", "black"])
    page.get_by_role("search").get_by_label("Group").select_option("few")
    expect(labels).to_have_text(["black"])
    page.get_by_label("Label contains").fill("nothing")
    expect(page.locator("#page-number")).to_have_text("0 classes")


def test_thousands_of_classes_stay_a_small_page(page: Page, service: httpx.Client) -> None:
    answer = service.get("/classes").json()
    own, size = answer["classes"], 8_142
    answer["classes"] = [
        own[index % len(own)] | {"label": f"class {index}", "count": size - index}
        for index in range(size)
    ]
    page.route("**/classes", lambda route: route.fulfill(json=answer))
    show_tail(page)
    silent = sum(info["live"]["silent"] for info in answer["classes"])
    assert silent == size // len(own)
    marks = page.locator("#chart .mark.silent").get_attribute("d") or ""
    assert marks.count("M") == silent
    expect(page.locator("#silent")).to_contain_text(f"and {silent - 12:,} more in the table")
    expect(page.locator("#classes tbody tr")).to_have_count(50)
    expect(page.locator("#page-number")).to_have_text("1 to 50 of 8,142 classes")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#page-number")).to_have_text("51 to 100 of 8,142 classes")
    assert page.evaluate("document.querySelectorAll('*').length") < 2_500


# Accessibility


def test_tabs_can_be_used_by_keyboard_and_have_addresses(page: Page, service: httpx.Client) -> None:
    photos, tail = (page.get_by_role("tab", name=name) for name in ("Photos", "Tail"))
    photos.focus()
    page.keyboard.press("ArrowRight")
    expect(tail).to_be_focused()
    expect(tail).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("tabpanel", name="Tail")).to_be_visible()
    expect(page.get_by_role("tabpanel", name="Photos")).to_be_hidden()
    assert page.url.endswith("#tail")
    page.keyboard.press("ArrowRight")
    expect(photos).to_be_focused()
    page.keyboard.press("End")
    expect(tail).to_be_focused()
    page.keyboard.press("Home")
    expect(photos).to_be_focused()
    expect(tail).to_have_attribute("tabindex", "-1")
    page.goto(f"{service.base_url}#tail")
    expect(page.get_by_role("tabpanel", name="Tail")).to_be_visible()


def test_photos_can_be_chosen_by_keyboard(page: Page) -> None:
    page.on("filechooser", lambda chooser: chooser.set_files([file("a.png", photo(RED))]))
    page.get_by_role("tab", name="Photos").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    outline = page.locator("#drop").evaluate("drop => getComputedStyle(drop).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(card(page).locator(".label").first).to_have_text("red")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_the_page_has_no_accessibility_violations(page: Page, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    choose(page, file("a.png", photo(RED)), file("bad.png", b"bad"))
    expect(page.get_by_role("status").first).to_have_text("1 photo classified, 1 failed")
    assert violations(page) == []
    assert sideways(page) == 0
    show_tail(page)
    assert violations(page) == []
    assert sideways(page) == 0


def test_the_dialog_has_no_accessibility_violations(
    browser: Browser, guarded: httpx.Client
) -> None:
    with opened(browser, guarded) as page:
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page) == []


def violations(page: Page) -> Sequence[str]:
    """Return the violations of WCAG 2.2 AA and good practice that axe finds."""
    response = Axe().run(page).response
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in response["violations"]
        for node in violation["nodes"]
    ]


def test_dark_and_light_follow_the_system(page: Page) -> None:
    def back() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    page.emulate_media(color_scheme="light")
    light = back()
    page.emulate_media(color_scheme="dark")
    assert sum(map(int, re.findall(r"\d+", back()))) < 150
    assert sum(map(int, re.findall(r"\d+", light))) > 650


# Files


def test_every_part_is_revalidated_and_has_a_relative_address(service: httpx.Client) -> None:
    first = service.get("/")
    assert first.headers["content-type"].startswith("text/html")
    parts = re.findall(r'(?:href|src)="(page/[^"]+)"', first.text)
    assert len(parts) == 3
    for part in parts:
        answer = service.get(f"/{part}")
        assert answer.headers["cache-control"] == "no-cache"
        again = service.get(f"/{part}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert re.findall(r'(?:href|src)="(?:/|\w+:)', first.text) == []
    assert re.findall(r"<script[^>]*>[^<]|style=|\son\w+=", first.text) == []


def test_no_other_file_of_the_package_is_served(service: httpx.Client) -> None:
    for path in ("/page/__init__.py", "/page/../app.py", "/page/%2e%2e/__init__.py", "/page/"):
        assert service.get(path).status_code == 404


# Versions

ADMIN_KEY = "an-admin-key-of-the-tests"


@pytest.fixture
def store(tmp_path: Path, known: Path) -> VersionStore:
    """A store with champion 1, a sound version 2, and a version 3 that is damaged."""
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(known))
    store.add(write_bundle(tmp_path / "second", name="second"), note="more <b>hats</b>")
    damaged = store.path(store.add(write_bundle(tmp_path / "third", name="third"))) / "golden.npz"
    damaged.unlink()
    damaged.write_bytes(b"damaged")
    return store


@pytest.fixture
def versioned(store: VersionStore, tmp_path: Path) -> Iterator[httpx.Client]:
    keys = tmp_path / "admin.keys"
    keys.write_text(ADMIN_KEY)
    with serving(Engine(read_settings(store=store.folder, port=0, admin_keys_file=keys))) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_versions_are_promoted_and_rolled_back_and_a_refusal_has_its_reason(
    browser: Browser, versioned: httpx.Client, store: VersionStore
) -> None:
    def use(page: Page, key: str) -> None:
        page.locator("#admin input").fill(key)
        page.get_by_role("button", name="Show versions").click()

    with opened(browser, versioned) as page:
        page.get_by_role("tab", name="Versions").click()
        news, listed = page.locator("#versions-news"), page.locator("#versions-list > li")
        use(page, "a-wrong-key-of-the-tests")
        expect(page.locator("#versions-problem")).to_contain_text("not one of those")
        use(page, ADMIN_KEY)
        expect(news).to_have_text("Version 1 answers.")
        expect(listed).to_have_count(3)
        expect(listed.nth(1)).to_contain_text("more <b>hats</b>")
        assert violations(page) == []
        page.locator("#because").fill("a try")
        page.get_by_role("button", name="Promote 3").click()
        expect(listed.nth(2).locator(".problem")).to_contain_text("its hash differs")
        expect(news).to_have_text("Version 1 answers.")
        page.get_by_role("button", name="Promote 2").click()
        expect(news).to_have_text("Version 2 answers.")
        page.get_by_role("button", name="Roll back").click()
        expect(news).to_have_text("Version 1 answers.")
        store.challenge(Challenger(version=2, shadow=Shadow()))
        expect(listed.nth(1)).to_contain_text("alone is right 0 times, the champion 0: undecided")
    assert store.roles().champion == 1
    assert [line.version for line in store.log() if line.action == "refused"] == [3]


def test_without_a_store_there_is_no_tab_for_versions(page: Page) -> None:
    expect(page.locator("#model")).not_to_be_empty()
    expect(page.get_by_role("tab")).to_have_count(2)
