import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from jingyin.model.errors import ConfigError
from jingyin.serve.http.keys import main, read_keys
from jingyin.serve.settings import Settings, load_settings

REPOSITORY = Path(__file__).parents[3]


def test_flags_before_environment_before_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nqueue: 5000\ndeadline_ms: 7\n")
    monkeypatch.setenv("JINGYIN_SERVE_PORT", "2")
    monkeypatch.setenv("JINGYIN_SERVE_QUEUE", "6000")
    settings = load_settings(path, port=3, queue=None)
    assert (settings.port, settings.queue, settings.deadline_ms) == (3, 6000, 7)


def test_the_example_names_every_setting_with_its_default() -> None:
    path = REPOSITORY / "configs/serve.yaml"
    assert load_settings(path) == Settings()
    named = re.findall(r"^(?:# )?(\w+): ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(Settings.model_fields)


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("prot: 1\ndeadline_ms: soon\n")
    with pytest.raises(ConfigError, match=r"(?s)deadline_ms: .*valid integer.*queue: .*prot: Extra"):
        load_settings(path, queue=0)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"host": "0.0.0.0"}, "host is a public address and there is no key file: set keys, or allow_open"),
        ({"host": "example.org"}, "host is a public address"),
        ({"tls_key": "k"}, "tls_certificate and tls_key go together"),
        ({"tls_client_ca": "c"}, "tls_client_ca needs tls_certificate"),
        ({"bundle_id": "35fd"}, "bundle_id: String should match pattern"),
        ({"drain_seconds": float("inf")}, "drain_seconds: Input should be less than or equal to 3600"),
        ({"block_rate": 1}, "block_rate: Input should be less than 1"),
    ],
)
def test_what_does_not_go_together(flags: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        load_settings(**flags)


@pytest.mark.parametrize("flags", [{"host": "::1"}, {"host": "localhost"}, {"host": "0.0.0.0", "allow_open": True}])
def test_addresses_that_need_no_key(flags: dict[str, Any]) -> None:
    load_settings(**flags)


@pytest.mark.parametrize(
    ("flags", "public"),
    [({}, False), ({"host": "0.0.0.0", "uds": "s"}, False), ({"host": "0.0.0.0", "allow_open": True}, True)],
)
def test_who_can_connect(flags: dict[str, Any], public: bool) -> None:
    assert load_settings(**flags).is_public is public


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("PROT", "1", "unknown settings in the environment: JINGYIN_SERVE_PROT"),
        ("BURST", "risk=1", "are wrong: burst: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: str) -> None:
    monkeypatch.setenv(f"JINGYIN_SERVE_{name}", value)
    with pytest.raises(ConfigError, match=error):
        load_settings()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"[1]", "(Type|Attribute)Error"),
        (b"1", "(Type|Attribute)Error"),
        (b"a: [", "ParserError"),
        (b"\xff", "UnicodeDecodeError"),
        (None, "FileNotFoundError"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes | None, error: str) -> None:
    if content is not None:
        (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"s.yaml can't be read as YAML names with values \({error}\); see configs/"):
        load_settings(tmp_path / "s.yaml")


def test_a_made_key_is_found_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "admin"]) == 0
    made = capsys.readouterr()
    (tmp_path / "keys").write_text(made.out)
    (key,) = read_keys(tmp_path / "keys")
    assert (key.name, key.admin) == ("ops", True)
    assert key.digest.decode() == hashlib.sha256(made.err.strip().encode()).hexdigest()
    assert main([]) == main(["a", "root"]) == main(["a b"]) == 2


@pytest.mark.parametrize("name", ["", "a#b", "#a", "a\n", "a b", "--help"])
def test_a_name_that_the_file_would_not_give_back_gets_no_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert "NAME is one word without #" in written.err


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "holds no key"),
        ("name\n", "line 1 of key file"),
        (f"\nname {'A' * 64}\n", "line 2 of key file"),
        (f"name {'a' * 64} root\n", "line 1 of key file"),
        (None, r"can't be read \(FileNotFoundError\)"),
    ],
)
def test_broken_key_files(tmp_path: Path, content: str | None, error: str) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match=error):
        read_keys(tmp_path / "keys")
