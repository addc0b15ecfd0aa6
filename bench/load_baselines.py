"""The two services that load.py measures jingyin beside.

floor   a bare FastAPI endpoint that does nothing
naive   what is written first: a Hugging Face pipeline called in the handler; the weights are random, of the shape of
        the bundle's network, because time does not depend on their values
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    text: str


def floor() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/score")
    async def nothing() -> dict[str, str]:
        return {"action": "pass"}

    return app


def naive() -> FastAPI:
    app = FastAPI()
    pipeline = _pipeline()

    @app.post("/v1/score")
    def score(body: Body) -> Any:
        return pipeline(body.text)[0]

    return app


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
