import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from http_fakes import InThread


def test_schemathesis_finds_no_server_error(tmp_path: Path) -> None:
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("schemathesis is not installed")
    with InThread() as server:
        command = [program, "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "not_a_server_error"]
        options = ["--max-examples", "2", "--phases", "fuzzing", "--seed", "1", "--request-timeout", "20"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
