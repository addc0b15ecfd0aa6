"""Measures the benefit and the cost of a gateway's memory.

    python bench/memory.py week CORPUS... --threats TEST [--with NAME...]    a simulated week, see memory_week.py
    python bench/memory.py sender TEST    one who edits a flagged threat until it passes, alone and remembered
    python bench/memory.py known CORPUS...    known wordings: near-copies stopped, lawful twins and CORPUS hit, time
    python bench/memory.py cost [redis://...]    a message's round trip: in memory, over a socket, on a server

TEST is test.parquet of a built corpus, or JSON lines with label and text. `known` takes its wordings from the authored
rows.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import traffic
from memory_week import MEMORIES, SimulatedService, flagged_templates, week

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.model.near_copies import hashes
from jingyin.model.text import clean
from jingyin.serve.memory.known import COMPANY, Index, KnownAction, Wording, holds, log_odds
from jingyin.serve.memory.remote import Socket, ValkeyState, listening
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local, Op, State
from jingyin.train.corpus.perturb import TRAINING, evade
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import SLOT, fill_slots
from jingyin.train.evaluate.attacks import greedy_tries

COPIES, WORDINGS, CHANGED = 500, 10_000, 3
SECRET = Secret(bytes(32), encrypts=False)
HAN = [chr(code) for code in range(0x4E00, 0x9000)]
LAWFUL = ("ordinary", "lawful_collection")


# ---- known wordings


class WordingJudge:
    """Knows one wording, and says whether a message is a near-copy of it as the service does."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def risk(self, text: str) -> float:
        return next(self._scorer.scored([text])).decision.risk

    def flags(self, text: str) -> bool:
        return self.risk(text) >= self._scorer.bundle.manifest.review.risk

    def hits(self, index: Index, text: str) -> bool:
        for match in index.find(clean(text).text):
            if holds(match, self.risk(text)):
                return True
            if match.wording.action != "pass" and match.around >= COMPANY:
                return holds(match, self.risk(match.part), alone=True)
        return False


def _wording(text: str, action: KnownAction, risk: float) -> Wording:
    triples, sounds = (frozenset(hashes(clean(text).text, SECRET.salt, sounds=sounds)) for sounds in (False, True))
    return Wording(text, action, "", "", 0, 0, log_odds(risk), triples, sounds)


def known(corpora: Sequence[Path], bundle: Path | None) -> None:
    rng = Random(3)
    judge = WordingJudge(Scorer.load(bundle))
    rows = [row for folder in default_folders() for row in load(folder)]
    flagged = [row for row in rows if row.label in FLAGGED and len(row.text) > 15]
    slotted = rng.sample([row for row in flagged if SLOT.search(row.text)], COPIES)
    lawful = [row for row in rows if row.label in LAWFUL]
    short = [row.text for row in lawful if 10 < len(row.text) < 60]

    def company() -> str:
        return fill_slots(rng.choice(short), rng)

    def hit(known: str, action: KnownAction, text: str) -> bool:
        return judge.hits(Index([_wording(known, action, judge.risk(known))], SECRET.salt), text)

    copies: dict[str, Callable[[str], str]] = {
        "other names and sums": lambda text: text,
        "in company": lambda text: f"{company()}。{text}{company()}",
        "disguised": lambda text: evade(text, rng.choice(TRAINING), 0.3, rng),
        f"{CHANGED} characters changed": lambda text: _changed(text, rng),
    }
    for name, change in copies.items():
        pairs = [(fill_slots(row.text, rng), change(fill_slots(row.text, rng))) for row in slotted]
        alone = sum(judge.flags(copy) for _, copy in pairs)
        stopped = sum(judge.flags(copy) or hit(text, "block", copy) for text, copy in pairs)
        print(
            f"{name}: {stopped / COPIES:.1%} of {COPIES:,} near-copies of a threat stopped, {alone / COPIES:.1%} alone",
            flush=True,
        )
    same = sum(hit(fill_slots(row.text, rng), "pass", fill_slots(row.text, rng)) for row in rng.sample(lawful, COPIES))
    print(f"lawful notices with other names and sums: {same / COPIES:.1%} of {COPIES:,} near-copies passed")
    twins = list(_twins(rng))
    blocked = sum(not judge.flags(innocent) and hit(threat, "block", innocent) for threat, innocent in twins)
    passed = sum(hit(innocent, "pass", threat) for threat, innocent in twins)
    print(
        f"of {len(twins):,} innocents and their threatening twins: {blocked} innocents that pass alone hit by the "
        f"threat, {passed} threats passed by the innocent",
        flush=True,
    )
    texts = (fill_slots(row.text, rng) for row in rng.sample(flagged, min(WORDINGS, len(flagged))))
    # The risk of most threats is higher, and fewer messages are near it.
    index = Index([_wording(text, "block", 0.5) for text in texts], SECRET.salt)
    ordinary = [text for file in corpora for text in traffic.texts(file)]
    found = [text for text in ordinary if judge.hits(index, text) and not judge.flags(text)]
    print(f"{len(index.wordings):,} wordings hit {len(found)} of {len(ordinary):,} ordinary messages")
    cleaned = [clean(text).text for text in ordinary]
    begun = time.thread_time()
    for text in cleaned:
        index.find(text)
    print(f"{(time.thread_time() - begun) / len(cleaned) * 1e6:.1f} us a message")


