"""Cases: near-copies of doubted messages, which an analyst decides together.

Two messages are near-copies if they share most of a sketch (model/near_copies.py). A message is compared with the first
of each case, so a chain of similar messages does not tie dissimilar ones together. Near-copies that come after the
decision open a new case, if the known wording that it became did not reach them: no analyst has seen what they hold.

Cases are listed by expected harm: risk times messages, of which each counts half as much after HALF_LIFE, and those to
a receiver who already has one a quarter. The logarithm of that sum at time 0 orders cases as the sum would at any time
(forward decay, Cormode 2009), so nothing is updated as time passes.
"""

import json
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Literal, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.near_copies import sketch
from jingyin.serve.answer import RefusedError
from jingyin.serve.cases.store import CASES, PARTIES, SKETCHES, TEXTS, Store
from jingyin.serve.memory.secret import Secret
from jingyin.serve.settings import CaseSettings

SKETCH, SHARED = 16, 0.625
"""Hashes of a message, and the share of them that near-copies have in common."""
HALF_LIFE = 6 * 3_600.0
"""Seconds after which a message says half as much about those still to come."""
AGAIN, REPORT = 0.25, 20.0
"""Weight of a message to a receiver who has one of this case already, and of a report; of other messages 1."""
PARTIES_COUNTED = 10_000
"""Most senders, receivers and reporters of a case that are told apart."""
GRACE = 1.0
"""Seconds after a decision in which messages still join the case: other workers may not know the wording yet."""
DECIDED_DAYS = 365
"""How long a decision is kept, with the text that it labels."""
LEAST_RISK = 0.01
PAGE = 500
"""Cases that are read at a time, in a search for text."""

TEXT = 4_000
"""Most characters of a message that are kept."""

ReportKind = Literal["unwanted", "wrongly_blocked"]
Decision = Literal["threat", "innocent"]


# Statements for each message, built once: SQLAlchemy takes longer to build one than SQLite to run it.
_NUMBER: sa.BindParameter[str] = sa.bindparam("number")
_SHARED = sa.func.count().label("shared")
_NEAR = (
    sa.select(SKETCHES.c.case, _SHARED)
    .where(SKETCHES.c.hash.in_(sa.bindparam("sketch", expanding=True)))
    .group_by(SKETCHES.c.case)
    .having(sa.bindparam("least") <= _SHARED)
    .subquery()
)
_JOINS = sa.or_(
    CASES.c.state == "open", CASES.c.decided > sa.bindparam("since"), CASES.c.decision == sa.bindparam("agreed")
)
_FIND = (
    sa.select(CASES)
    .join(_NEAR, _NEAR.c.case == CASES.c.id)
    .where(_JOINS, _NEAR.c.shared >= SHARED * CASES.c.hashes)
    .order_by(_NEAR.c.shared.desc(), CASES.c.state.desc(), CASES.c.harm.desc())
    .limit(1)
)
_CASE = sa.select(CASES).where(CASES.c.id == _NUMBER)
_UPDATE, _INSERT = CASES.update().where(CASES.c.id == _NUMBER), CASES.insert()
_ADD_HASHES, _ADD_PARTIES, _ADD_TEXT = SKETCHES.insert(), PARTIES.insert(), TEXTS.insert()
_MET = sa.select(PARTIES.c.kind, PARTIES.c.hash).where(
    PARTIES.c.case == _NUMBER, PARTIES.c.hash.in_(sa.bindparam("hashes", expanding=True))
)
_TEXTS = sa.select(TEXTS.c.hash).where(TEXTS.c.case == _NUMBER)


class Message(NamedTuple):
    """A message, or with `report` a subscriber's report of one; `kept` gets the result once it is written.

    `time` is that of its arrival here; a report may name an earlier one, at which the message was `sent`. `clean` is
    its clean text, `reasons` are signs and memory's reason.
    """

    time: float
    text: str
    clean: str
    action: str
    label: str
    risk: float
    reasons: tuple[str, ...]
    key: str
    route: str | None
    sender: str | None
    receiver: str | None
    report: ReportKind | None = None
    sent: float | None = None
    kept: "Future[None] | None" = None


_Query = Annotated[str, Field(pattern="^[^\\x00]*$")]  # PostgreSQL stores no NUL, and looks for none


class Filter(BaseModel):
    """Which cases are listed, the query of GET /admin/cases: at most `limit`, beginning behind the case `after`.

    `text` is searched for in the texts that are kept.
    """

    model_config = ConfigDict(extra="forbid")

    state: Annotated[str, Field(pattern="^(open|decided)$")] = "open"
    reason: _Query | None = None
    route: _Query | None = None
    label: _Query | None = None
    text: _Query | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 50
    after: _Query | None = None


