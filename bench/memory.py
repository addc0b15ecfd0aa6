"""Measures what the memory of a gateway is worth, and what it costs.

    python bench/memory.py week CORPUS... --threats TEST [--with NAME...]    a simulated week, see memory_week.py
    python bench/memory.py known CORPUS...    known wordings: near-copies stopped, lawful twins and CORPUS hit, time
    python bench/memory.py cost [redis://...]    a message's round trip: in memory, over a socket, on a server

TEST is test.parquet of a built corpus, or JSON lines with label and text. `known` takes its wordings from the authored rows.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import traffic
from memory_week import MEMORIES, week

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.serve.memory.known import COMPANY, Index, Wording, hashes, holds, log_odds
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local, Op, Server, Socket, State, listening
from jingyin.train.corpus.perturb import TRAINING, evade
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import SLOT, expand

COPIES, WORDINGS, CHANGED = 1_000, 10_000, 3
SECRET = Secret(bytes(32), encrypts=False)
HAN = [chr(code) for code in range(0x4E00, 0x9000)]
LAWFUL = ("ordinary", "lawful_collection")


# ---- known wordings


class Judge:
    """Knows one wording, and says whether a message is a near-copy of it as the service does."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def risk(self, text: str) -> float:
        return next(self._scorer.scored([text])).decision.risk

    def holds(self, wording: Wording, text: str) -> bool:
        cleaned = clean(text).text
        for match in Index([wording], SECRET.salt).find(cleaned):
            if holds(match, self.risk(text)):
                return True
            if wording.action != "pass" and len(match.part) < COMPANY * len(cleaned):
                return holds(match, self.risk(match.part))
        return False


def _wording(text: str, action: str, risk: float, number: int = 0) -> Wording:
    triples = frozenset(hashes(clean(text).text, SECRET.salt))
    return Wording(str(number), action, "", "", 0, 0, log_odds(risk), triples)  # type: ignore[arg-type]


def known(corpora: Sequence[Path], bundle: Path | None) -> None:
    rng = Random(3)
    judge = Judge(Scorer.load(bundle))
    rows = [row for folder in default_folders() for row in load(folder)]
    flagged = [row for row in rows if row.label in FLAGGED and len(row.text) > 15]
    slotted = rng.sample([row for row in flagged if SLOT.search(row.text)], COPIES)
    short = [row.text for row in rows if row.label in LAWFUL and 10 < len(row.text) < 60]

    def company() -> str:
        return expand(rng.choice(short), rng)

    copies: dict[str, Callable[[str], str]] = {
        "other names and sums": lambda text: text,
        "in company": lambda text: f"{company()}。{text}{company()}",
        "disguised": lambda text: evade(text, rng.choice(TRAINING), 0.3, rng),
        f"{CHANGED} characters changed": lambda text: _changed(text, rng),
    }
    for name, change in copies.items():
        stopped = 0
        for row in slotted:
            text = expand(row.text, rng)
            stopped += judge.holds(_wording(text, "block", judge.risk(text)), change(expand(row.text, rng)))
        print(f"{name}: {stopped / COPIES:.1%} of {COPIES:,} near-copies of a threat stopped", flush=True)
    same = sum(_passes(judge, row.text, rng) for row in rng.sample([r for r in rows if r.label in LAWFUL], COPIES))
    print(f"lawful notices with other names and sums: {same / COPIES:.1%} of {COPIES:,} near-copies passed")
    twins = list(_twins(rng))
    blocked = [judge.holds(_wording(threat, "block", judge.risk(threat)), lawful) for threat, lawful in twins]
    alone = [judge.risk(lawful) < judge._scorer.bundle.manifest.review.risk for _, lawful in twins]
    passed = [judge.holds(_wording(lawful, "pass", judge.risk(lawful)), threat) for threat, lawful in twins]
    fresh = sum(hit and passes for hit, passes in zip(blocked, alone, strict=True))
    print(f"of {len(twins):,} innocents and their threatening twins: {sum(blocked)} innocents hit by the threat "
          f"({fresh} of them pass alone), {sum(passed)} threats passed by the innocent")  # fmt: skip
    texts = [expand(row.text, rng) for row in rng.sample(flagged, min(WORDINGS, len(flagged)))]
    wordings = [_wording(text, "block", 0.5, i) for i, text in enumerate(texts)]
    index = Index(wordings, SECRET.salt)
    ordinary = [clean(text).text for file in corpora for text in traffic.texts(file)]
    found = [(text, match) for text in ordinary for match in index.find(text)]
    hit = {text for text, match in found if holds(match, judge.risk(text))}
    print(f"{len(wordings):,} wordings hit {len(hit)} of {len(ordinary):,} ordinary messages")
    begun = time.thread_time()
    for text in ordinary:
        index.find(text)
    print(f"{(time.thread_time() - begun) / len(ordinary) * 1e6:.1f} us a message")