def _changed(text: str, rng: Random) -> str:
    characters = list(text)
    places = [i for i, character in enumerate(text) if "\u4e00" <= character <= "\u9fff"]
    for i in rng.sample(places, min(CHANGED, len(places))):
        characters[i] = rng.choice(HAN)
    return "".join(characters)


def _twins(rng: Random) -> Iterator[tuple[str, str]]:
    """Yield the threats and innocents of the minimal pairs, but those that differ in numbers alone."""
    pairs = defaultdict(list)
    for file in (file for folder in default_folders() for file in folder.rglob("*.jsonl")):
        for row in map(json.loads, file.read_bytes().splitlines()):
            if "pair" in row:
                pairs[row["pair"]].append((row["label"], fill_slots(row["text"], rng)))
    for pair in pairs.values():
        innocents = [text for label, text in pair if label in LAWFUL]
        for threat in (text for label, text in pair if label in FLAGGED):
            yield from ((threat, text) for text in innocents if _triples(text) != _triples(threat))


def _triples(text: str) -> list[int]:
    return hashes(clean(text).text, SECRET.salt)


# ---- a sender who tries again


def sender(threats: Path, count: int, bundle: Path | None) -> None:
    """Print how many flagged threats pass after edits, each from a sender of its own, with a minute between tries."""
    scorer = Scorer.load(bundle)
    rng = Random(11)
    templates = flagged_templates(threats)
    texts = (fill_slots(template, rng) for template in rng.sample(templates, len(templates)))
    flagged = list(islice((text for text in texts if scorer.score(text).action != "pass"), count))
    for name in ("message alone", "with all"):
        tries = asyncio.run(_tries(SimulatedService(scorer, MEMORIES[name]), flagged))
        through = (sum(each is not None and each <= most for each in tries) / len(tries) for most in (1, 3, 8, 10))
        print(f"{name}: of {len(tries)} threats pass within 1, 3, 8, 10 tries: "
              + ", ".join(f"{share:.1%}" for share in through), flush=True)  # fmt: skip


async def _tries(world: SimulatedService, texts: Sequence[str]) -> list[int | None]:
    """Return at which try each text passes, in a thread for the attack, which is not asynchronous."""
    loop = asyncio.get_running_loop()
    found: list[int | None] = []

    def passes(text: str) -> bool:
        world.now += 60
        answer = asyncio.run_coroutine_threadsafe(world.send(world.scored(text), f"sender {len(found)}"), loop)
        return answer.result().action == "pass"

    def sent() -> Iterator[str]:
        for text in texts:
            passes(text)
            yield text

    def play() -> None:
        for tries in greedy_tries(passes, sent()):
            found.append(tries)  # noqa: PERF402 - `passes` names the sender by how many are found

    await asyncio.to_thread(play)
    return found


# ---- cost


def cost(address: str | None) -> None:
    """Print the cost of a message with a sender, a contact and a conversation on this machine."""
    ops = [
        Op("marked", "s:a"), Op("tally", "fs:a", 0, 86_400.0), Op("tally", "ns:a", 0, 86_400.0),
        Op("marked", "c:a"), Op("tally", "fc:a", 0, 86_400.0), Op("tally", "nc:a", 0, 86_400.0),
        Op("shift", "v:a", b"x" * 90, 600.0),
    ]  # fmt: skip
    with TemporaryDirectory() as folder, listening(Local(), Path(folder) / "state"):
        asyncio.run(_time("in memory", Local(), ops))
        asyncio.run(_time("socket", Socket(Path(folder) / "state"), ops))
    if address:
        asyncio.run(_time(address, ValkeyState(address), ops))


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
    waits.sort()
    print(
        f"{name}: median {waits[count // 2] * 1e6:.0f} us, p99 {waits[count * 99 // 100] * 1e6:.0f} us, "
        f"{cpu / count * 1e6:.0f} us of this process's time"
    )


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
    again = what.add_parser("sender")
    again.add_argument("threats", type=Path)
    again.add_argument("--count", type=int, default=300)
    again.add_argument("--bundle", type=Path)
    wordings = what.add_parser("known")
    wordings.add_argument("corpora", nargs="+", type=Path)
    wordings.add_argument("--bundle", type=Path)
    trip = what.add_parser("cost")
    trip.add_argument("address", nargs="?")
    args = vars(parser.parse_args())
    {"week": week, "sender": sender, "known": known, "cost": cost}[args.pop("what")](**args)


if __name__ == "__main__":
    main()
