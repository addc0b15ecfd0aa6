"""A simulated day: what campaigns and bursts are worth; `campaigns.py day` runs it.

100,000 ordinary messages of corpora, 30 bulk senders of authored notices, and 200 campaigns from the flagged rows of a
file that the bundle did not learn from, say test.parquet of a built corpus. Sizes go like 1/r (Zipf). Each copy has its
slots filled anew; half of the campaigns disguise their second half, each by one family.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import traffic

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.serve.archive.groups import groups, signatures
from jingyin.serve.http.memory import Bursts, BurstSettings
from jingyin.train.corpus.perturb import TRAINING, evade
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import SLOT, expand

DAY = 86_400.0


class Sent(NamedTuple):
    """A message of the day: when, its text, and the campaign or bulk sender that it comes from, "" for none."""

    at: float
    text: str
    campaign: str


def simulate(corpora: Sequence[Path], threats: Path, messages: int, campaigns: int, rng: Random) -> list[Sent]:
    """Return a day in order of time."""
    ordinary = [text for file in corpora for text in traffic.texts(file)]
    day = [Sent(rng.uniform(0, DAY), text, "") for text in rng.sample(ordinary, min(messages, len(ordinary)))]
    for number, template in enumerate(rng.sample(_flagged(threats), campaigns)):
        size = max(3, round(2_000 / (number + 1)))
        start, length = rng.uniform(0, DAY * 0.8), rng.uniform(1_800, 14_400)
        family = rng.choice(TRAINING) if number % 2 else None
        for copy in range(size):
            text = expand(template, rng)
            if family and copy >= size / 2:
                text = evade(text, family, 0.3, rng)
            day.append(Sent(start + length * copy / size, text, f"threat {number}"))
    notices = [row.text for row in _authored() if row.family in traffic.NOTICES and SLOT.search(row.text)]
    for number, template in enumerate(rng.sample(notices, 30)):
        day += [
            Sent(rng.uniform(0, DAY), expand(template, rng), f"bulk {number}") for _ in range(3_000 // (number + 1))
        ]
    return sorted(day)


def _authored() -> list:
    return [row for folder in default_folders() for row in load(folder)]


def _flagged(file: Path) -> list[str]:
    """Return the different templates of flagged rows of a built corpus, or texts of JSON lines with a label."""
    if file.suffix == ".parquet":
        rows = pq.read_table(file).to_pylist()
    else:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(row.get("template") or row["text"] for row in rows if row["label"] in FLAGGED))


def day(corpora: Sequence[Path], threats: Path, messages: int, campaigns: int, bundle: Path | None) -> None:
    sent = simulate(corpora, threats, messages, campaigns, Random(6))
    scorer = Scorer.load(bundle)
    verdicts = list(scorer.score_many(each.text for each in sent))
    print(f"{len(sent):,} messages, bundle {scorer.bundle.manifest.id}")
    table("without burst", sent, [verdict.action != "pass" for verdict in verdicts])
    for count in (5, 10, 20, 50):
        bursts = Bursts(BurstSettings(count=count))
        judged = [bursts.judge(each.text, v, each.at) for each, v in zip(sent, verdicts, strict=True)]
        table(f"burst {count}", sent, [verdict.action != "pass" for verdict in judged])
    for name, kept in (
        ("all", range(len(sent))),
        ("flagged", [i for i, v in enumerate(verdicts) if v.action != "pass"]),
    ):
        agreement(name, [sent[i] for i in kept])


def table(name: str, sent: Sequence[Sent], stopped: Sequence[bool]) -> None:
    """Print what is stopped of threats and of ordinary messages, and how many copies pass before the first is held."""
    by_kind = defaultdict(list)
    by_campaign = defaultdict(list)
    for each, held in zip(sent, stopped, strict=True):
        by_kind[each.campaign.split(" ")[0]].append(held)
        by_campaign[each.campaign].append(held)
    threats = [held for campaign, held in by_campaign.items() if campaign.startswith("threat")]
    before = [held.index(True) for held in threats if any(held)]
    mostly = sum(np.mean(held) >= 0.5 for held in threats)
    bulk = [held for campaign, held in by_campaign.items() if campaign.startswith("bulk")]
    print(f"{name:<14} threats stopped {np.mean(by_kind['threat']):.1%} of messages, {mostly} of {len(threats)} "
          f"campaigns at least half, {len(threats) - len(before)} never; copies before the first held: "
          f"median {np.median(before):.0f}, 90% {np.quantile(before, 0.9):.0f}; "
          f"false: {sum(by_kind[''])} of {len(by_kind['']):,} ordinary, {sum(by_kind['bulk'])} of "
          f"{len(by_kind['bulk']):,} bulk, {sum(map(any, bulk))} of {len(bulk)} senders")  # fmt: skip


def agreement(name: str, sent: Sequence[Sent]) -> None:
    """Print how groups agree with the truth: purity, inverse purity, adjusted Rand index.

    Ordinary messages are each alone.
    """
    keys: dict[str, int] = {}
    texts = [keys.setdefault(clean(each.text).text, len(keys)) for each in sent]
    found = groups(signatures(list(keys)), np.bincount(texts))[texts].tolist()
    truth = [each.campaign or f"alone {text}" for each, text in zip(sent, texts, strict=True)]
    print(f"groups ({name}): purity {_purity(truth, found):.4f}, inverse {_purity(found, truth):.4f}, adjusted Rand "
          f"{_adjusted_rand(truth, found):.4f}")  # fmt: skip


def _purity(truth: Sequence[Hashable], found: Sequence[Hashable]) -> float:
    most: dict[Hashable, int] = defaultdict(int)
    for (_, group), count in Counter(zip(truth, found, strict=True)).items():
        most[group] = max(most[group], count)
    return sum(most.values()) / max(1, len(truth))


def _adjusted_rand(truth: Sequence[Hashable], found: Sequence[Hashable]) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(list(map(str, truth)), list(map(str, found))))
