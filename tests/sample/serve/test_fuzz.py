"""Requests that schemathesis makes up from the server's own description: none makes it fail."""

import contextlib
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from unclip_sample.serve.drawing import Easel

SETTINGS = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
THRIFTY = {
    "n": 1,
    "size": "64x64",
    **{f"{stage}steps": 1 for stage in ("", "prior_", "upsampler_256_", "upsampler_1024_")},
}


class ThriftyEasel(Easel):
    """Draws whatever is asked for, in few steps and pixels."""

    def orders(self, asked, pictures, seed):
        """Check what is asked for, then draw a small one."""
        self.size_of(asked)
        return super().orders(asked.model_copy(update=THRIFTY), pictures, seed)


@pytest.fixture(scope="module")
def description(serve, make_pipe):
    """The description of a server that draws little."""
    with serve(make_pipe()) as running:
        running.server.easel = ThriftyEasel(running.server.easel.pipe, {})
        running.server.check_model = lambda name: None  # else most would end there
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


@pytest.mark.slow
def test_no_made_up_request_makes_the_server_fail(description, figure):
    statuses = Counter()

    def answer(case):
        told = case.call(timeout=60)
        statuses[told.status_code // 100] += 1
        case.validate_response(told, checks=CHECKS)

    names = []
    for found in description.get_all_operations():
        operation = found.ok()
        names.append(operation.label)
        for mode in GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)
            with contextlib.suppress(Unsatisfiable):  # where nothing can be wrong
                SETTINGS(given(strategy)(answer))()
    figure("R26", f"made-up requests: {dict(statuses)} of {len(names)} operations, no failure")
    assert len(names) == 10 and not statuses[5] and statuses[2] and statuses[4]