def _passes(judge: Judge, template: str, rng: Random) -> bool:
    return judge.holds(_wording(expand(template, rng), "pass", 0.5), expand(template, rng))


def _changed(text: str, rng: Random) -> str:
    characters = list(text)
    places = [i for i, character in enumerate(text) if "\u4e00" <= character <= "\u9fff"]
    for i in rng.sample(places, min(CHANGED, len(places))):
        characters[i] = rng.choice(HAN)
    return "".join(characters)


def _twins(rng: Random) -> Iterator[tuple[str, str]]:
    """Yield the threats and innocents of the minimal pairs."""
    pairs = defaultdict(list)
    for file in (file for folder in default_folders() for file in folder.rglob("*.jsonl")):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if "pair" in row:
                pairs[row["pair"]].append((row["label"], expand(row["text"], rng)))
    for pair in pairs.values():
        for threat in (text for label, text in pair if label in FLAGGED):
            yield from ((threat, text) for label, text in pair if label in LAWFUL)


# ---- cost


def cost(address: str | None) -> None:
    """Print what a message with a sender, a contact and a conversation takes on this machine."""
    ops = [
        Op("marked", "s:a"), Op("tally", "fs:a", 0, 86_400.0), Op("tally", "ns:a", 0, 86_400.0),
        Op("marked", "c:a"), Op("tally", "fc:a", 0, 86_400.0), Op("tally", "nc:a", 0, 86_400.0),
        Op("shift", "v:a", b"x" * 90, 600.0),
    ]  # fmt: skip
    with TemporaryDirectory() as folder, listening(Local(), Path(folder) / "state"):
        asyncio.run(_time("in memory", Local(), ops))
        asyncio.run(_time("socket", Socket(Path(folder) / "state"), ops))
    if address:
        asyncio.run(_time(address, Server(address), ops))


async def _time(name: str, state: State, ops: Sequence[Op], count: int = 3_000) -> None:
    for _ in range(50):
        await state.run(ops)
    waits = []
    cpu = time.thread_time()
    for _ in range(count):
        begun = time.perf_counter()
        await state.run(ops)
        waits.append(time.perf_counter() - begun)
    cpu = time.thread_time() - cpu
    print(f"{name}: median {sorted(waits)[count // 2] * 1e6:.0f} us, p99 {sorted(waits)[count * 99 // 100] * 1e6:.0f} us, "
          f"{cpu / count * 1e6:.0f} us of this process's time")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    simulated = what.add_parser("week")
    simulated.add_argument("corpora", nargs="+", type=Path)
    simulated.add_argument("--threats", type=Path, required=True)
    simulated.add_argument("--messages", type=int, default=100_000)
    simulated.add_argument("--gangs", type=int, default=200)
    simulated.add_argument("--victims", type=int, default=2, help="of a gang, a day")
    simulated.add_argument("--bundle", type=Path)
    simulated.add_argument("--with", dest="memories", nargs="*", choices=MEMORIES, default=[])
    wordings = what.add_parser("known")
    wordings.add_argument("corpora", nargs="+", type=Path)
    wordings.add_argument("--bundle", type=Path)
    trip = what.add_parser("cost")
    trip.add_argument("address", nargs="?")
    args = vars(parser.parse_args())
    {"week": week, "known": known, "cost": cost}[args.pop("what")](**args)


if __name__ == "__main__":
    main()
