"""The HTTP service: `jingyin serve`.

    run.py        one process, or several: supervisor.py minds them, each runs worker.py;  listening.py  the socket
    server.py     an event loop that serves, drains and ends;  protocol.py  limits of a connection
    app.py        application;  score.py, open_inference.py  its routes that score;  schema.py, openapi.py  their bodies
    guard.py      what surrounds each route: request id, key, errors, metrics;  service.py  what every route uses
    batcher.py    the queue and the one inference thread;  admission.py  how many requests may be under way
    deployment.py the bundle in use, its reload and its shadow;  burst.py  what is suspicious only in bulk
    joined.py     what is a threat only behind the messages before it;  conversation.py  which those are
    settings.py   environment, YAML and flags;  keys.py, newkey.py  API keys;  metrics.py, logs.py  what operators see

The base package imports without any of it.
"""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

_missing = [
    name for name in ("fastapi", "orjson", "prometheus_client", "pydantic_settings", "uvicorn") if not find_spec(name)
]
if _missing:
    raise ConfigError(f"the HTTP service needs {', '.join(_missing)}; run: pip install 'jingyin[serve]'")

from jingyin.serve.http.process import run_server  # noqa: E402  needs what was just checked
from jingyin.serve.http.settings import Settings, load_settings  # noqa: E402

__all__ = ["Settings", "load_settings", "run_server"]
