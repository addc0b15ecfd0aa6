"""The scorer: message -> verdict, the one behind every way into jingyin.

The way of a message: clean text, then the cache, then the prefilter, then the networks of the cascade one after another, each
reading what the one before is not certain of (model/decision.py).
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle, default_path, read_bundle
from jingyin.model.decision import Decision, decide, fuse, fused_logit, reads_on, risk_logit
from jingyin.model.labels import Span, Verdict
from jingyin.model.prefilter import (
    code_points,
    is_disguised,
    is_opaque,
    known_characters,
    prefilter_scores,
    unknown_shares,
)
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.cache import Cache
from jingyin.serve.networks import NetworkReader, open_networks
from jingyin.serve.pool import score_in_processes
from jingyin.serve.stream import CHUNK, chunks

# tokenizers' own threads fight with ours and warn after a fork; one message is too short to share out.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_EVIDENCE_RISK = 0.05  # a message of less risk has no evidence
_EVIDENCE_WORDS = 256  # words that are tried, at most
_EVIDENCE_WEIGHT = 0.1  # share of the odds that a word must bear to be shown


class Scorer:
    """Scores messages with a bundle; make one by `Scorer.load`. Safe to share between threads."""

    def __init__(self, bundle: Bundle, networks: Sequence[NetworkReader], *, prefilter: bool, cache_bytes: int) -> None:
        self.bundle = bundle
        self.cache: Cache[tuple[Decision, float]] = Cache(cache_bytes)
        self.uses_prefilter = prefilter
        self._networks = networks
        self._tokenizer = SmsTokenizer.from_file(bundle.path / "tokenizer.json")
        self._known = known_characters(self._tokenizer.backend.get_vocab())
        self._threshold = bundle.manifest.prefilter.threshold if prefilter else -np.inf
        self._stopped = decide(bundle.manifest, np.array(bundle.manifest.prefilter.probabilities), "prefilter")

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        threads: int = 1,
        prefilter: bool = True,
        cache_bytes: int = 64 << 20,
    ) -> "Scorer":
        """Load and check a bundle, by default the one in the package.

        `threads` is onnxruntime's for one message; several one-thread processes beat one scorer with many threads.
        `prefilter=False` sends every message to all networks; `cache_bytes=0` remembers nothing. Both are for comparison.
        Raises BundleError when the bundle is missing, damaged, of another format, or gives other answers here.
        """
        read = read_bundle(Path(bundle) if bundle is not None else default_path())
        return cls(read, open_networks(read, threads), prefilter=prefilter, cache_bytes=cache_bytes)

    def score(self, text: str) -> Verdict:
        """Score one message; total over every str. Raises InputError for anything else."""
        return self._score_chunk([text])[0]

    def score_without_network(self, text: str) -> Verdict | None:
        """Return the verdict that `score` would give if cache or prefilter has it, else None: a network must read the message.

        Takes tens of microseconds for a message of usual length, where a network takes up to milliseconds. The cache counts a
        miss here and another when what was not answered is scored.
        """
        cleaned = clean(text)
        key = _cache_key(cleaned)
        if (kept := self.cache.get(key)) is not None:
            return self._verdict(cleaned, kept[0], from_cache=True)
        ((score, share),) = self._prefilter([cleaned])
        if not self._stops(score, share, cleaned):
            return None
        self.cache.put(key, (self._stopped, share))
        return self._verdict(cleaned, self._stopped, from_cache=False)

    def score_many(self, texts: Iterable[str], *, processes: int = 1) -> Iterator[Verdict]:
        """Score a stream: the same order and the same verdicts as `score`, in constant memory.

        Reads at most CHUNK messages ahead. When `texts` raises (or is interrupted while it waits for input), or holds
        something that is no str, the verdicts of all messages before it come first, then the error. `processes` above
        1 scores in that many processes, each with a cache of its own, so that only `stage` may differ.
        """
        if processes > 1:
            start = (self.bundle.path, self.uses_prefilter, self.cache.budget)
            return score_in_processes(start, texts, processes)
        return self._score_stream(texts)

    def _score_stream(self, texts: Iterable[str]) -> Iterator[Verdict]:
        for chunk, error in chunks(texts, CHUNK):
            yield from self._score_chunk(chunk)
            if error is not None:
                raise error

    def explain(self, text: str) -> list[Span]:
        """Return the words without which the odds of risk fall by a tenth or more, in order of position.

        Word occlusion (Zeiler & Fergus 2014): model.onnx runs once for each of the first 256 words, and its own odds are
        compared. A message of risk below 0.05 has no evidence.
        """
        cleaned = clean(text)
        (found,) = self.decisions([text])
        if found.risk < _EVIDENCE_RISK:
            return []
        reader = next((each for each in self._networks if each.network.file == "model.onnx"), self._networks[-1])
        ids = self._tokenizer.encode([cleaned.text])[0]
        slope = sum(reader.network.fusion.weights)
        whole = risk_logit(reader.read_ids(ids))
        spans = []
        for i, (start, end) in enumerate(self._tokenizer.words(cleaned)[:_EVIDENCE_WORDS], 1):
            without = risk_logit(reader.read_ids([*ids[:i], *ids[i + 1 :]]))
            weight = 1 - math.exp(min(0.0, slope * float(without - whole)))
            if weight >= _EVIDENCE_WEIGHT:
                spans.append(Span(start, end, text[start:end], round(weight, 4)))
        return spans

    def decisions(self, texts: Sequence[str]) -> list[Decision]:
        """Decide on messages without making verdicts; none depends on what was scored before, `stage` included.

        Raises InputError for anything that is no str.
        """
        return [decision for _, decision, _, _ in self.measured(texts)]

    def measured(self, texts: Sequence[str]) -> Iterator[tuple[CleanText, Decision, float, bool]]:
        """Yield each message cleaned, its decision, its share of unknown characters, and whether it came from the cache.

        The share is the one that the prefilter goes by (model/prefilter.py), from 0 to 1; messages of one clean text have one.
        """
        cleaned = [clean(text) for text in texts]
        keys = [_cache_key(each) for each in cleaned]
        cached = [self.cache.get(key) for key in keys]
        new = {key: each for key, each, kept in zip(keys, cleaned, cached, strict=True) if kept is None}
        fresh = self._decide_new(new) if new else {}
        for key, each, kept in zip(keys, cleaned, cached, strict=True):
            decision, unknown = kept or fresh[key]
            yield each, decision, unknown, kept is not None

    def _score_chunk(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._verdict(each, decision, from_cache=known) for each, decision, _, known in self.measured(texts)]

    def _decide_new(self, new: Mapping[str, CleanText]) -> dict[str, tuple[Decision, float]]:
        """Decide on clean texts by their keys, and remember it; with each its share of unknown characters."""
        decided: dict[str, tuple[Decision, float]] = {}
        for (key, each), (score, share) in zip(new.items(), self._prefilter(new.values()), strict=True):
            stops = self._stops(score, share, each)
            decided[key] = (self._stopped if stops else self._read(each, score)), share
            self.cache.put(key, decided[key])
        return decided

    def _prefilter(self, cleaned: Iterable[CleanText]) -> Iterable[tuple[float, float]]:
        """Return of each message the prefilter's score and the share of characters that it can't know."""
        texts = code_points([each.text for each in cleaned])
        scores = prefilter_scores(self.bundle.prefilter_weights, texts).tolist()
        return zip(scores, unknown_shares(self._known, texts).tolist(), strict=True)

    def _stops(self, score: float, share: float, cleaned: CleanText) -> bool:
        return score < self._threshold and not is_opaque(share, cleaned.edits)

    def _read(self, cleaned: CleanText, score: float) -> Decision:
        """Let the networks read a message, one after another until one is certain."""
        read: list[NDArray[np.float64]] = []
        for reader in self._networks:
            network = reader.network
            read.append(reader.read(cleaned.text))
            if self.uses_prefilter and not reads_on(
                network.threshold, network.certain, float(fused_logit(network.fusion, score, read))
            ):
                break
        return decide(self.bundle.manifest, fuse(network.fusion, score, read), "network")

    def _verdict(self, cleaned: CleanText, decision: Decision, *, from_cache: bool) -> Verdict:
        label, probabilities, risk, action, stage = decision
        bundle = self.bundle.manifest.id
        return Verdict(
            label, dict(probabilities), risk, action, "cache" if from_cache else stage, cleaned.edits, bundle
        )


def _cache_key(cleaned: CleanText) -> str:
    """Return what the decision depends on: the clean text, and whether the prefilter may judge it.

    No clean text holds a control character, so nobody can type the key of a disguised message.
    """
    return f"\0{cleaned.text}" if is_disguised(cleaned.edits) else cleaned.text
