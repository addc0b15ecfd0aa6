"""The HTTP service: `jingyin serve`.

    process.py     the socket, and uvicorn's Multiprocess: workers, their reload, their end
    connection.py  limits of a connection that uvicorn lacks
    app.py         routes, and the layer around them: request id, key, errors, metrics
    call.py        one call of a client, and its body;  admin.py, cases.py  the analyst's routes
    schema.py      bodies of /v1/score and /v1/parts; openapi.json describes all routes
    service.py     one request, from texts to answers;  batcher.py  the queue and the inference threads
    deployment.py  the bundle that answers, and its shadow
    keys.py        API keys

The base package doesn't import this folder.
"""

from jingyin.model.errors import need

need("the HTTP service", "serve", "orjson", "prometheus_client", "pydantic_settings", "starlette", "uvicorn")
