"""The scorer: message -> verdict, the one behind every way into jingyin."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle, default_path, read_bundle
from jingyin.model.errors import InputError
from jingyin.model.gate import code_points, gate_scores, is_disguised, is_opaque, known_characters, unknown_shares
from jingyin.model.join import joined, risk_odds
from jingyin.model.labels import FLAGGED, Action, Span, Stage, Verdict
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.memo import Memo
from jingyin.serve.session import Network

# tokenizers' own threads fight with ours and warn after a fork; one message is too short to share out.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHUNK = 256
"""Messages that score_many reads ahead at most."""


class Answer(NamedTuple):
    """What of a verdict the memo keeps; `stage` is what answered first. Shared by messages: not to be changed."""

    label: str
    probabilities: dict[str, float]
    risk: float
    action: Action
    stage: Stage


class Scorer:
    """Scores messages with a bundle; make one by `Scorer.load`. Safe to share between threads."""

    def __init__(self, bundle: Bundle, network: Network, *, gate: bool, memo_bytes: int) -> None:
        self.bundle = bundle
        self.memo: Memo[tuple[Answer, float]] = Memo(memo_bytes)
        self._network = network
        self._tokenizer = SmsTokenizer.from_file(bundle.path / "tokenizer.json")
        self._known = known_characters(self._tokenizer.backend.get_vocab())
        self.uses_gate = gate
        self._gate_threshold = bundle.manifest.gate.threshold if gate else -np.inf
        self._ordinary = self._answer(np.array(bundle.manifest.gate.probabilities), "gate")
        self._flagged = [bundle.manifest.labels.index(label) for label in FLAGGED]

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        threads: int = 1,
        gate: bool = True,
        memo_bytes: int = 64 << 20,
    ) -> "Scorer":
        """Load and check a bundle, by default the one in the package.

        `threads` is onnxruntime's for one message; several one-thread processes beat one scorer with many threads.
        `gate=False` sends every message to the network; `memo_bytes=0` remembers nothing. Both are for comparison.
        Raises BundleError when the bundle is missing, damaged, of another format, or gives other answers here.
        """
        read = read_bundle(Path(bundle) if bundle is not None else default_path())
        network = Network(read.path / "model.onnx", read.manifest.max_tokens, threads)
        network.check(read)
        return cls(read, network, gate=gate, memo_bytes=memo_bytes)

    def score(self, text: str) -> Verdict:
        """Score one message; total over every str. Raises InputError for anything else."""
        return self._score_chunk([text])[0]

    def glance(self, text: str) -> Verdict | None:
        """Return the verdict that `score` would give if memo or gate has it, else None: the network must read the message.

        Takes tens of microseconds for a message of usual length, where the network takes milliseconds. The memo counts a miss
        here and another when what was not answered is scored.
        """
        cleaned = clean(text)
        key = _memo_key(cleaned)
        if (kept := self.memo.get(key)) is not None:
            return self._verdict(cleaned, kept[0], known=True)
        ((score, share),) = self._gate([cleaned])
        if not self._stops(score, share, cleaned):
            return None
        self.memo.put(key, (self._ordinary, share))
        return self._verdict(cleaned, self._ordinary, known=False)

    def score_many(self, texts: Iterable[str], *, processes: int = 1) -> Iterator[Verdict]:
        """Score a stream: the same order and the same verdicts as `score`, in constant memory.

        Reads at most CHUNK messages ahead. When `texts` raises (or is interrupted while it waits for input), or holds
        something that is no str, the verdicts of all messages before it come first, then the error. `processes` above
        1 scores in that many processes, each with a memo of its own, so that only `stage` may differ.
        """
        if processes > 1:
            from jingyin.serve.pool import score_in_processes  # multiprocessing is no part of a single process

            return score_in_processes(self, texts, processes)
        return self._score_stream(texts)

    def _score_stream(self, texts: Iterable[str]) -> Iterator[Verdict]:
        for chunk, fault in chunks(texts, CHUNK):
            yield from self._score_chunk(chunk)
            if fault is not None:
                raise fault

    def explain(self, text: str) -> list[Span]:
        """Return the words without which the odds of risk fall by a tenth or more, in order of position.

        Word occlusion (Zeiler & Fergus 2014): the network runs once for each of the first 256 words. Its own odds and not
        the joined risk: a message that threatens in several ways stays at the cap whichever word is taken out. A message
        of risk below 0.05 has no evidence.
        """
        cleaned = clean(text)
        (ids,) = self._tokenizer.encode([cleaned.text])
        (score,) = gate_scores(self.bundle.gate_weights, code_points([cleaned.text])).tolist()
        if self._probabilities(ids, score)[self._flagged].sum() < 0.05:
            return []
        whole = self._risk_odds(ids)
        spans = []
        for i, (start, end) in enumerate(self._tokenizer.words(cleaned)[:256], 1):
            weight = 1 - math.exp(
                self.bundle.manifest.join.slope * (self._risk_odds([*ids[:i], *ids[i + 1 :]]) - whole)
            )
            if weight >= 0.1:
                spans.append(Span(start, end, text[start:end], round(weight, 4)))
        return spans

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """Answer messages without making verdicts; no answer depends on what was scored before, `stage` included.

        Raises InputError for anything that is no str.
        """
        return [answer for _, answer, _, _ in self.answered(texts)]

    def answered(self, texts: Sequence[str]) -> Iterator[tuple[CleanText, Answer, float, bool]]:
        """Yield each message cleaned, its answer, its share of unknown characters, and whether the memo knew it.

        The share is the one that the gate goes by (model/gate.py), from 0 to 1; messages of one clean text have one.
        """
        cleaned = [clean(text) for text in texts]
        keys = [_memo_key(each) for each in cleaned]
        known = [self.memo.get(key) for key in keys]
        new = {key: each for key, each, kept in zip(keys, cleaned, known, strict=True) if kept is None}
        fresh = self._answer_new(new) if new else {}
        for key, each, kept in zip(keys, cleaned, known, strict=True):
            answer, unknown = kept or fresh[key]
            yield each, answer, unknown, kept is not None

    def _score_chunk(self, texts: Sequence[str]) -> list[Verdict]:
        return [self._verdict(cleaned, answer, known=known) for cleaned, answer, _, known in self.answered(texts)]

    def _answer_new(self, new: Mapping[str, CleanText]) -> dict[str, tuple[Answer, float]]:
        """Answer clean texts by their keys, and remember the answers; with each its share of unknown characters."""
        answers: dict[str, tuple[Answer, float]] = {}
        for (key, each), (score, share) in zip(new.items(), self._gate(new.values()), strict=True):
            if self._stops(score, share, each):
                answers[key] = self._ordinary, share
            else:
                (ids,) = self._tokenizer.encode([each.text])
                answers[key] = self._answer(self._probabilities(ids, score), "model"), share
            self.memo.put(key, answers[key])
        return answers

    def _gate(self, cleaned: Iterable[CleanText]) -> Iterable[tuple[float, float]]:
        """Return of each message the gate's score and the share of characters that it can't know."""
        texts = code_points([each.text for each in cleaned])
        scores = gate_scores(self.bundle.gate_weights, texts).tolist()
        return zip(scores, unknown_shares(self._known, texts).tolist(), strict=True)

    def _stops(self, score: float, share: float, cleaned: CleanText) -> bool:
        return score < self._gate_threshold and not is_opaque(share, cleaned.hits)

    def _probabilities(self, ids: Sequence[int], score: float) -> NDArray[np.float64]:
        """Return the calibrated probabilities (labels,) of a message, the network's joined with the gate's score."""
        return np.asarray(joined(self.bundle.manifest.join, self._read(ids), score, self._flagged)[0])

    def _risk_odds(self, ids: Sequence[int]) -> float:
        return float(risk_odds(self._read(ids), self._flagged)[0])

    def _read(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Return the network's probabilities (1, labels) of the riskiest window."""
        logits = self._network.logits(ids).astype(np.float64) / self.bundle.manifest.calibration.temperature
        powers = np.exp(logits - logits.max(1, keepdims=True))
        each = powers / powers.sum(1, keepdims=True)
        riskiest = each[:, self._flagged].sum(1).argmax()
        return np.asarray(each[riskiest : riskiest + 1])

    def _answer(self, probabilities: NDArray[np.float64], stage: Stage) -> Answer:
        manifest = self.bundle.manifest
        named = dict(zip(manifest.labels, map(float, probabilities), strict=True))
        risk = sum(named[label] for label in FLAGGED)
        action: Action = "pass"
        if risk >= manifest.review.risk:
            action = "block" if risk >= manifest.block.risk else "review"
        return Answer(max(named, key=named.__getitem__), named, risk, action, stage)

    def _verdict(self, cleaned: CleanText, answer: Answer, *, known: bool) -> Verdict:
        label, probabilities, risk, action, stage = answer
        bundle = self.bundle.manifest.id
        return Verdict(label, dict(probabilities), risk, action, "memo" if known else stage, cleaned.hits, bundle)


def _memo_key(cleaned: CleanText) -> str:
    """Return what the verdict depends on: the clean text, and whether the gate may judge it.

    No clean text holds a control character, so nobody can type the key of a disguised message.
    """
    return f"\0{cleaned.text}" if is_disguised(cleaned.hits) else cleaned.text


def chunks(texts: Iterable[str], size: int) -> Iterator[tuple[list[str], BaseException | None]]:
    """Yield lists of at most `size` messages, and with the last one what ended the stream early, if anything did.

    An interrupt (Ctrl-C while `texts` waits for input) is held back like an error: what was read is answered first.
    """
    stream = _checked(texts)
    while True:
        chunk: list[str] = []
        try:
            for text in islice(stream, size):
                chunk.append(text)  # noqa: PERF402  extend would lose what came before an error
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                "(jingyin.serve.sms.decode) and drop missing values"
            )
        yield text
