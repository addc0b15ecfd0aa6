"""The scorer, message -> verdict, behind every way into jingyin.

A message is cleaned, then looked up in the cache, then judged by the prefilter, then by the networks of the cascade,
one after another (model/cascade.py). A message too long for that is scored in pieces, and the riskiest decides.
"""

import copy
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle, Manifest, Threshold, default_path, read_bundle, rows_needed
from jingyin.model.cascade import Decision, Read, cascade, decide, prefiltered, provisional_odds, with_risk
from jingyin.model.errors import BundleError, ConfigError, InputError
from jingyin.model.labels import Span, Stage, Verdict
from jingyin.model.prefilter import (
    Units,
    code_points,
    is_disguised,
    known_characters,
    prefilter_abstains,
    units_of,
    unknown_shares,
)
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.cache import Cache
from jingyin.serve.explain import LEAST_RISK, Explanation, explain
from jingyin.serve.networks import NetworkReader, open_networks
from jingyin.serve.pool import in_order, process_pool, unbroken

# tokenizers' own threads fight with ours and warn after a fork; one message is too short to share out.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHUNK = 512
"""Most messages of a stream that are read ahead."""
WORKER_CACHE_BYTES = 32 << 20
"""A worker's cache, to bound the memory of many workers; half the default loses no hits on templated traffic."""
_ALONE_SECONDS = 2.0  # two processes take as long to start and to load the bundle
_ADVICE = 'score again in fewer processes, and in a script under `if __name__ == "__main__":`'


class ScorerArguments(NamedTuple):
    """Arguments for loading a process's scorer: the folder and id of a bundle, and those of `Scorer.load`."""

    bundle: str | Path | None
    id: str | None = None
    review_rate: float | None = None
    block_rate: float | None = None
    prefilter: bool = True
    cache_bytes: int = WORKER_CACHE_BYTES


class Scored(NamedTuple):
    """A message cleaned once, with its decision.

    `unknown` is the share of its characters that the lexicon does not know, 0 to 1. `final` is False for a decision
    that another call may correct, because the networks have not finished reading.
    """

    clean: CleanText
    decision: Decision
    unknown: float
    from_cache: bool
    final: bool


