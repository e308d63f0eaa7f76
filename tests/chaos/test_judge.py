"""The judge of the chaos run finds what it is there to find, in the answers of a real service."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from taillift.models.bundle.classifier import Classifier
from tests.chaos.judge import ON_THE_WAY, Judge
from tests.chaos.kinds import BODY_SECONDS, KINDS, MAX_BODY_BYTES, MAX_IMAGES
from tests.chaos.photos import Photos, colourful, prepare
from tests.chaos.requests import Request, image, images
from tests.chaos.storm import Storm
from tests.chaos.wire import Exchange, Reply, exchange
from tests.support.serving import running

REQUESTS = 150


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.open(bundle)


@pytest.fixture(scope="module")
def photos(classifier: Classifier) -> Photos:
    return prepare(classifier, colourful(40, seed=1), palette=True, seed=1)


@pytest.fixture(scope="module")
def port(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    limits = {"max_images": MAX_IMAGES, "max_body_bytes": MAX_BODY_BYTES}
    queue = tmp_path_factory.mktemp("review")
    with running(bundle, body_seconds=BODY_SECONDS, review_dir=queue, **limits) as client:
        assert client.base_url.port is not None
        yield client.base_url.port


@pytest.fixture
def judge(classifier: Classifier) -> Judge:
    return Judge(classifier.manifest.labels)


def test_photos_have_answers_of_their_own_and_damage_its_problems(photos: Photos) -> None:
    assert len(photos.good) > 10
    assert {one.status for one in photos.foreign} == {415}
    assert [one.status for one in photos.bombs] == [413, 413, 422, 422]
    assert {one.status for one in photos.damaged} <= {200, 413, 415, 422}


def test_every_kind_of_request_is_judged_right(photos: Photos, port: int, judge: Judge) -> None:
    storm = Storm(photos, port, judge, "test")

    async def one_of_each_and_more() -> None:
        for kind in KINDS:
            await storm.send(kind.__name__, kind(photos, Random(0)), "first")
        await storm.blow(lambda number: number < REQUESTS)

    asyncio.run(one_of_each_and_more())
    assert [line for tally in storm.tallies.values() for line in tally.wrong] == []
    assert storm.count == REQUESTS + len(KINDS)


def test_an_answer_to_another_image_is_found(photos: Photos, port: int, judge: Judge) -> None:
    first, second = photos.good[:2]
    request = image(first, Random(0))
    assert "another" in found(replace(request, photos=[second]), port, judge)
    two = images([first, second], Random(0))
    assert found(two, port, judge) == ""
    assert "image 0" in found(replace(two, photos=[second, first]), port, judge)
    assert "1 results for 2" in found(replace(request, photos=[first, second]), port, judge)


def test_a_wrong_status_is_found(photos: Photos, port: int, judge: Judge) -> None:
    request = image(photos.good[0], Random(0))
    refused = replace(request, statuses=frozenset({415}), photos=())
    assert "status 200, not {415}" in found(refused, port, judge)
    damaged = image(photos.foreign[0], Random(0))
    assert "status 415" in found(replace(damaged, statuses=frozenset({200})), port, judge)


def found(request: Request, port: int, judge: Judge) -> str:
    return judge.wrong(request, asyncio.run(exchange(request, port))) or ""


def test_what_is_lost_is_found(photos: Photos, judge: Judge) -> None:
    request = image(photos.good[0], Random(0))
    assert "lost: nothing came" in (judge.wrong(request, Exchange(trouble="nothing came")) or "")
    gone = replace(request, leave="before the answer")
    assert judge.wrong(gone, Exchange()) is None


@pytest.mark.parametrize("reply", [None, Reply(503, {}, b"")])
def test_only_what_came_around_the_stop_may_be_turned_away(
    judge: Judge, reply: Reply | None
) -> None:
    def turned_away(began: float, sent: float | None, ended: float) -> bool:
        return judge.turned_away(Exchange(sent, reply, began=began, ended=ended))

    assert not turned_away(0, 0, 1)
    judge.stopped, judge.back = 100, 110
    assert turned_away(105, 105, 106)
    assert turned_away(99, None, 101)
    assert turned_away(99, 100 - ON_THE_WAY / 2, 101)
    assert not turned_away(99, 100 - 2 * ON_THE_WAY, 101)
    assert not turned_away(98, 98, 99)
    assert not turned_away(111, 111, 112)
