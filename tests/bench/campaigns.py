"""Measures `jingyin campaigns` on archives of size, and on a simulated day what campaigns and bursts are worth.

    python tests/bench/campaigns.py make 1000000 million.parquet        rows, a fifth of them distinct to the scorer
    python tests/bench/campaigns.py run million.parquet                 the command with --all: rows, seconds, peak memory
    python tests/bench/campaigns.py day CORPUS... --threats FILE        recall and false alarms with and without `burst`
    python tests/bench/campaigns.py edits                               at which rate of edits copies escape the counter

The day: 100,000 ordinary messages from CORPUS (.jsonl, .gz too), 30 bulk senders of authored notices, and 200 campaigns
from the flagged rows of --threats, say test.parquet of a built corpus, which the bundle did not learn from. Sizes go like
1/r (Zipf). Each copy has its slots filled anew; half of the campaigns disguise their second half, each by one family.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import traffic

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.serve.campaigns.group import groups
from jingyin.serve.campaigns.minhash import signatures
from jingyin.serve.http.burst import BurstCounter, Bursts, BurstSettings
from jingyin.train.corpus.authored import default_folders, load
from jingyin.train.corpus.evade import TRAINING, evade
from jingyin.train.corpus.expand import SLOT, expand

DAY = 86_400.0
HAN = "".join(chr(c) for c in range(0x4E00, 0x9000))
THREAT = "您好，您在我司的借款已逾期三天，若今日下午六点前未处理，将通知您的通讯录联系人及单位，后果自负"


class Sent(NamedTuple):
    """A message of the day: when, its text, and the campaign or bulk sender that it comes from, "" for none."""

    at: float
    text: str
    campaign: str


# ---- scale


def make(rows: int, file: Path) -> None:
    """Write rows of 2,000 templates (Zipf), each distinct text five times: one or two characters of a copy are its own."""
    rng = Random(8)
    templates = traffic.templated(2000, seed=8)
    weights = [1 / rank for rank in range(1, len(templates) + 1)]
    schema = pa.schema({"text": pa.string(), "sender": pa.string(), "receiver": pa.string(), "at": pa.timestamp("s")})
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            drawn = [_varied(text, rng) for text in rng.choices(templates, weights, k=-(-count // 5))]
            texts = rng.sample(drawn * 5, count)
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.array(texts), pa.array([f"1069{rng.randrange(10**4):04d}" for _ in texts]),
                        pa.array([f"138{rng.randrange(10**8):08d}" for _ in texts]),
                        pa.array([1_520_000_000 + start + i for i in range(count)], pa.timestamp("s")),
                    ],
                    schema,
                )
            )  # fmt: skip


def _varied(text: str, rng: Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + "".join(rng.choices(HAN, k=rng.randint(1, 2))) + text[at:]


def run(file: Path, bundle: Path | None) -> None:
    out = Path(f"{file.with_suffix('')}.campaigns")
    shutil.rmtree(out, ignore_errors=True)
    code = "import sys; from jingyin.cli import main; sys.argv[0] = 'jingyin'; main()"
    chosen = ["--bundle", str(bundle)] if bundle else []
    columns = ["--sender", "sender", "--receiver", "receiver", "--time", "at"]
    begun, peak = time.monotonic(), 0
    with psutil.Popen(
        [sys.executable, "-c", code, "campaigns", str(file), str(out), "--all", *columns, *chosen]
    ) as process:
        gathered = 0.0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            if not gathered and (out / "_members.parquet.writing").exists():
                gathered = time.monotonic() - begun
            time.sleep(0.05)
    rows, seconds = pq.read_metadata(file).num_rows, time.monotonic() - begun
    print(f"{rows:,} rows, {pq.read_metadata(out / 'campaigns.parquet').num_rows:,} campaigns, {seconds:.0f} s, "
          f"scoring and grouping {gathered:.0f} s of them; peak {peak / 1e6:.0f} MB RSS")  # fmt: skip


def _memory(process: psutil.Popen) -> int:
    try:
        return int(sum(each.memory_info().rss for each in [process, *process.children()]))
    except psutil.NoSuchProcess:
        return 0


# ---- worth


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
    print(f"{name:<14} threats stopped {np.mean(by_kind['threat']):.1%} of messages, {mostly} of {len(threats)} campaigns at "
          f"least half, {len(threats) - len(before)} never; copies before the first held: median {np.median(before):.0f}, "
          f"90% {np.quantile(before, 0.9):.0f}; false: {sum(by_kind[''])} of {len(by_kind['']):,} ordinary, "
          f"{sum(by_kind['bulk'])} of {len(by_kind['bulk']):,} bulk, {sum(map(any, bulk))} of {len(bulk)} senders")  # fmt: skip


def agreement(name: str, sent: Sequence[Sent]) -> None:
    """Print how groups agree with the truth: purity, inverse purity, adjusted Rand index; ordinary messages are each alone."""
    keys: dict[str, int] = {}
    texts = [keys.setdefault(clean(each.text).text, len(keys)) for each in sent]
    found = groups(signatures(list(keys)))[texts].tolist()
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


# ---- the counter


def edits() -> None:
    rng = Random(1)
    for rate in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        found = []
        for _ in range(30):
            counter = BurstCounter(600)
            for _ in range(100):
                counter.count(_edited(rate, rng), 0.0)
            found += [counter.count(_edited(rate, rng), 0.0) > 20 for _ in range(10)]
        print(
            f"{rate:.0%} of characters changed in each copy: {np.mean(found):.0%} of the copies count more than 20 of 100"
        )
    counter, text = BurstCounter(600), clean(THREAT).text
    begun = time.thread_time()
    for _ in range(100_000):
        counter.count(text, 0.0)
    print(f"{(time.thread_time() - begun) * 10:.1f} us a message of {len(text)} characters")


def _edited(rate: float, rng: Random) -> str:
    kinds = (lambda c: rng.choice(HAN), lambda c: "", lambda c: c + rng.choice(HAN))
    return "".join(rng.choice(kinds)(c) if rng.random() < rate else c for c in THREAT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    made = what.add_parser("make")
    made.add_argument("rows", type=int)
    made.add_argument("file", type=Path)
    ran = what.add_parser("run")
    ran.add_argument("file", type=Path)
    ran.add_argument("--bundle", type=Path)
    simulated = what.add_parser("day")
    simulated.add_argument("corpora", nargs="+", type=Path)
    simulated.add_argument("--threats", type=Path, required=True)
    simulated.add_argument("--messages", type=int, default=100_000)
    simulated.add_argument("--campaigns", type=int, default=200)
    simulated.add_argument("--bundle", type=Path)
    what.add_parser("edits")
    args = vars(parser.parse_args())
    {"make": make, "run": run, "day": day, "edits": edits}[args.pop("what")](**args)


if __name__ == "__main__":
    main()
