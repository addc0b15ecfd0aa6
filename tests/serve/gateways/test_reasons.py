"""Filters know every reason that the service gives: another would count as no verdict."""

import json
from importlib.resources import files

from jingyin.serve.gateways import kannel
from jingyin.serve.gateways.smpp import judge


def test_filters_know_the_reasons_of_the_service() -> None:
    described = json.loads(files("jingyin.serve.http").joinpath("openapi.json").read_text(encoding="utf-8"))
    reasons = described["components"]["schemas"]["Result"]["properties"]["reason"]["enum"]
    assert set(reasons) == set(kannel.REASONS) == set(judge.REASONS)
