"""Attacks a bundle as a lazy sender does: python bench/attack.py BUNDLE DATA...

DATA is .parquet or .jsonl with text and label. Of up to 300 flagged messages that the bundle flags: how many pass with
each of forty heads and tails, after 1, 3 and 10 tries of a greedy search that sees only whether a message passes, and
in two halves; and of up to 300 benign messages, how many are flagged when they get the same. Brackets hold 95%
intervals (Clopper & Pearson 1934). Seeds are fixed; about three minutes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from jingyin.train.evaluate.attacks import ROWS, attack
from jingyin.train.evaluate.evaluate import open_bundle
from jingyin.train.evaluate.judge import judge
from jingyin.train.evaluate.results import AttackResult
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.statistics import Rate
from jingyin.train.evaluate.systems import served


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("wanted: attack.py BUNDLE DATA..., see the top of this file")
    bundle, *data = map(Path, sys.argv[1:])
    messages = read_messages(data)
    judged = judge(served(open_bundle(bundle)), messages)
    result = attack(judged.system, judged.flags, messages, ROWS)
    for line in lines(result, int(messages.flagged.sum())):
        print(line)


def lines(result: AttackResult, flagged: int) -> Iterator[str]:
    """Yield the tables."""
    benign = result.plain_false_positives.rows
    yield f"{result.rows} messages under attack, of {flagged} labelled as flagged; {benign} benign ones"
    yield f"benign, as they stand: {_share(result.plain_false_positives)} flagged"
    yield f"\n{'flagged ones that pass':<38}{'benign ones flagged':<32}head or tail (*: on no training message)"
    for each in result.dressings:
        marked = f"{each.name} *" if each.held_out else each.name
        yield f"{_share(each.passed):<38}{_share(each.false_positives):<32}{marked}"
    yield f"{result.mean_passed:<38.1%}{result.mean_false_positives:<32.1%}mean of {len(result.dressings)}"
    yield f"{max(d.passed.value for d in result.dressings if d.held_out):<70.1%}worst of those on no training message"
    for tries in result.sender:
        yield f"{_share(tries.passed):<38}{_share(tries.false_positives):<32}lazy sender, {tries.tries} tries or edits"
    yield f"{_share(result.halves_passed):<38}{_share(result.halves_false_positives):<32}in two halves"


def _share(rate: Rate) -> str:
    return f"{rate.value:6.1%} [{rate.low:.1%}, {rate.high:.1%}] {rate.count}/{rate.rows}"


if __name__ == "__main__":
    main()
