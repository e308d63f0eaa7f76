"""The service does what its own description says: requests drawn from it, good and bad ones."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.schemas import BaseSchema

from tests.support.palette import CLASSES, photo

INFERENCE = ["POST /classify", "POST /confidence"]
QUESTIONS = [f"GET /{name}" for name in ("classes", "model", "healthz", "readyz", "metrics")]

# A proxy that the environment names is not for this machine's own address.
NO_PROXY = {"http": "", "https": ""}
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


for kind in ("jpeg", "png", "webp"):
    images = st.sampled_from([photo(colour, kind) for colour, _ in CLASSES.values()])
    schemathesis.openapi.media_type(f"image/{kind}", images | st.binary(max_size=100))


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> BaseSchema:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=str(client.base_url))
    return schema


def test_every_route_is_described(description: BaseSchema) -> None:
    described = {one.ok().label for one in description.get_all_operations()}
    assert described >= {*INFERENCE, *QUESTIONS}
    assert not described - {*INFERENCE, *QUESTIONS} - {"GET /classes/{label}"}


@pytest.mark.parametrize("label", [*INFERENCE, *QUESTIONS])
def test_a_request_as_described_gets_a_described_answer(
    description: BaseSchema, label: str
) -> None:
    assert 200 in conforming_statuses(description, label, GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", INFERENCE)
def test_any_other_request_gets_a_described_answer_too(description: BaseSchema, label: str) -> None:
    assert 400 in conforming_statuses(description, label, GenerationMode.NEGATIVE)


def conforming_statuses(description: BaseSchema, label: str, mode: GenerationMode) -> set[int]:
    """The statuses of many answers, all of which passed every check."""
    statuses = set()
    method, path = label.split()
    cases = description[path][method].as_strategy(generation_mode=mode)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def conforms(case: schemathesis.Case) -> None:
        response = case.call_and_validate(checks=CHECKS, proxies=NO_PROXY)
        statuses.add(response.status_code)

    conforms()
    return statuses