class Scorer:
    """Scores messages with a bundle; make one by `Scorer.load`. Safe to share between threads."""

    def __init__(self, bundle: Bundle, networks: Sequence[NetworkReader], arguments: ScorerArguments) -> None:
        self.bundle = bundle
        self.arguments = arguments
        self.cache: Cache[tuple[Decision, float]] = Cache(arguments.cache_bytes)
        self.readings: Cache[Any] = Cache(arguments.cache_bytes // 4)
        self._networks = networks
        self._tokenizer = SmsTokenizer.from_file(bundle.path / "tokenizer.json")
        self._known = known_characters(self._tokenizer.backend.get_vocab())
        manifest = bundle.manifest
        self._exits = [
            decide(manifest, np.array(exit_.probabilities), "prefilter")
            for exit_ in (manifest.prefilter.ordinary, manifest.prefilter.lawful)
        ]

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        review_rate: float | None = None,
        block_rate: float | None = None,
        prefilter: bool = True,
        cache_bytes: int = 64 << 20,
    ) -> "Scorer":
        """Load and check a bundle, by default the one in the package.

        `review_rate` and `block_rate` set the thresholds so that these are 95% bounds of the false-positive rates; None
        keeps the bundle's thresholds. `prefilter=False` sends every message to all networks, and `cache_bytes=0`
        remembers nothing: both for comparison.

        Raises BundleError if the bundle is missing, damaged, of another format, or gives other results on this machine,
        and ConfigError for a rate that its calibration rows can't bound.
        """
        loaded = read_bundle(Path(bundle) if bundle is not None else default_path())
        rates = {"review": review_rate, "block": block_rate}
        chosen = {name: _at_rate(loaded.manifest, name, rate) for name, rate in rates.items() if rate is not None}
        loaded = replace(loaded, manifest=loaded.manifest.model_copy(update=chosen))
        arguments = ScorerArguments(loaded.path, loaded.manifest.id, review_rate, block_rate, prefilter, cache_bytes)
        return cls(loaded, open_networks(loaded), arguments)

    def score(self, text: str | CleanText) -> Verdict:
        """Score one message, any str. Raises InputError for anything else."""
        (scored,) = self._score([text])
        return self.verdict(scored)

    def score_many(self, texts: Iterable[str | CleanText], *, processes: int = 1) -> Iterator[Verdict]:
        """Score a stream: the same order and the same verdicts as `score`, in constant memory.

        Reads at most CHUNK messages ahead. If `texts` raises (or is interrupted while it waits for input), or yields
        something that isn't a str, the verdicts of all messages before it come first, then the error. `processes` above
        1 scores in that many processes, each with a cache of its own, so that only `stage` may differ; they start if
        this process has not finished after about the time that starting them takes.
        """
        if processes > 1:
            return score_in_processes(self, texts, processes)
        return (self.verdict(each) for each in self.scored(texts))

    def scored(self, texts: Iterable[str | CleanText], *, until: float | None = None) -> Iterator[Scored]:
        """Score a stream as `score_many` does, yielding the clean texts and decisions that verdicts are made of.

        After `until`, by time.monotonic(), no network starts to read: the readings so far decide, and decisions that
        are not `final` are not cached.
        """
        for chunk, error in chunks(texts, CHUNK):
            yield from self._score(chunk, until)
            if error is not None:
                raise error

    def first_look(self, text: str | CleanText) -> Scored:
        """Return the decision of cache or prefilter, in tens of microseconds; final if no network needs to read.

        Else the risk comes from the prefilter's scores alone, and the action is at most `review`.
        """
        cleaned = _cleaned(text)
        return _riskiest(cleaned, [self._first_look(piece) for piece in cleaned.pieces])

    def _first_look(self, cleaned: CleanText) -> Scored:
        key = _cache_key(cleaned)
        if (cached := self.cache.get(key)) is not None:
            return Scored(cleaned, *cached, from_cache=True, final=True)
        units, shares, abstains, foreign = self._prefilter([cleaned])
        share = float(shares[0])
        exits = prefiltered(self.bundle.manifest, units, abstains, foreign)
        if exits[0] >= 0:
            self.cache.put(key, (self._exits[exits[0]], share))
            return Scored(cleaned, self._exits[exits[0]], share, from_cache=False, final=True)
        manifest = self.bundle.manifest
        odds = provisional_odds(manifest, units, 0)
        proportions = np.log(np.maximum(manifest.prefilter.lawful.probabilities, 1e-12))
        decision = decide(manifest, with_risk(proportions, odds, manifest.flagged), "prefilter")
        if decision.action == "block":
            decision = decision._replace(action="review")
        return Scored(cleaned, decision, share, from_cache=False, final=False)

    def without_memory(self, *, prefilter: bool = True) -> "Scorer":
        """Return a copy without caches that shares the networks; without `prefilter` they all read every message."""
        uncached = copy.copy(self)
        uncached.arguments = self.arguments._replace(prefilter=prefilter, cache_bytes=0)
        uncached.cache, uncached.readings = Cache(0), Cache(0)
        return uncached

    def verdict(self, scored: Scored) -> Verdict:
        """Return the verdict on a scored message."""
        label, probabilities, risk, action, stage, reasons, *_ = scored.decision
        stage = "cache" if scored.from_cache else stage
        edits = scored.clean.edits
        return Verdict(label, dict(probabilities), risk, action, stage, edits, self.bundle.manifest.id, reasons)

    def explain(self, text: str) -> list[Span]:
        """Return the words without which the odds of risk fall by a tenth or more, in order of position.

        If no single word does that, return clauses, or the part of the message that decided. A message of risk below
        0.05 has no evidence. Only the first 256 words are tried.
        """
        return self.explanation(text).risk

    def explain_reasons(self, text: str) -> dict[str, list[Span]]:
        """Return for each reason of the verdict, by its sign, the words without which its odds fall by a tenth or more.

        Only the first 256 words are tried: a reason found only after them has an empty list.
        """
        return self.explanation(text).reasons

    def explanation(self, text: str | CleanText) -> Explanation:
        """Return the results of `explain` and `explain_reasons` in the time of one: a network runs once for each word.

        A bundle whose networks all read pieces gives no evidence: the words are those of the lexicon.
        """
        scored = max(self._read(_cleaned(text).pieces, None), key=_risk)
        readers = {each.network.file: each for each in self._networks if each.network.vocabulary == "lexicon"}
        reader = readers.get("model.onnx") or next(reversed(readers.values()), None)
        if scored.decision.risk < LEAST_RISK or reader is None:
            return Explanation([], {})
        return explain(reader, self._tokenizer, scored.clean, scored.decision, self.bundle.manifest)

    def _score(self, texts: Sequence[str | CleanText], until: float | None = None) -> Iterator[Scored]:
        cleaned = [_cleaned(text) for text in texts]
        read = self._read([piece for each in cleaned for piece in each.pieces], until)
        for each in cleaned:
            yield _riskiest(each, [next(read) for _ in each.pieces])

    def _read(self, cleaned: Sequence[CleanText], until: float | None) -> Iterator[Scored]:
        """Score clean texts as they are, each the whole message or a piece of one."""
        keys = [_cache_key(message) for message in cleaned]
        cached = [self.cache.get(key) for key in keys]
        new = {key: message for key, message, entry in zip(keys, cleaned, cached, strict=True) if entry is None}
        fresh = dict(zip(new, self._decide(list(new.values()), until), strict=True)) if new else {}
        for key, (decision, share, final) in fresh.items():
            if final:
                self.cache.put(key, (decision, share))
        for key, message, entry in zip(keys, cleaned, cached, strict=True):
            if entry is not None:
                yield Scored(message, *entry, from_cache=True, final=True)
            else:
                decision, share, final = fresh[key]
                yield Scored(message, decision, share, from_cache=False, final=final)

    def _decide(self, cleaned: Sequence[CleanText], until: float | None) -> Iterator[tuple[Decision, float, bool]]:
        """Yield for each clean text its decision, its share of unknown characters, and whether that is final."""
        manifest = self.bundle.manifest
        units, shares, abstains, foreign = self._prefilter(cleaned)
        exits = prefiltered(manifest, units, abstains, foreign)
        cascaded, every = None, not self.arguments.prefilter
        if (exits < 0).any():
            cascaded = cascade(manifest, units, exits, self._reader(cleaned, units), everyone=every, until=until)
        for i, (exit_, share) in enumerate(zip(exits.tolist(), shares.tolist(), strict=True)):
            if cascaded is None or exit_ >= 0:
                yield self._exits[exit_], share, True
            else:
                unit = int(cascaded.units[i])
                stage: Stage = "network" if cascaded.depth[i] else "prefilter"
                window = units.ranges[unit] if unit != units.starts[i] else None
                found = cascaded.probabilities[i], stage, cascaded.signs[i], window, float(cascaded.disagreement[i])
                decision = decide(manifest, *found)
                yield decision, share, bool(cascaded.final[i])

    def _prefilter(
        self, cleaned: Sequence[CleanText]
    ) -> tuple[Units, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return clean texts as units, shares of unknown characters, where the prefilter abstains, and foreign ones."""
        texts = [each.text for each in cleaned]
        codes = code_points(texts)
        shares = unknown_shares(self._known, codes)
        every = not self.arguments.prefilter
        edits = [each.edits for each in cleaned]
        abstains = np.array([every or prefilter_abstains(*each) for each in zip(shares.tolist(), edits, strict=True)])
        foreign = np.array([not every and "foreign" in each for each in edits])
        return units_of(self.bundle.prefilter_weights, texts, codes), shares, abstains, foreign

    def _reader(self, cleaned: Sequence[CleanText], units: Units) -> Read:
        """Return a reader that runs the networks on clean texts, and remembers their outputs.

        So a message that ran out of time resumes where it stopped when it is scored again.
        """

        def read(network: int, message: int, worth: NDArray[np.float64]) -> NDArray[np.float32]:
            text = cleaned[message].text
            key = f"{network}{text}"  # by the text alone: it decides what its units are worth
            outputs: NDArray[np.float32] | None = self.readings.get(key)
            if outputs is None:
                ranges = units.ranges[int(units.starts[message]) : units.end(message)]
                outputs = self._networks[network].read(text, ranges, worth)
                self.readings.put(key, outputs)
            return outputs

        return read


def _cleaned(text: str | CleanText) -> CleanText:
    return text if isinstance(text, CleanText) else clean(text)


def _risk(scored: Scored) -> float:
    return scored.decision.risk


def _riskiest(whole: CleanText, pieces: list[Scored]) -> Scored:
    """Return a message with the decision on the riskiest of its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    from_cache, final = all(each.from_cache for each in pieces), all(each.final for each in pieces)
    return max(pieces, key=_risk)._replace(clean=whole, from_cache=from_cache, final=final)


def _at_rate(manifest: Manifest, action: str, rate: float) -> Threshold:
    """Return the threshold of an action whose false-positive rate is bounded by `rate`."""
    threshold: Threshold = getattr(manifest, action)
    points = [point for point in manifest.curve if point.bound <= rate]
    if not points:
        lowest = min((point.bound for point in manifest.curve), default=None)
        able = f"the lowest that it can is {lowest:.2g}" if lowest else "it holds no curve: calibrate it anew"
        if lowest and rate > 0:
            able += f"; a calibration needs at least {rows_needed(rate):,} messages of traffic to show {rate:g}"
        raise ConfigError(f"bundle {manifest.id} can't bound a {action} rate of {rate:g}; {able}")
    point = min(points, key=lambda each: each.risk)
    risk = max(point.risk, threshold.least)
    return threshold.model_copy(update={"risk": risk, "target": rate, "bound": point.bound})


def _cache_key(cleaned: CleanText) -> str:
    """Return a key of everything that the decision depends on: the clean text, and whether the prefilter may judge it.

    No clean text contains a control character, so nobody can type the key of a disguised message.
    """
    return f"\0{cleaned.text}" if is_disguised(cleaned.edits) else cleaned.text


# ---- streams, and processes with a scorer of their own


@cache
def scorer_of(arguments: ScorerArguments) -> Scorer:
    """Return this process's scorer, loaded on first use, because a pool's initializer could not report an error.

    Raises BundleError if the bundle in the folder has another id than the one wanted.
    """
    bundle, wanted, review, block, prefilter, cache_bytes = arguments
    scorer = Scorer.load(bundle, review_rate=review, block_rate=block, prefilter=prefilter, cache_bytes=cache_bytes)
    if wanted not in (None, loaded := scorer.bundle.manifest.id):
        raise BundleError(f"the bundle changed from {wanted} to {loaded} after it was read; start again")
    return scorer


def chunks(texts: Iterable[str | CleanText], size: int) -> Iterator[tuple[list[str | CleanText], BaseException | None]]:
    """Yield lists of at most `size` messages, the last one with the exception that ended the stream early, if any.

    An interrupt (Ctrl-C while `texts` waits for input) is delayed like an error: messages already read are answered
    first.
    """
    stream = enumerate(texts)
    while True:
        chunk: list[str | CleanText] = []
        try:
            for number, text in islice(stream, size):
                if not isinstance(text, (str, CleanText)):
                    raise InputError(
                        f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                        "(jingyin.serve.sms.decode) and drop missing values"
                    )
                chunk.append(text)
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def score_in_processes(scorer: Scorer, texts: Iterable[str | CleanText], processes: int) -> Iterator[Verdict]:
    """Score `texts` in `processes` processes like `scorer`, with at most two chunks per process pending.

    `scorer` answers alone at first: starting processes takes longer than scoring some thousand messages. Raises
    BundleError if the bundle can't be loaded or has changed, JingyinError if a process ends early.
    """
    stream, begun = chunks(texts, CHUNK), time.monotonic()
    for chunk, error in stream:
        yield from map(scorer.verdict, scorer.scored(chunk))
        if error is not None:
            raise error
        if time.monotonic() - begun > _ALONE_SECONDS:
            break
    else:
        return
    with unbroken(_ADVICE), process_pool(processes) as pool:
        submitted = ((error, pool.submit(_score, scorer.arguments, chunk)) for chunk, error in stream)
        for error, verdicts in in_order(submitted, 2 * processes):
            yield from verdicts
            if error is not None:
                raise error


def _score(arguments: ScorerArguments, texts: list[str | CleanText]) -> list[Verdict]:
    return list(scorer_of(arguments).score_many(texts))
