"""Who may ask what: keys, addresses, and a key file that changes."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.http.http_fakes import serving


def line(name: str, key: str, *words: str) -> str:
    return " ".join([name, sha256(key.encode()).hexdigest(), *words]) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A key file with one key, and one that may reload."""
    file = tmp_path / "keys.txt"
    file.write_text("# ours\n" + line("gateway", "one") + line("ops", "two", "admin"))
    return file


async def ask(client: httpx.AsyncClient, key: str | None, route: str = "/v1/score", method: str = "POST") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return (await client.request(method, route, json={"text": ""}, headers=headers)).status_code


async def test_a_key_is_wanted_and_for_a_reload_one_of_an_admin(path: Path) -> None:
    async with serving(keys=path) as (client, _):
        scored = [await ask(client, key) for key in (None, "no", "one", "two")]
        assert scored == [401, 401, 200, 200]
        assert [await ask(client, key, "/admin/reload") for key in (None, "one", "two")] == [401, 403, 202]


async def test_no_spelling_of_a_path_is_a_way_around_the_keys(path: Path) -> None:
    names = ("/v1/score", *(f"/admin/{name}" for name in ("reload", "known", "overview", "senders", "trial")), "/other")
    async with serving(keys=path) as (client, _):
        routes = [name + end for name in names for end in ("%0A", "/", "%00", "/x%0A")]
        assert {await ask(client, None, each, m) for each in routes for m in ("GET", "POST", "DELETE")} == {401}


async def test_a_line_break_behind_a_path_makes_it_another(path: Path) -> None:
    async with serving(keys=path) as (client, _):
        for route in ("/v1/score%0A", "/admin/reload%0A", "/admin/known%0A"):
            assert await ask(client, "two", route) == 404
        assert await ask(client, None, "/readyz%0A", "GET") == 401


async def test_what_an_admin_does_is_logged_with_the_key(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(keys=path) as (client, _):
        await ask(client, "two", "/admin/reload")
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["route"], line["key"], line["status"]) == ("admin", "/admin/reload", "ops", 202)


@pytest.mark.parametrize(
    ("content", "event", "status"),
    [
        (line("new", "one"), "keys_read", 200),
        (line("new", "three"), "keys_read", 401),
        ("", "keys_gone", 401),
        ("# none yet\n", "keys_gone", 401),
        (None, "keys_gone", 401),
        ("broken", "keys_kept", 200),
        (b"\xff\xfe", "keys_kept", 200),
    ],
    ids=["another name", "another key", "emptied", "remarks only", "deleted", "malformed", "no text"],
)
async def test_a_file_that_changes(
    path: Path, content: str | bytes | None, event: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(keys=path) as (client, service):
        first = await ask(client, "one")
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        service.keys._checked -= 10  # seconds
        then = await ask(client, "one")
        path.write_text(line("again", "one"))
        service.keys._checked -= 10
        assert [first, then, await ask(client, "one")] == [200, status, 200]
    assert f'"event":"{event}"' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("keyed", "flags", "without_a_key"),
    [(True, {"host": "0.0.0.0"}, 401), (True, {}, 200), (False, {"host": "0.0.0.0", "allow_open": True}, 200)],
)
async def test_on_a_public_address_metrics_want_a_key_and_probes_none(
    path: Path, keyed: bool, flags: dict[str, Any], without_a_key: int
) -> None:
    async with serving(keys=path if keyed else None, **flags) as (client, _):
        for route in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert await ask(client, None, route, "GET") == 200
        assert [await ask(client, key, "/metrics", "GET") for key in (None, "one")] == [without_a_key, 200]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/admin/reload", {}, 415),
        ("/admin/reload", {"content-type": "text/plain"}, 415),
        ("/admin/reload", {"content-type": "application/json"}, 202),
        ("/admin/reload", {"content-type": "application/json", "origin": "http://evil.example"}, 403),
        ("/admin/reload", {"content-type": "application/json", "origin": "null"}, 403),
        ("/admin/reload", {"content-type": "application/json", "origin": "http://x"}, 202),
        ("/admin/reload", {"content-type": "application/json", "host": "evil.example:8080"}, 403),
        ("/admin/reload", {"content-type": "application/json", "host": "127.0.0.1:8080"}, 202),
        ("/v1/score", {"origin": "http://evil.example"}, 403),
        ("/v1/score", {"host": "evil.example"}, 403),
        ("/v1/score", {"host": "localhost:8080"}, 200),
    ],
)
async def test_no_page_of_another_site_reaches_the_service(path: str, headers: dict[str, str], status: int) -> None:
    async with serving() as (client, _):
        assert (await client.post(path, content=b'{"text": ""}', headers=headers)).status_code == status
