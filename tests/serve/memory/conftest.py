"""A Valkey (or Redis) of a test's own on a Unix socket."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")


class Valkey:
    """A server process; `address` is for the setting `state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "valkey"
        self.address = f"unix://{self.socket}"
        self.start()

    def start(self, *options: str) -> None:
        assert SERVER
        where = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen([SERVER, *where, *options], stdout=subprocess.DEVNULL)
        for _ in range(500):
            if self.socket.exists():
                return
            time.sleep(0.01)
        raise TimeoutError("the server did not start")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    if not SERVER:
        pytest.skip("needs valkey-server or redis-server")
    pytest.importorskip("redis", reason="needs redis: pip install 'jingyin[state]'")
    server = Valkey(tmp_path_factory.mktemp("v"))
    yield server
    server.stop()