class Cases:
    """The cases of a database. Every method blocks, and raises StoreError if the database can't be used."""

    def __init__(
        self, store: Store, secret: Secret, settings: CaseSettings, dropped: Callable[[str, int], None]
    ) -> None:
        """Call `dropped` with what is dropped, and how much of it."""
        self.store, self._secret, self._settings, self._dropped = store, secret, settings, dropped

    # ---- messages

    def keep(self, messages: Sequence[Message]) -> None:
        """Let messages join their cases, or open new ones, all or none."""
        texts = 0
        with self.store.writing() as connection:
            for message in messages:
                texts += not self._keep(connection, message)
        if texts:
            self._dropped("texts", texts)

    def expire(self) -> int:
        """Forget what is too old, and the least harmful cases beyond the limit; return how many are open."""
        now = time.time()
        oldest = now - 86_400 * self._settings.days
        is_open, is_decided = CASES.c.state == "open", CASES.c.state == "decided"
        old = sa.select(CASES.c.id).where(is_open, CASES.c.last < oldest).limit(PAGE)
        gone = sa.select(CASES.c.id).where(CASES.c.decided < now - 86_400 * DECIDED_DAYS).limit(PAGE)
        self._dropped("old", self._remove(old))
        self._remove(gone)
        with self.store.reading() as connection:
            (number,) = connection.execute(sa.select(sa.func.count()).where(is_open)).one()
        while number > self._settings.cases:
            most = min(PAGE, number - self._settings.cases)
            number -= most
            least = sa.select(CASES.c.id).where(is_open).order_by(CASES.c.harm, CASES.c.id).limit(most)
            self._dropped("cases", self._remove(least, once=True))
        with self.store.writing() as connection:  # of decided cases the text remains that the decision labels
            done = sa.select(CASES.c.id).where(is_decided, CASES.c.last < oldest, CASES.c.hashes > 0)
            numbers = list(connection.scalars(done.limit(PAGE)))
            for table in (SKETCHES, PARTIES):
                connection.execute(table.delete().where(table.c.case.in_(numbers)))
            connection.execute(TEXTS.delete().where(TEXTS.c.case.in_(numbers), TEXTS.c.number > 0))
            connection.execute(CASES.update().where(CASES.c.id.in_(numbers)).values(hashes=0))
        return int(number)

    def _remove(self, chosen: "sa.Select[Any]", *, once: bool = False) -> int:
        removed = 0
        while True:
            with self.store.writing() as connection:  # a part at a time: others wait
                count = connection.execute(CASES.delete().where(CASES.c.id.in_(chosen))).rowcount
            removed += count
            if once or count < PAGE:
                return removed

    def _keep(self, connection: sa.Connection, message: Message) -> bool:
        """Keep a message; return whether its text is among the case's."""
        hashes = sketch(message.clean, self._secret.salt, SKETCH) or [self._hash("text", message.clean)]
        agreed = {"unwanted": "threat", "wrongly_blocked": "innocent"}.get(message.report or "", "")
        near = {"sketch": hashes, "least": SHARED * len(hashes), "since": message.time - GRACE, "agreed": agreed}
        case = connection.execute(_FIND, near).first() or self._open(connection, message, hashes)
        new = self._meet(connection, case, message)
        weight = REPORT * new["reporter"] if message.report else 1.0 if new["receiver"] else AGAIN
        messages: int = case._mapping["count"]  # a row has a method of this name
        total = _added(case.weight, weight, message.time)
        riskier = message.risk > case.risk
        found = message if riskier else case
        routes = [message.route] if message.route else []
        reasons = ["reported", *(["wrongly_blocked"] * (message.report == "wrongly_blocked"))] if message.report else []
        values = {
            "count": messages + (not message.report or not messages),
            "senders": case.senders + new["sender"],
            "receivers": case.receivers + new["receiver"],
            "reports": case.reports + new["reporter"],
            "first": min(case.first, message.sent or message.time),
            "last": max(case.last, message.time),
            "risk": found.risk,
            "label": found.label,
            "action": found.action,
            "reasons": _joined(_lines(case.reasons), [*message.reasons, *reasons], 20),
            "routes": _joined(_lines(case.routes), routes, 20),
            "weight": total,
            "harm": total + math.log2(max(found.risk, LEAST_RISK)),
        }
        connection.execute(_UPDATE, {"number": case.id, **values})
        return self._add_text(connection, case, message)

    def _hash(self, *parts: str) -> int:
        return int(self._secret.hash("case", *parts)[:16], 16) - (1 << 63)

    def _open(self, connection: sa.Connection, message: Message, hashes: list[int]) -> "sa.Row[Any]":
        number = secrets.token_hex(8)
        values = dict.fromkeys(("version", "count", "senders", "receivers", "reports"), 0)
        connection.execute(
            _INSERT,
            {
                **values, "id": number, "state": "open", "first": message.time, "last": message.time,
                "risk": message.risk, "label": message.label, "action": message.action, "reasons": "", "routes": "",
                "hashes": len(hashes), "weight": -math.inf, "harm": -math.inf,
            },
        )  # fmt: skip
        connection.execute(_ADD_HASHES, [{"hash": each, "case": number} for each in hashes])
        return connection.execute(_CASE, {"number": number}).one()

    def _meet(self, connection: sa.Connection, case: "sa.Row[Any]", message: Message) -> dict[str, int]:
        """Note sender and receiver, or the reporter; return 1 for each that is new to the case, else 0."""
        named = {"sender": message.sender, "receiver": message.receiver}
        if message.report:  # without a receiver, all reports of one key are one reporter's
            named["reporter"] = message.receiver or f"\n{message.key}"
        wanted = {kind: self._hash(kind, name) for kind, name in named.items() if name}
        known = set[str]()
        if case._mapping["count"]:  # else it was opened for this message
            met = connection.execute(_MET, {"number": case.id, "hashes": list(wanted.values())})
            known = {kind for kind, hash_ in met if wanted.get(kind) == hash_}
        counts = {"sender": case.senders, "receiver": case.receivers, "reporter": case.reports}
        new = {kind for kind in wanted.keys() - known if counts[kind] < PARTIES_COUNTED}
        if new:
            rows = [{"case": case.id, "kind": kind, "hash": wanted[kind]} for kind in new]
            connection.execute(_ADD_PARTIES, rows)
        return {kind: int(kind in new) for kind in counts}

    def _add_text(self, connection: sa.Connection, case: "sa.Row[Any]", message: Message) -> bool:
        """Keep a text, if it is new and there is room; return whether it is kept."""
        hash_ = self._hash("text", message.clean)
        kept = list(connection.scalars(_TEXTS, {"number": case.id})) if case._mapping["count"] else []
        if hash_ in kept or len(kept) >= self._settings.texts:
            return hash_ in kept
        names = ("text", "key", "route", "action", "label", "risk", "reasons")
        content = {name: getattr(message, name) for name in names} | {"time": round(message.sent or message.time, 3)}
        sealed = self._secret.seal(json.dumps(content))
        connection.execute(_ADD_TEXT, {"case": case.id, "hash": hash_, "number": len(kept), "sealed": sealed})
        return True

    # ---- analysts

    def listed(self, wanted: Filter) -> list[dict[str, Any]]:
        """Return cases, most harmful first; raises RefusedError if there is no case `after`."""
        found: list[dict[str, Any]] = []
        with self.store.reading() as connection:
            for page in self._pages(connection, wanted):
                texts = self._examples(connection, [row.id for row in page])
                for row in page:
                    case = _as_json(row, [each["text"] for each in texts.get(row.id, [])])
                    if wanted.text is None or any(wanted.text in text for text in case["texts"]):
                        found.append(case)
                    if len(found) == wanted.limit:
                        return found
        return found

    def one(self, number: str) -> dict[str, Any]:
        """Return a case with its messages as `examples`; raises RefusedError without one."""
        with self.store.reading() as connection:
            row = connection.execute(sa.select(CASES).where(CASES.c.id == number.replace("\0", ""))).first()
            if row is None:
                raise RefusedError(404, "there is no case with this id; it may have become too old")
            examples = self._examples(connection, [number]).get(number, [])
        return {**_as_json(row, [each["text"] for each in examples]), "examples": examples}

    def checked(self, number: str, state: str, version: int | None) -> dict[str, Any]:
        """Return a case in this state and version, as `one` does; raises RefusedError for others."""
        case = self.one(number)
        if case["state"] != state or version not in (None, case["version"]):
            raise conflict(case)
        return case

    def decide(self, case: dict[str, Any], decision: Decision, label: str, known: str | None, by: str) -> None:
        """Decide a case as it was returned by `checked`; raises RefusedError if it has been changed since."""
        self._change(case, state="decided", decision=decision, decided_label=label, known=known, decided_by=by,
                     decided=time.time())  # fmt: skip

    def undo(self, case: dict[str, Any]) -> None:
        """Open a decided case again, as if a message had come; raises RefusedError if it has been changed since."""
        nothing = dict.fromkeys(("decision", "decided_label", "known", "decided_by", "decided"))
        self._change(case, state="open", last=time.time(), **nothing)  # with its old `last` it could be forgotten

    def export(self, since: float) -> Iterator[dict[str, Any]]:
        """Yield the decisions since a time as labelled rows, oldest first: the first message of each case."""
        after = (since, "")
        while True:
            later = sa.tuple_(CASES.c.decided, CASES.c.id) > after  # open cases have no time of a decision
            with self.store.reading() as connection:
                order = (CASES.c.decided, CASES.c.id)
                page = connection.execute(sa.select(CASES).where(later).order_by(*order).limit(PAGE)).all()
                texts = self._examples(connection, [row.id for row in page])
            for row in page:
                if kept := texts.get(row.id):
                    yield {
                        "text": kept[0]["text"], "label": row.decided_label, "count": row._mapping["count"],
                        "decided": round(row.decided, 3), "source": "cases",
                    }  # fmt: skip
            if len(page) < PAGE:
                return
            after = (page[-1].decided, page[-1].id)

    def _change(self, case: dict[str, Any], **values: object) -> None:
        place = (CASES.c.id == case["id"], CASES.c.version == case["version"])
        with self.store.writing() as connection:
            changed = connection.execute(CASES.update().where(*place).values(version=case["version"] + 1, **values))
        if not changed.rowcount:
            raise conflict(self.one(case["id"]))

    def _pages(self, connection: sa.Connection, wanted: Filter) -> "Iterator[Sequence[sa.Row[Any]]]":
        """Yield pages of the cases that meet a filter but for its text."""
        conditions = [CASES.c.state == wanted.state]
        if wanted.label:
            conditions.append(CASES.c.label == wanted.label)
        for column, value in ((CASES.c.reasons, wanted.reason), (CASES.c.routes, wanted.route)):
            if value:
                conditions.append(column.contains(f"\n{value}\n", autoescape=True))
        size = wanted.limit if wanted.text is None else PAGE
        place = None
        if wanted.after is not None:
            place = connection.execute(sa.select(CASES.c.harm, CASES.c.id).where(CASES.c.id == wanted.after)).first()
            if place is None:
                raise RefusedError(404, "there is no case with the id `after`; list from the beginning")
        while True:
            behind = [] if place is None else [sa.tuple_(CASES.c.harm, CASES.c.id) < (place.harm, place.id)]
            order = (CASES.c.harm.desc(), CASES.c.id.desc())
            page = connection.execute(sa.select(CASES).where(*conditions, *behind).order_by(*order).limit(size)).all()
            yield page
            if len(page) < size:
                return
            place = page[-1]

    def _examples(self, connection: sa.Connection, numbers: list[str]) -> dict[str, list[dict[str, Any]]]:
        rows = connection.execute(
            sa.select(TEXTS.c.case, TEXTS.c.sealed).where(TEXTS.c.case.in_(numbers)).order_by(TEXTS.c.number)
        )
        found: dict[str, list[dict[str, Any]]] = {}
        for case, sealed in rows:
            if content := self._secret.open(sealed):
                found.setdefault(case, []).append(json.loads(content))
        return found


