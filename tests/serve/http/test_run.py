"""The socket of a server, from its start to its end."""

import socket
from pathlib import Path

from jingyin.serve.http.process import _listening, bind
from jingyin.serve.http.settings import load_settings


def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    with _listening(load_settings(uds=tmp_path / "s")):
        assert (tmp_path / "s").is_socket()
    assert not (tmp_path / "s").exists()


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    settings = load_settings(uds=tmp_path / "s")
    with _listening(settings):
        (tmp_path / "s").unlink()
        successor = bind(settings)
    with successor, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
