import subprocess
import sys
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import InThread

pytestmark = [pytest.mark.service, pytest.mark.external, pytest.mark.slow]

CONFIG = """
hooks = "hooks"

[checks.negative_data_rejection]
expected-statuses = [400, 401, 413, 415, 422]  # without this list it takes 413 for a yes

[[operations]]
include-path = "/v2/models/jingyin/infer"
[operations.checks.positive_data_acceptance]
enabled = false  # JSON Schema can't say that a shape goes with the number of messages
"""

# Nor that there are as many conversations as texts. What is added is right, so what is wrong stays wrong.
HOOKS = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    asked = case.body if isinstance(case.body, dict) else {}
    texts, conversations = asked.get("texts"), asked.get("conversations")
    if isinstance(texts, list) and isinstance(conversations, list):
        missing = len(conversations) - len(texts)
        asked["texts"] = texts + [""] * missing
        asked["conversations"] = conversations + [None] * -missing
"""


def test_schemathesis_finds_nothing_with_all_its_checks(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'jingyin[external]'")
    program = Path(sys.executable).with_name("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    options = ["--max-examples", "20", "--seed", "1", "--continue-on-failure", "--no-color"]
    patience = ["--request-timeout", "20", "--suppress-health-check", "all"]
    with InThread() as server:
        command = [program, "run", f"http://127.0.0.1:{server.port}/openapi.json", *options, *patience]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