def conflict(case: dict[str, Any]) -> RefusedError:
    """Return the error that says what another analyst has done to a case meanwhile."""
    words = "this case is open again, or has been decided and opened since; look at it again"
    if case["state"] == "decided":
        by = f" by {case['by']}" if case["by"] else ""
        decided = f"{case['decision']}, {case['decided_label']}"
        words = f"this case was decided{by} meanwhile: {decided}; undo that first"
    return RefusedError(409, words)


def _added(total: float, weight: float, when: float) -> float:
    """Return the logarithm of a decaying sum, with one more message: both at time 0, to the base 2."""
    if not weight:
        return total
    new = math.log2(weight) + when / HALF_LIFE
    most = max(total, new)
    return most + math.log2(2 ** (total - most) + 2 ** (new - most))


def _lines(column: str) -> list[str]:
    return column.split("\n")[1:-1]


def _joined(before: Iterable[str], new: Iterable[str], most: int) -> str:
    """Return values as lines that begin and end with a line break, each once."""
    plain = (each.replace("\n", " ").replace("\0", "").encode(errors="replace").decode() for each in new)
    values = list(dict.fromkeys([*before, *filter(None, plain)]))[:most]
    return "".join(["\n", *(f"{each}\n" for each in values)]) if values else ""


def _as_json(row: "sa.Row[Any]", texts: list[str]) -> dict[str, Any]:
    names = ("id", "state", "version", "count", "senders", "receivers", "reports", "risk", "label", "action")
    case = {name: row._mapping[name] for name in names}
    case |= {"first": round(row.first, 3), "last": round(row.last, 3), "texts": texts}
    case |= {"reasons": _lines(row.reasons), "routes": _lines(row.routes)}
    if row.state == "decided":
        case |= {"decision": row.decision, "decided_label": row.decided_label, "by": row.decided_by}
        case |= {"decided": round(row.decided, 3), "known": row.known}
    return case
