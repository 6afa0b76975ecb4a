"""The server keeps what its OpenAPI document says: schemathesis asks it, from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from scripted_engine import ScriptedEngine

schemathesis = pytest.importorskip("schemathesis")


def test_answers_are_as_the_document_says(serve: Callable[..., Any]) -> None:
    running = serve(ScriptedEngine(), timeout=10)
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    asked = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @seed(0)
        @settings(
            max_examples=12,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            # No schema says which bytes are an image: a valid form may still be refused.
            case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance])

        check()
        asked.append(operation.label)
    assert {"POST /v1/chat/completions", "POST /v1/segment", "GET /v1/models"} <= set(asked)
