"""A simulated week that measures the benefit of each memory of the gateway; `memory.py week` runs it.

Ordinary messages of corpora come from their users (`user` of a row, else one sender for each signature, else one for
every twenty messages), in random order over seven days. The gangs each have a threat of their own, from rows of a case
that the bundle has not seen, with names and sums filled anew in each copy, one contact and SENDERS senders. They write
to some people a day. A gang sees whether a message arrives. One that is stopped is edited (the edits of
train/evaluate/attacks.py, or a lawful sentence before or behind) and sent again from the next sender, up to TRIES
times; the next victim gets the version that arrived. One gang in BULK_GANGS also writes to BULK people within ten
minutes, once, and does not try again there. Once a day an analyst looks at the JUDGED largest groups of near-copies
among the day's messages of a risk from .1 on, and makes the commonest message of each a known wording.
"""

import asyncio
import gzip
import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.serve.answer import Answer, Context, Origin
from jingyin.serve.archive.groups import groups, signatures
from jingyin.serve.memory.known import NewWording
from jingyin.serve.memory.memory import Memory
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local
from jingyin.serve.observe import Metrics
from jingyin.serve.scorer import Scored
from jingyin.serve.settings import BurstSettings, SenderSettings, Settings
from jingyin.train.corpus.slots import SLOTS, fill_slots
from jingyin.train.evaluate.attacks import EDITS

DAY = 86_400.0
SENDERS, TRIES, JUDGED = 4, 8, 20
BULK_GANGS, BULK = 10, 50
MEMORIES = {
    "message alone": "",
    "with senders": "senders",
    "with contacts": "contacts",
    "with bursts": "burst",
    "with known wordings": "known",
    "with all": "senders contacts burst known",
}
_CONTACT = re.compile(r"\{(phone|wechat|qq|link)\}")
_WAYS = ("，加微信{wechat}", "，电话{phone}", "，qq{qq}", "，详见{link}")
_SIGNATURE = re.compile("【([^】]+)】")
_KINDS = (*EDITS, "company before", "company behind")


class Sent(NamedTuple):
    """An ordinary message: when it comes, from whom, and how it is read."""

    at: float
    sender: str
    scored: Scored


@dataclass
class Gang:
    """A gang's knowledge so far; `edits` are those of its last message that arrived."""

    template: str
    rng: Random
    innocent: Sequence[str]
    edits: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    turn: int = 0

    def write(self, edits: Sequence[str]) -> str:
        """Return a copy with the edits."""
        text = fill_slots(self.template, self.rng)
        for kind in edits:
            company = self.rng.choice(self.innocent)
            if kind.startswith("company"):
                text = f"{company}{text}" if kind.endswith("before") else f"{text}{company}"
            else:
                text = EDITS[kind](text, self.rng)
        return text

    def learn(self, edits: list[str], number: int, passes: bool) -> list[str] | None:
        """Learn whether the try of this number arrived; return the edits of the next try, None if there is none."""
        for kind in edits[-1:]:
            self.tried[kind] += 1
            self.passed[kind] += passes
        if passes:
            self.edits = edits
            return None
        self.turn += 1
        return self.other(edits) if number < TRIES else None

    def other(self, edits: Sequence[str]) -> list[str]:
        """Return edits for the next try: one more, the most promising, or that alone if there are three."""
        left = [kind for kind in _KINDS if kind not in edits]
        best = max(left, key=lambda kind: ((self.passed[kind] + 1) / (self.tried[kind] + 1), self.rng.random()))
        return [*edits, best] if len(edits) < 3 else [best]


class SimulatedService:
    """A service with some of its memories, and a clock."""

    def __init__(self, scorer: Scorer, memories: str) -> None:
        self.now = 1.7e9
        self._scorer = scorer
        secret = Secret(bytes(32), encrypts=False)
        on = memories.split()
        settings = Settings(
            senders=SenderSettings() if {"senders", "contacts"} & set(on) else None,
            burst=BurstSettings() if "burst" in on else None,
        )
        self.memory = Memory(settings, Metrics(), secret, Local(clock=lambda: self.now))
        self.judges = "known" in on
        if suspects := self.memory.suspects:
            suspects._chance = Random(4).random
            marks = suspects.marks
            if "senders" not in on:
                suspects.marks = lambda key, sender, contacts: marks(key, None, contacts)  # type: ignore[method-assign]
            if "contacts" not in on:
                suspects.marks = lambda key, sender, contacts: marks(key, sender, ())  # type: ignore[method-assign]

    def scored(self, text: str) -> Scored:
        """Return a text as it is read."""
        return next(self._scorer.scored([text]))

    async def send(self, scored: Scored, sender: str) -> Answer:
        """Return the service's answer."""

        async def read(text: str) -> Scored:
            return self.scored(text)

        origin = Origin("", "", sender, None, float("inf"))
        return await self.memory.judge(
            Context(origin, self.now, read), Answer(scored, scored.decision.action, "scored")
        )


