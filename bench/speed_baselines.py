"""The systems that speed.py measures: jingyin in three settings, and four baselines.

Each is built by name in a process of its own. A baseline is a function from messages whose
result is ignored, and takes as many at a time as suits it best.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jingyin import Scorer
from jingyin.model.bundle import default_path
from jingyin.model.labels import LABELS
from jingyin.serve.cache import Cache

os.environ["TOKENIZERS_PARALLELISM"] = "false"
MAX_TOKENS = 192
BATCHES = (1, 8, 32)

Baseline = Callable[[Sequence[str]], object]


def build(name: str, sample: Sequence[str], run: Path | None) -> Baseline:
    """Build a baseline; it may train on `sample`, or choose its batch size on it."""
    if name == "jieba.lcut":
        return _jieba()
    if name == "char n-grams + linear":
        return _linear(sample)
    if name == "HF pipeline":
        return _best_batch(_hugging_face(run), sample)
    if name == "onnxruntime fp32, padded":
        return _best_batch(_padded(run), sample)
    if name == "jingyin, worst case":
        return _fresh(Scorer.load(prefilter=False, cache_bytes=0))
    return _fresh(Scorer.load())


def _fresh(scorer: Scorer) -> Baseline:
    """Score with an empty cache, and drop the verdicts as they come."""

    def run(messages: Sequence[str]) -> None:
        if len(messages) > 1:
            scorer.cache, scorer.readings = Cache(scorer.cache.budget), Cache(scorer.readings.budget)
        deque(scorer.score_many(messages) if len(messages) > 1 else [scorer.score(messages[0])], maxlen=0)

    return run


def _jieba() -> Baseline:
    import jieba

    jieba.setLogLevel(60)
    jieba.initialize()
    return lambda messages: deque(map(jieba.lcut, messages), maxlen=0)


def _linear(sample: Sequence[str]) -> Baseline:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=1 << 18), SGDClassifier())
    model.fit(sample[:1000], np.arange(1000) % len(LABELS))  # its time does not depend on its weights
    return model.predict  # type: ignore[no-any-return]


def _network(run: Path | None) -> Any:
    """Return the torch network of a run folder, or one of the default shape with random weights: time is the same."""
    import torch
    from transformers import BertConfig, BertModel

    from jingyin.train.network import SmsClassifier
    from jingyin.train.saved import load_classifier

    torch.set_num_threads(1)
    if run is not None:
        return load_classifier(run)[0]
    shape: dict[str, Any] = {
        "num_hidden_layers": 4,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    config = BertConfig(vocab_size=_tokenizer().vocab_size, max_position_embeddings=MAX_TOKENS, **shape)
    return SmsClassifier.on(BertModel(config, add_pooling_layer=False)).eval()


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_file=str(default_path() / "tokenizer.json"), **special)


def _hugging_face(run: Path | None) -> Callable[[Sequence[str], int], object]:
    """transformers' own classifier around the same encoder; it pools one token where ours takes the mean."""
    from transformers import BertForSequenceClassification, pipeline

    encoder, tokenizer = _network(run).encoder, _tokenizer()
    encoder.config.num_labels = len(LABELS)
    model = BertForSequenceClassification(encoder.config).eval()
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    return lambda messages, batch: classify(list(messages), batch_size=batch, truncation=True, max_length=MAX_TOKENS)


def _padded(run: Path | None) -> Callable[[Sequence[str], int], object]:
    """The fp32 graph on batches padded to their longest, in the order of messages; without a mask, to its favour."""
    import onnxruntime as ort

    from jingyin.train.network import ExportedClassifier
    from jingyin.train.pack.export import classifier_graph

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = classifier_graph(ExportedClassifier(_network(run)).eval()).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tokenizer = _tokenizer()

    def run_batches(messages: Sequence[str], batch: int) -> None:
        for i in range(0, len(messages), batch):
            read = tokenizer(list(messages[i : i + batch]), padding=True, truncation=True, max_length=MAX_TOKENS)
            ids = np.array(read["input_ids"], np.int64)
            session.run(None, {"input_ids": ids, "spans": np.array([(0, ids.shape[1])])})

    return run_batches


def _best_batch(baseline: Callable[[Sequence[str], int], object], sample: Sequence[str]) -> Baseline:
    def seconds(batch: int) -> float:
        started = time.process_time()
        baseline(sample[:96], batch)
        return time.process_time() - started

    baseline(sample[:2], 1)
    best = min(BATCHES, key=seconds)
    return partial(_call, baseline, best)


def _call(baseline: Callable[[Sequence[str], int], object], batch: int, messages: Iterable[str]) -> object:
    return baseline(list(messages), batch)
