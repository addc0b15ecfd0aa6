"""Proves that the fast ways change no verdict: python bench/exactness.py [FILE...] (a quarter of a minute)

Scores 20,000 messages (half distinct, half templated, in random order; see traffic.py) with the cache, without it, one
at a time, and in two processes, and compares all fields but `stage`. Exits 1 at the first difference.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from random import Random

import traffic

from jingyin import Scorer
from jingyin.model.labels import Verdict

MESSAGES = 20_000


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    messages = traffic.distinct(files, MESSAGES // 2, seed=3) + traffic.templated(MESSAGES // 2, seed=3)
    Random(3).shuffle(messages)
    scorer = Scorer.load()
    wanted = list(scorer.score_many(messages))
    print(f"{len(messages)} messages, {scorer.cache.cache_hits} answered by the cache")
    single = Scorer.load()
    _compare("without a cache", wanted, Scorer.load(cache_bytes=0).score_many(messages))
    _compare("one at a time", wanted, map(single.score, messages))
    _compare("in two processes", wanted, Scorer.load().score_many(messages, processes=2))


def _compare(how: str, wanted: Iterable[Verdict], found: Iterable[Verdict]) -> None:
    for number, pair in enumerate(zip_longest(wanted, found)):
        if None in pair or replace(pair[0], stage="network") != replace(pair[1], stage="network"):
            sys.exit(f"{how}: message {number} has another verdict")
    print(f"{how}: the same verdicts in the same order")


if __name__ == "__main__":
    main()
