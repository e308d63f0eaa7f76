"""The service does what its OpenAPI description says, for valid and invalid requests from it."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from tests.support.palette import CLASSES, photo

INFERENCE = ["POST /classify", "POST /confidence"]
POSTS = [*INFERENCE, "POST /feedback"]
GETS = [f"GET /{name}" for name in ("classes", "model", "healthz", "readyz", "metrics")]

# Requests to this machine itself do not go through a proxy from the environment.
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
    operations = list(description.get_all_operations())
    described = {operation.ok().label for operation in operations if isinstance(operation, Ok)}
    assert len(described) == len(operations)
    assert described >= {*POSTS, *GETS}
    assert not described - {*POSTS, *GETS} - {"GET /classes/{label}"}


def test_every_route_has_a_group_with_a_name_and_a_summary(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    groups = [group["name"] for group in described["tags"]]
    used = []
    for path in described["paths"].values():
        for operation in path.values():
            used += operation["tags"]
            assert operation["summary"][0].isupper()
    assert list(dict.fromkeys(used)) == groups


@pytest.mark.parametrize("label", [*POSTS, *GETS])
def test_a_request_as_described_gets_a_described_answer(
    description: BaseSchema, label: str
) -> None:
    assert 200 in conforming_statuses(description, label, GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", POSTS)
def test_an_invalid_request_gets_a_described_answer_too(
    description: BaseSchema, label: str
) -> None:
    assert 400 in conforming_statuses(description, label, GenerationMode.NEGATIVE)


def conforming_statuses(description: BaseSchema, label: str, mode: GenerationMode) -> set[int]:
    """Return the statuses of many answers, all of which passed every check."""
    statuses = set()
    method, path = label.split()
    cases = description[path][method].as_strategy(generation_mode=mode)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def conforms(case: "schemathesis.Case[Any]") -> None:
        response = case.call_and_validate(checks=CHECKS, proxies=NO_PROXY)
        statuses.add(response.status_code)

    conforms()
    return statuses
