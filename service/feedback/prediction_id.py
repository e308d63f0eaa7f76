"""Signed ids of predictions, from which the service knows its own answers when labels come back.

An id is 26 bytes in base64url: what was answered, in 18 bytes, and the first 8 of their HMAC-SHA256
(RFC 2104). Nothing is kept for it, and nothing in it is personal.
"""

import hmac
import os
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, log2
from time import time as now
from typing import Final, Literal

from taillift.models.bundle.review import Decision
from taillift.models.bundle.schema import GROUPS, Group

FORMAT: Final = 1
# Format, version, class, confidence, group and decision, inclusion probability, time, nonce.
PAYLOAD: Final = struct.Struct(">BHHHBHI4s")
SIGNATURE_BYTES: Final = 8
ID_BYTES: Final = PAYLOAD.size + SIGNATURE_BYTES
ID_CHARACTERS: Final = 35
NONCE_BYTES: Final = 4

# Of versions, classes and whatever else has two bytes; as large as the largest number in them.
MAX_SHORT: Final = 2**16 - 1
DECISIONS: Final[tuple[Decision | None, ...]] = (None, "accept", "review")
# Inclusion probabilities have a logarithmic scale of so many steps for each factor of 2.
STEPS: Final = 2048
LEAST_PROBABILITY: Final = 2 ** (-(MAX_SHORT - 1) / STEPS)

DAY_SECONDS: Final = 86_400


class ForgedIdError(ValueError):
    """Text that none of the keys has signed."""


class ExpiredIdError(ValueError):
    """A signed id of a prediction that is too old."""


@dataclass(frozen=True, slots=True)
class PredictionId:
    """An answer to one image, as its id carries it.

    `version` is 0 to 65,535 (see `version_code`), `label` the index of the answer's class in that
    version, `group` the group of this class. `probability` is that with which the image was chosen
    for labelling; 0 says that it was not chosen. `time` is in seconds since 1970. An id keeps
    `confidence` to 1/65,535, and `probability` to 0.02 % of itself if it is at least
    `LEAST_PROBABILITY` (smaller ones become this).
    """

    version: int
    label: int
    confidence: float
    group: Group
    decision: Decision | None = None
    probability: float = 0.0
    time: int = field(default_factory=lambda: int(now()))
    nonce: bytes = field(default_factory=lambda: os.urandom(NONCE_BYTES))

    @property
    def kind(self) -> Literal["sampled", "volunteered"]:
        """Sampled if the image was chosen for labelling with a known probability."""
        return "sampled" if self.probability else "volunteered"

    def to_bytes(self) -> bytes:
        """Return the 18 bytes that are signed; raises `struct.error` if a number does not fit."""
        return PAYLOAD.pack(
            FORMAT,
            self.version,
            self.label,
            round(self.confidence * MAX_SHORT),
            GROUPS.index(self.group) | DECISIONS.index(self.decision) << 4,
            probability_code(self.probability),
            self.time,
            self.nonce,
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> "PredictionId":
        """Return what `to_bytes` has packed; raises `ValueError` if it did not pack this."""
        code, version, label, confidence, words, probability, time, nonce = PAYLOAD.unpack(payload)
        group, decision = words & 15, words >> 4
        if code != FORMAT or group >= len(GROUPS) or decision >= len(DECISIONS):
            raise ValueError(f"prediction ids of format {code} are not known")
        return cls(
            version,
            label,
            confidence / MAX_SHORT,
            GROUPS[group],
            DECISIONS[decision],
            probability_of(probability),
            time,
            nonce,
        )


class Signer:
    """A maker and checker of ids: signs with the first key, and takes those of every key."""

    def __init__(
        self, keys: Sequence[bytes], days: float = inf, clock: Callable[[], float] = now
    ) -> None:
        """An id expires after `days`. Raises `ValueError` if there is no key."""
        if not keys:
            raise ValueError("ids cannot be signed without a key")
        self._keys = tuple(keys)
        self._seconds = days * DAY_SECONDS
        self._clock = clock

    def sign(self, prediction: PredictionId) -> str:
        """Return the id of a prediction, 35 characters."""
        payload = prediction.to_bytes()
        return id_text(payload + signature(self._keys[0], payload))

    def read(self, text: str) -> PredictionId:
        """Return what an id says; raises `ForgedIdError` or `ExpiredIdError`."""
        raw = id_bytes(text)
        payload, sent = raw[: PAYLOAD.size], raw[PAYLOAD.size :]
        if not any(hmac.compare_digest(signature(key, payload), sent) for key in self._keys):
            raise ForgedIdError("no key of this service has signed the id")
        try:
            prediction = PredictionId.from_bytes(payload)
        except ValueError as error:
            raise ForgedIdError(str(error)) from None
        if self._clock() - prediction.time > self._seconds:
            raise ExpiredIdError("the prediction is too old")
        return prediction


def signature(key: bytes, payload: bytes) -> bytes:
    """Return the part of the HMAC that an id carries."""
    return hmac.digest(key, payload, "sha256")[:SIGNATURE_BYTES]


def id_text(raw: bytes) -> str:
    """Return the text of an id's 26 bytes."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def id_bytes(text: str) -> bytes:
    """Return the 26 bytes of an id; raises `ForgedIdError` if `text` is not exactly their text.

    The last character has two bits to spare, and the standard decoder skips foreign characters. So
    several texts would stand for the same bytes.
    """
    try:
        raw = urlsafe_b64decode(text + "=")
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != ID_BYTES or id_text(raw) != text:
        raise ForgedIdError("this text is not a prediction id")
    return raw


def version_code(number: int | None, manifest_version: str) -> int:
    """Return the two bytes that stand for a version in ids.

    It is the number in the store, or the first two bytes of the hash of a single bundle.
    """
    return int(manifest_version[:4], 16) if number is None else number & MAX_SHORT


def probability_code(probability: float) -> int:
    """Return an inclusion probability, 0 to 1, in two bytes: 0 is 0, 65,535 is 1."""
    if probability <= 0:
        return 0
    return min(MAX_SHORT, max(1, MAX_SHORT + round(STEPS * log2(probability))))


def probability_of(code: int) -> float:
    """Return the inclusion probability that two bytes stand for."""
    return 2 ** ((code - MAX_SHORT) / STEPS) if code else 0.0
