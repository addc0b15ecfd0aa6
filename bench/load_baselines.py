"""The two services that load.py measures jingyin beside.

floor   a bare Starlette endpoint that does nothing
naive   the obvious first try: a Hugging Face pipeline called in the handler; the weights are random, of the shape of
        the bundle's network, because time does not depend on their values
"""

from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def floor() -> Starlette:
    async def nothing(request: Request) -> JSONResponse:
        await request.json()
        return JSONResponse({"action": "pass"})

    return Starlette(routes=[Route("/v1/score", nothing, methods=["POST"])])


def naive() -> Starlette:
    pipeline = _pipeline()

    async def score(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse((await run_in_threadpool(pipeline, body["text"]))[0])

    return Starlette(routes=[Route("/v1/score", score, methods=["POST"])])


def _pipeline() -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

    from jingyin.model.bundle import default_path
    from jingyin.model.labels import LABELS

    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(default_path() / "tokenizer.json"), model_max_length=192)
    layers: dict[str, Any] = {
        "num_hidden_layers": 4,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    config = BertConfig(vocab_size=len(tokenizer), id2label=dict(enumerate(LABELS)), **layers)
    network = BertForSequenceClassification(config).eval()
    return pipeline("text-classification", model=network, tokenizer=tokenizer, device="cpu")