def week(
    corpora: Sequence[Path],
    threats: Path,
    messages: int,
    gangs: int,
    victims: int,
    bundle: Path | None,
    memories: Sequence[str],
) -> None:
    """Print, for each of the memories, the gangs' messages that arrive and the ordinary messages that are flagged."""
    scorer = Scorer.load(bundle)
    rng = Random(6)
    ordinary = _ordinary(corpora, messages, scorer, rng)
    templates = rng.sample(flagged_templates(threats), gangs)
    print(f"{len(ordinary):,} ordinary messages, {gangs} gangs, bundle {scorer.bundle.manifest.id}")
    alone = None
    for name in memories or MEMORIES:
        counts, false = asyncio.run(_simulate(SimulatedService(scorer, MEMORIES[name]), ordinary, templates, victims))
        alone = false if alone is None else alone
        sent, stopped = counts["sent"], counts["stopped"]
        print(
            f"{name:<20} {sent:,} threats sent, {stopped / sent:.1%} stopped; "
            f"{counts['reached'] / counts['victims']:.1%} of {counts['victims']:,} victims reached; "
            f"ordinary flagged: {false}, {false - alone} more than alone "
            f"(1 in {len(ordinary) / max(1, false - alone):,.0f}); "
            + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if reason.startswith("by ")),
            flush=True,
        )


def _ordinary(corpora: Sequence[Path], messages: int, scorer: Scorer, rng: Random) -> list[Sent]:
    rows = [row for file in corpora for row in _rows(file)]
    rows = rng.sample(rows, min(messages, len(rows)))
    read = scorer.scored([text for text, _ in rows])
    return sorted(
        (
            Sent(rng.uniform(0, 7 * DAY), sender or f"one of twenty {rng.randrange(len(rows) // 20 + 1)}", each)
            for (_, sender), each in zip(rows, read, strict=True)
        ),
        key=lambda sent: sent.at,
    )


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each message with its user, or the signature that stands in it."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            signature = _SIGNATURE.search(row["text"])
            yield row["text"], row.get("user") or (signature[1] if signature else "")


def flagged_templates(file: Path) -> list[str]:
    """Return the different templates of flagged rows of cases in the test split of a corpus, or of JSON lines."""
    if file.suffix == ".parquet":
        rows = [row for row in pq.read_table(file).to_pylist() if row["case"] and not row["evasion"]]
    else:
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    return list(dict.fromkeys(row.get("template") or row["text"] for row in rows if row["label"] in FLAGGED))


async def _simulate(
    world: SimulatedService, ordinary: Sequence[Sent], templates: Sequence[str], victims: int
) -> tuple[Counter[str], int]:
    rng = Random(7)
    start, false = world.now, 0
    innocent = [each.scored.clean.original for each in ordinary if 6 < len(each.scored.clean.original) < 40]
    gangs = [Gang(_with_contact(each, rng), Random(f"gang {i}"), innocent) for i, each in enumerate(templates)]
    # Events: (time, order, gang or -1, number of the try or of the ordinary message, edits)
    events: list[tuple[float, int, int, int, tuple[str, ...] | None]] = [
        (each.at, i, -1, i, ()) for i, each in enumerate(ordinary)
    ]
    for i in range(len(gangs)):
        events += [(rng.uniform(0, 7 * DAY), -1 - i, i, 1, None) for _ in range(7 * victims)]
        if i % BULK_GANGS == 0:
            begun = rng.uniform(DAY, 7 * DAY)
            events += [(begun + rng.uniform(0, 600), -1 - i, i, TRIES, None) for _ in range(BULK)]
    heapq.heapify(events)
    counts: Counter[str] = Counter(victims=len(events) - len(ordinary))
    day: list[tuple[str, str, str]] = []  # clean text, text and truth of suspicious messages
    judged = 1
    while events:
        at, order, i, number, given = heapq.heappop(events)
        world.now = start + at
        if world.judges and at > judged * DAY:
            judged += 1
            await _judge(world, day)
            day = []
        if i < 0:
            scored, sender = ordinary[number].scored, ordinary[number].sender
        else:
            gang = gangs[i]
            edits = list(gang.edits if given is None else given)
            text = gang.write(edits)
            scored, sender = world.scored(text), f"gang {i} {gang.turn % SENDERS}"
        answer = await world.send(scored, sender)
        passes = answer.action == "pass"
        if scored.decision.risk >= 0.1:
            day.append((scored.clean.text, scored.clean.original, "pass" if i < 0 else "block"))
        if i < 0:
            false += not passes
            continue
        counts += Counter(sent=1, stopped=not passes, reached=passes)
        if answer.reason != "scored":
            counts[f"by {answer.reason}"] += 1
        if (then := gang.learn(edits, number, passes)) is not None:
            heapq.heappush(events, (at + gang.rng.uniform(60, 600), order, i, number + 1, tuple(then)))
    return counts, false


def _with_contact(template: str, rng: Random) -> str:
    """Return a template whose contacts are one and the same in all copies."""
    filled = _CONTACT.sub(lambda slot: SLOTS[slot[1]](rng), template)
    if filled != template:
        return filled
    return template.rstrip("。！!") + _CONTACT.sub(lambda slot: SLOTS[slot[1]](rng), rng.choice(_WAYS))


async def _judge(world: SimulatedService, day: Sequence[tuple[str, str, str]]) -> None:
    """Judge the largest groups of near-copies by the truth of their commonest message."""
    if not day:
        return
    texts = list(dict.fromkeys(clean_text for clean_text, _, _ in day))
    numbers = {text: i for i, text in enumerate(texts)}
    stands = groups(signatures(texts), np.bincount([numbers[text] for text, _, _ in day]))
    members = defaultdict(list)
    for each in day:
        members[int(stands[numbers[each[0]]])].append(each)
    for group in sorted(members.values(), key=len, reverse=True)[:JUDGED]:
        text, original, truth = max(group, key=lambda each: sum(other[0] == each[0] for other in group))
        risk = world.scored(original).decision.risk
        if len(text) >= 10:
            await world.memory.known.add(NewWording(action=truth, text=original), "analyst", risk)  # type: ignore[arg-type]
