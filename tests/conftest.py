"""Shared by all tests: coroutines run, a clean environment, the bundle that the package holds, and toy bundles."""

import asyncio
import inspect
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from jingyin import Scorer
from jingyin.serve.cache import Cache

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process for each core: torch's threads would only wait
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that tests start compiles the package, in 0.4 s
settings.register_profile("jingyin", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("jingyin")

REQUIRED = os.environ.get("JINGYIN_REQUIRE_EXTERNAL") == "1"
"""Whether a skipped test is a failure: .ci/run has installed every package and program that tests look for."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Fail what was skipped, where nothing may be missing."""
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Fail modules that were skipped, where nothing may be missing."""
    return _failed_if_skipped((yield))


def _failed_if_skipped(report: Any) -> Any:
    if REQUIRED and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where JINGYIN_REQUIRE_EXTERNAL allows none: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in given}))
    return True


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop JINGYIN_* variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("JINGYIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    """The default bundle's scorer, loaded once."""
    return Scorer.load()


@pytest.fixture
def fresh(scorer: Scorer) -> Scorer:
    """The same scorer with caches of its own, which are empty."""
    found = scorer.without_memory()
    found.cache, found.readings = Cache(64 << 20), Cache(16 << 20)
    return found


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a toy bundle; see toy_bundle.py."""
    pytest.importorskip("onnx", reason="needs onnx: pip install 'jingyin[train]'")
    from tests.toy_bundle import write_toy_bundle

    return lambda **options: write_toy_bundle(tmp_path_factory.mktemp("bundle"), **options)


SIGNS = {"曝光": "exposure", "全村": "exposure", "轰炸": "flooding", "赎金": "demand_money", "坐牢": "false_police"}
"""Words of toy messages and the signs that they show."""


@pytest.fixture(scope="session")
def signed_bundle(make_bundle: Callable[..., Path]) -> Path:
    """A toy bundle with signs."""
    return make_bundle(signs=SIGNS)


@pytest.fixture(scope="session")
def signed(signed_bundle: Path) -> Scorer:
    """The scorer of a toy bundle with signs."""
    return Scorer.load(signed_bundle)
