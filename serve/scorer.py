"""The scorer: message -> verdict, the one behind every way into jingyin.

The way of a message: clean text, then the cache, then the prefilter, then the networks of the cascade one after
another, each reading what the one before is not certain of (model/decision.py).
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from jingyin.model.bundle import Bundle, Network, default_path, read_bundle
from jingyin.model.decision import Decision, decide, fuse, fused_logit, reads_on
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
from jingyin.serve.explain import LEAST_RISK, Explanation, explain
from jingyin.serve.networks import NetworkReader, Reading, open_networks
from jingyin.serve.pool import CHUNK, chunks, score_in_processes

# The cache: verdicts already given, by clean text.
#
# Exact, not approximate: the network sees nothing but the clean text, so equal clean texts have equal verdicts; only a
# disguised message, which the prefilter may not judge, has a key of its own. Messages that differ only in numbers, links
# or amounts of one bucket share an entry.


V = TypeVar("V")
# What an entry takes beside its key, slot of the OrderedDict included, as tracemalloc measures it: about 600 bytes for
# a network's decision, 800 with two reasons. Those of the prefilter are shared and take less.
_ENTRY_BYTES = 800


class Cache(Generic[V]):
    """A least-recently-used map from text to value within a budget of bytes; safe to share between threads."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self._entries: OrderedDict[str, V] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        """Return the value of `key`, now the most recently used, or None."""
        with self._lock:
            value = self._entries.get(key)
            if value is None:
                self.cache_misses += 1
            else:
                self.cache_hits += 1
                self._entries.move_to_end(key)
            return value

    def put(self, key: str, value: V) -> None:
        """Remember `value`, forgetting the least recently used entries if the budget is exceeded."""
        size = _size(key)
        if size > self.budget:
            return
        with self._lock:
            if key not in self._entries:
                self.used += size
            self._entries[key] = value
            while self.used > self.budget:
                self.used -= _size(self._entries.popitem(last=False)[0])


def _size(key: str) -> int:
    return sys.getsizeof(key) + _ENTRY_BYTES


# tokenizers' own threads fight with ours and warn after a fork; one message is too short to share out.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Scored(NamedTuple):
    """A message as it was read: cleaned, decided on, its share of unknown characters, and whether to the end."""

    clean: CleanText
    decision: Decision
    unknown: float
    from_cache: bool
    final: bool


class Scorer:
    """Scores messages with a bundle; make one by `Scorer.load`. Safe to share between threads."""

    def __init__(self, bundle: Bundle, networks: Sequence[NetworkReader], *, prefilter: bool, cache_bytes: int) -> None:
        self.bundle = bundle
        self.cache: Cache[tuple[Decision, float]] = Cache(cache_bytes)
        self.uses_prefilter = prefilter
        self._networks = networks
        self._tokenizer = SmsTokenizer.from_file(bundle.path / "tokenizer.json")
        self._known = known_characters(self._tokenizer.backend.get_vocab())
        stops = bundle.manifest.prefilter
        self._stopping = [
            (stop.threshold, decide(bundle.manifest, np.array(stop.probabilities), "prefilter"))
            for stop in (stops.ordinary, stops.lawful)
        ]

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
        `prefilter=False` sends every message to all networks; `cache_bytes=0` remembers nothing. Both are for
        comparison. Raises BundleError when the bundle is missing, damaged, of another format, or gives other answers
        here.
        """
        read = read_bundle(Path(bundle) if bundle is not None else default_path())
        return cls(read, open_networks(read, threads), prefilter=prefilter, cache_bytes=cache_bytes)

    def score(self, text: str) -> Verdict:
        """Score one message; total over every str. Raises InputError for anything else."""
        return self._score_chunk([text])[0]

    def score_without_network(self, text: str) -> Verdict | None:
        """Return `score`'s verdict if cache or prefilter has it, else None: a network must read the message.

        Takes tens of microseconds for a message of usual length, where a network takes up to milliseconds. The cache
        counts a miss here and another when what was not answered is scored.
        """
        cleaned = clean(text)
        key = _cache_key(cleaned)
        if (kept := self.cache.get(key)) is not None:
            return self._verdict(cleaned, kept[0], from_cache=True)
        ((scores, share),) = self._prefilter([cleaned])
        if (stopped := self._stopped(scores, share, cleaned)) is None:
            return None
        self.cache.put(key, (stopped, share))
        return self._verdict(cleaned, stopped, from_cache=False)

    def first_look(self, text: str) -> Scored:
        """Return what cache or prefilter say of a message; not final if a network must read it."""
        cleaned = clean(text)
        key = _cache_key(cleaned)
        if (kept := self.cache.get(key)) is not None:
            return Scored(cleaned, *kept, True, True)
        ((scores, share),) = self._prefilter([cleaned])
        if (stopped := self._stopped(scores, share, cleaned)) is None:
            return Scored(cleaned, self._stopping[1][1], share, False, False)
        self.cache.put(key, (stopped, share))
        return Scored(cleaned, stopped, share, False, True)

    def scored(self, texts: Sequence[str], until: float) -> Iterator[Scored]:
        """Yield what was read of each message until `until`, a time of time.monotonic."""
        if until < monotonic():
            yield from map(self.first_look, texts)
        else:
            yield from (Scored(*each, True) for each in self.measured(texts))

    def score_many(self, texts: Iterable[str], *, processes: int = 1) -> Iterator[Verdict]:
        """Score a stream: the same order and the same verdicts as `score`, in constant memory.

        Reads at most CHUNK messages ahead. When `texts` raises (or is interrupted while it waits for input), or holds
        something that is no str, the verdicts of all messages before it come first, then the error. `processes` above
        1 scores in that many processes, each with a cache of its own, so that only `stage` may differ.
        """
        if processes > 1:
            start = (self.bundle.path, self.uses_prefilter, self.cache.budget)
            return score_in_processes(start, texts, processes, self.bundle.manifest.id)
        return self._score_stream(texts)

    def _score_stream(self, texts: Iterable[str]) -> Iterator[Verdict]:
        for chunk, error in chunks(texts, CHUNK):
            yield from self._score_chunk(chunk)
            if error is not None:
                raise error

    def explain(self, text: str) -> list[Span]:
        """Return the words without which the odds of risk fall by a tenth or more, in order of position.

        A message of risk below 0.05 has no evidence. Only the first 256 words are tried.
        """
        return self.explanation(text).risk

    def explain_reasons(self, text: str) -> dict[str, list[Span]]:
        """Return for each reason of the verdict, by its sign, the words without which its odds fall by a tenth or more.

        Only the first 256 words are tried: a reason that shows behind them has an empty list.
        """
        return self.explanation(text).reasons

    def explanation(self, text: str) -> Explanation:
        """Return what `explain` and `explain_reasons` do, in the time of one of them: one network runs once a word.

        A bundle whose networks all read pieces has no evidence: words are those of the lexicon.
        """
        (found,) = self.decisions([text])
        if found.risk < LEAST_RISK or (reader := self._reader_of_words()) is None:
            return Explanation([], {})
        reasons = found.reasons if reader.network.file == "model.onnx" else ()  # the signs are those of model.onnx
        return explain(reader, self._tokenizer, text, self.bundle.manifest.signs, reasons)

    def _reader_of_words(self) -> NetworkReader | None:
        """Return the network that gives evidence: of those that read by the lexicon model.onnx, else the last."""
        readers = {each.network.file: each for each in self._networks if each.network.vocabulary == "lexicon"}
        return readers.get("model.onnx") or next(reversed(readers.values()), None)

    def decisions(self, texts: Sequence[str]) -> list[Decision]:
        """Decide on messages without making verdicts; none depends on what was scored before, `stage` included.

        Raises InputError for anything that is no str.
        """
        return [decision for _, decision, _, _ in self.measured(texts)]

    def measured(self, texts: Sequence[str]) -> Iterator[tuple[CleanText, Decision, float, bool]]:
        """Yield each message cleaned, its decision, its share of unknown characters, and whether the cache had it.

        The share is the one that the prefilter goes by (model/prefilter.py), from 0 to 1; messages of one clean text
        have one.
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
        unread: list[tuple[str, float, float]] = []
        for (key, each), (scores, share) in zip(new.items(), self._prefilter(new.values()), strict=True):
            if (stopped := self._stopped(scores, share, each)) is not None:
                decided[key] = stopped, share
            else:
                unread.append((key, scores[0], share))
        read = self._read([new[key] for key, _, _ in unread], [score for _, score, _ in unread])
        decided |= {key: (decision, share) for (key, _, share), decision in zip(unread, read, strict=True)}
        for key, kept in decided.items():
            self.cache.put(key, kept)
        return decided

    def _prefilter(self, cleaned: Iterable[CleanText]) -> Iterable[tuple[list[float], float]]:
        """Return of each message the prefilter's scores and the share of characters that it can't know."""
        texts = code_points([each.text for each in cleaned])
        scores = prefilter_scores(self.bundle.prefilter_weights, texts).T.tolist()
        return zip(scores, unknown_shares(self._known, texts).tolist(), strict=True)

    def _stopped(self, scores: Sequence[float], share: float, cleaned: CleanText) -> Decision | None:
        """Return the prefilter's decision, or None if a network must read the message."""
        if not self.uses_prefilter or is_opaque(share, cleaned.edits):
            return None
        found = zip(scores, self._stopping, strict=True)
        return next((decision for score, (threshold, decision) in found if score < threshold), None)

    def _read(self, cleaned: Sequence[CleanText], scores: Sequence[float]) -> list[Decision]:
        """Let the networks read messages, each until one is certain of it.

        A network reads all of its messages in a row, so that its weights come from memory once a chunk: networks in
        turn for every message took a tenth longer on templated traffic, where few messages reach them.
        """
        readings: list[list[Reading]] = [[] for _ in cleaned]
        decided: dict[int, Decision] = {}
        for reader in self._networks:
            for i in [i for i in range(len(cleaned)) if i not in decided]:
                readings[i].append(reader.read(cleaned[i].text))
                if self._is_certain(reader.network, scores[i], readings[i]):
                    decided[i] = self._decide(reader.network, scores[i], readings[i])
        return [decided[i] for i in range(len(cleaned))]

    def _is_certain(self, network: Network, score: float, readings: Sequence[Reading]) -> bool:
        """Whether no network behind `network` is to read a message."""
        if network is self._networks[-1].network:
            return True
        logit = fused_logit(network.fusion, score, [each.logits for each in readings])
        return self.uses_prefilter and not reads_on(network.threshold, network.certain, float(logit))

    def _decide(self, network: Network, score: float, readings: Sequence[Reading]) -> Decision:
        signs = next((each.signs for each in readings if len(each.signs)), ())
        probabilities = fuse(network.fusion, score, [each.logits for each in readings])
        return decide(self.bundle.manifest, probabilities, "network", signs)

    def _verdict(self, cleaned: CleanText, decision: Decision, *, from_cache: bool) -> Verdict:
        label, probabilities, risk, action, stage, reasons = decision
        bundle = self.bundle.manifest.id
        return Verdict(
            label, dict(probabilities), risk, action, "cache" if from_cache else stage, cleaned.edits, bundle, reasons
        )


def _cache_key(cleaned: CleanText) -> str:
    """Return what the decision depends on: the clean text, and whether the prefilter may judge it.

    No clean text holds a control character, so nobody can type the key of a disguised message.
    """
    return f"\0{cleaned.text}" if is_disguised(cleaned.edits) else cleaned.text
