"""The HTTP service: `jingyin serve`.

    run.py        loads the bundle, binds, handles signals, drains
    app.py        the routes;  guard.py  what surrounds each: request id, key, limits, errors, metrics
    batcher.py    the queue and the one inference thread;  deployment.py  the bundle in use, its reload and its shadow
    settings.py   environment, YAML and flags;  keys.py  API keys;  metrics.py, logs.py  what operators see

The base package imports without any of it.
"""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

_missing = [
    name for name in ("fastapi", "orjson", "prometheus_client", "pydantic_settings", "uvicorn") if not find_spec(name)
]
if _missing:
    raise ConfigError(f"the HTTP service needs {', '.join(_missing)}; run: pip install 'jingyin[serve]'")

from jingyin.serve.http.server import run_server  # noqa: E402  needs what was just checked
from jingyin.serve.http.settings import Settings, load_settings  # noqa: E402

__all__ = ["Settings", "load_settings", "run_server"]
