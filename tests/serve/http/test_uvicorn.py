"""The parts of uvicorn that are subclassed or reached into, and the bound on its version: both change together."""

import asyncio
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import uvicorn
from tests.serve.http.http_fakes import InThread, post, receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

pytestmark = pytest.mark.service

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_only_minor_versions_that_were_tried_are_installed() -> None:
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (wanted,) = [each for each in extras["serve"] if each.startswith("uvicorn")]
    bound = wanted.rpartition(",<")[2]
    assert tuple(map(int, version("uvicorn").split(".")[:2])) < tuple(map(int, bound.split(".")))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("eof_received", ["self"]),
        ("on_message_begin", ["self"]),
        ("on_headers_complete", ["self"]),
        ("on_body", ["self", "body"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("on_url", ["self", "url"]),
        ("on_header", ["self", "name", "value"]),
    ],
)
def test_methods_of_the_protocol(name: str, wanted: list[str]) -> None:
    assert parameters(getattr(HttpToolsProtocol, name)) == wanted


def test_methods_of_the_server() -> None:
    assert parameters(uvicorn.Server.startup) == parameters(uvicorn.Server.shutdown) == ["self", "sockets"]
    assert parameters(uvicorn.Server.handle_exit) == ["self", "sig", "frame"]
    server = uvicorn.Server(uvicorn.Config("none"))
    assert (server.should_exit, server.force_exit) == (False, False)
    assert isinstance(server.server_state, ServerState)


def test_attributes_of_a_connection_and_of_a_request_under_way() -> None:
    with InThread() as server, server.connect() as connection:
        connection.sendall(post({"text": "慢" * 300}))
        while not server.server.server_state.tasks:
            pass
        (protocol,) = server.server.server_state.connections
        assert isinstance(protocol, HttpToolsProtocol)
        assert isinstance(protocol.cycle, RequestResponseCycle)
        cycle = protocol.cycle
        assert (cycle.more_body, cycle.response_started, cycle.response_complete, cycle.keep_alive) == (
            False, False, False, True,
        )  # fmt: skip
        assert protocol.url == b"/v1/score"
        assert protocol.headers[0] == (b"host", b"x")
        assert protocol.scheme == "http"
        assert protocol.timeout_keep_alive == 5
        assert protocol.tasks is server.server.server_state.tasks
        assert protocol.connections is server.server.server_state.connections
        assert isinstance(protocol.loop, asyncio.AbstractEventLoop)
        assert callable(protocol.flow.pause_reading)
        assert callable(protocol.flow.resume_reading)
        assert callable(getattr(protocol.parser, "get_method", None))
        assert all(each.is_serving() for each in server.server.servers)
        receive(connection)
