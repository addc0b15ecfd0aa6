"""Shared by all tests: a clean environment, and the bundle that the package holds."""

import os

import pytest
from hypothesis import settings

from jingyin import Scorer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("jingyin", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("jingyin")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop JINGYIN_* variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("JINGYIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    """The default bundle's scorer, loaded once."""
    return Scorer.load()
