"""Prediction ids: what they keep, and that nobody but the service can make or change one."""

import math
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.schema import GROUPS
from taillift.service.feedback.prediction_id import (
    DAY_SECONDS,
    DECISIONS,
    LEAST_PROBABILITY,
    MAX_SHORT,
    ExpiredIdError,
    ForgedIdError,
    PredictionId,
    Signer,
    id_bytes,
    id_text,
    version_code,
)

KEY, OTHER = b"a key of the service", b"a key of somebody else"
NOW = 1_800_000_000
PREDICTION = PredictionId(
    version=3,
    label=17,
    confidence=0.9123,
    group="few",
    decision="review",
    probability=0.037,
    time=NOW,
    nonce=b"\x00\xff\x10\x80",
)


@given(
    st.builds(
        PredictionId,
        version=st.integers(0, MAX_SHORT),
        label=st.integers(0, MAX_SHORT),
        confidence=st.floats(0, 1),
        group=st.sampled_from(GROUPS),
        decision=st.sampled_from(DECISIONS),
        probability=st.just(0.0) | st.floats(LEAST_PROBABILITY, 1),
        time=st.integers(0, 2**32 - 1),
        nonce=st.binary(min_size=4, max_size=4),
    )
)
def test_an_id_keeps_the_prediction(prediction: PredictionId) -> None:
    text = Signer([KEY]).sign(prediction)
    read = Signer([KEY]).read(text)
    assert len(text) == 35
    assert math.isclose(read.probability, prediction.probability, rel_tol=2e-4)
    assert abs(read.confidence - prediction.confidence) <= 0.5 / MAX_SHORT
    assert (
        replace(read, confidence=prediction.confidence, probability=prediction.probability)
        == prediction
    )


def test_the_probabilities_of_a_busy_service_are_kept() -> None:
    """A hundred of 10,000 photos a second are drawn a day, of which some are rare."""
    signer, probability = Signer([KEY]), 100 / (10_000 * DAY_SECONDS) * 0.02
    read = signer.read(signer.sign(replace(PREDICTION, probability=probability)))
    assert math.isclose(read.probability, probability, rel_tol=2e-4)


def test_smaller_probabilities_stay_known_and_none_is_not_sampled() -> None:
    signer = Signer([KEY])
    tiny = signer.read(signer.sign(replace(PREDICTION, probability=1e-30)))
    none = signer.read(signer.sign(replace(PREDICTION, probability=0.0)))
    assert (tiny.probability, tiny.kind) == (LEAST_PROBABILITY, "sampled")
    assert (none.probability, none.kind) == (0.0, "volunteered")


@pytest.mark.parametrize("place", range(35))
def test_an_id_with_another_character_is_forged(place: int) -> None:
    signer = Signer([KEY])
    text = signer.sign(PREDICTION)
    for character in string.printable + "é\0":
        if character != text[place]:
            with pytest.raises(ForgedIdError):
                signer.read(text[:place] + character + text[place + 1 :])


@pytest.mark.parametrize("text", ["", "A", "A" * 35, "=" * 36, "\ud800" * 35, "é" * 35, "A" * 9999])
def test_other_text_is_forged(text: str) -> None:
    with pytest.raises(ForgedIdError):
        Signer([KEY]).read(text)


def test_more_or_fewer_characters_are_forged() -> None:
    signer = Signer([KEY])
    text = signer.sign(PREDICTION)
    for changed in (text[:-1], text + "=", text + "A", " " + text, text + "\n"):
        with pytest.raises(ForgedIdError):
            signer.read(changed)


def test_the_first_key_signs_and_all_are_known() -> None:
    before, during = Signer([KEY]), Signer([OTHER, KEY])
    assert during.read(before.sign(PREDICTION)).label == PREDICTION.label
    assert Signer([OTHER]).read(during.sign(PREDICTION)).label == PREDICTION.label
    with pytest.raises(ForgedIdError):
        before.read(during.sign(PREDICTION))
    with pytest.raises(ValueError, match="without a key"):
        Signer([])


def test_an_id_expires_after_its_days() -> None:
    text = Signer([KEY]).sign(PREDICTION)
    end = NOW + 90 * DAY_SECONDS
    assert Signer([KEY], 90, lambda: end).read(text).time == NOW
    with pytest.raises(ExpiredIdError):
        Signer([KEY], 90, lambda: end + 1).read(text)
    with pytest.raises(ForgedIdError):
        Signer([OTHER], 90, lambda: end + 1).read(text)


def test_a_clock_that_is_behind_does_not_matter() -> None:
    text = Signer([KEY]).sign(PREDICTION)
    assert Signer([KEY], 90, lambda: NOW - 3600).read(text).time == NOW


def test_signed_bytes_of_a_later_format_are_forged() -> None:
    signer = Signer([KEY])
    raw = bytearray(id_bytes(signer.sign(PREDICTION)))
    raw[0] = 2
    later = Signer([KEY])
    from taillift.service.feedback.prediction_id import signature

    with pytest.raises(ForgedIdError, match="format 2"):
        later.read(id_text(bytes(raw[:18]) + signature(KEY, bytes(raw[:18]))))


def test_a_version_is_its_number_or_the_start_of_its_hash() -> None:
    assert version_code(7, "2e5e0123abcd") == 7
    assert version_code(None, "2e5e0123abcd") == 0x2E5E
