"""Filters know every reason that the service gives: another would count as no verdict."""

from typing import get_args

from jingyin.serve.gateways import kannel
from jingyin.serve.gateways.smpp import judge
from jingyin.serve.http.schema import Result


def test_filters_know_the_reasons_of_the_service() -> None:
    reasons = get_args(Result.model_fields["reason"].annotation)
    assert reasons == kannel.REASONS == judge.REASONS
