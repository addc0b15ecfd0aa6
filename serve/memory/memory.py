"""Memory: applies earlier messages, people's judgements and policies to a message that has been scored.

For each message, in this order: the policy may decide it; a known wording may; then one round trip to the state records
senders and contacts of flagged messages, and asks for reasons to hold a message that passes: a burst, its sender, a
contact. Finally it is scored again, appended to the earlier messages of its conversation. There is a second round trip
only if that changed the action, or if the message passes and belongs to the sample that shows which senders are
harmless.
"""

import asyncio
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from jingyin.model.errors import ConfigError
from jingyin.model.labels import ACTIONS, Action
from jingyin.model.text import CleanString
from jingyin.serve.answer import Answer, Context
from jingyin.serve.memory.conversations import Bursts, Conversations
from jingyin.serve.memory.known import COMPANY, Known, Match, holds
from jingyin.serve.memory.policy import MessageSource, Policy, read_policy
from jingyin.serve.memory.remote import Guarded, Socket, ValkeyState, listening
from jingyin.serve.memory.secret import Secret, read_secret
from jingyin.serve.memory.senders import Suspects, contacts, has_contact
from jingyin.serve.memory.state import Local, Op, State
from jingyin.serve.observe import Metrics, error_site, log
from jingyin.serve.settings import Settings

_READING: dict[str, Callable[[Op], Op]] = {
    "marked": lambda op: op,
    "mark": lambda op: op._replace(name="marked"),
    "tally": lambda op: op._replace(value=0),
    "shift": lambda op: op._replace(value=b""),
    "add": lambda op: op._replace(name="field"),
}
"""Operation -> the one that reads the same and changes nothing."""


class Memory:
    """Judges the messages of a service; use it on the service's event loop only."""

    def __init__(
        self, settings: Settings, metrics: Metrics, secret: Secret, state: State, patient: State | None = None
    ) -> None:
        """`state` serves messages, `patient`, by default the same, callers that can wait. Raises ConfigError."""
        self.state = state
        self.known = Known(state if patient is None else patient, secret)
        self.suspects = Suspects(settings.senders, secret) if settings.senders else None
        self.policy = read_policy(settings.policy) if settings.policy else Policy(rules=())
        self._bursts = Bursts(settings.burst, secret) if settings.burst else None
        self._conversations = Conversations(settings.conversations, secret) if settings.conversations else None
        self._secret = secret
        self._on_timeout = settings.on_memory_timeout
        self._refreshing: asyncio.Task[None] | None = None
        self._stale = False
        self._metrics = metrics

    async def judge(self, context: Context, answer: Answer, *, trial: bool = False) -> Answer:
        """Return the answer to a message, unchanged or with another action, reason and `more`.

        Only the policy decides on one that was not scored.

        On `trial` nothing is counted or stored in the state.
        """
        answer, decided = self._by_policy(context, answer, trial=trial)
        scored = answer.scored
        if decided or scored is None:
            return answer
        text, final = scored.clean.text, scored.final
        match = await self._known_wording(context, text, scored.decision.risk if final else None)
        if match:
            wording = match.wording
            answer = answer._replace(action=wording.action, reason="known", more={**answer.more, "known": wording.id})
        # Its own action and risk count for later messages; the action for a message not read in time doesn't.
        own_action: Action = answer.action if final or match else "pass"
        risk = scored.decision.risk if final and not (match and match.wording.action == "pass") else 0.0
        return await self._by_state(context, answer, own_action, risk, match, trial=trial)

    async def share_part(
        self, key: str, names: Sequence[str], part: str | None, seconds: int
    ) -> list[tuple[list[str], bool]]:
        """Keep `part`, if any, of a long message under `names` for the filters that ask by API key `key`.

        It is kept for `seconds`, or up to a quarter longer.

        Returns for each name the parts kept under it, the oldest first, and whether some were forgotten early. Raises
        any error if the state can't be reached: a worker's own memory does not have the parts of the others.
        """
        hashes = [self._part_key(key, name) for name in names]
        # Equal parts must be equal when sealed: the state keeps one of them, where copies would push out other parts.
        sealed = self._secret.seal(part, alike=True) if part else b""
        found = await self.known.state.run([Op("push", each, sealed, _rounded(seconds)) for each in hashes])
        return [([text for each in reversed(kept) if (text := self._secret.open(each))], lost) for kept, lost in found]

    async def forget_part(self, key: str, names: Sequence[str], part: str) -> None:
        """Forget a part kept under `names`; raises as `share_part` does."""
        sealed = self._secret.seal(part, alike=True)
        await self.known.state.run([Op("pull", self._part_key(key, name), sealed) for name in names])

    def _part_key(self, key: str, name: str) -> str:
        return "p:" + self._secret.hash(key, "part", name)

    def tend(self) -> None:
        """Load the known wordings of other workers and machines, and forget expired entries."""
        local = self.state.local if isinstance(self.state, Guarded) else self.state
        if isinstance(local, Local):
            local.expire()
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def close(self) -> None:
        """Cancel running tasks."""
        if self._refreshing:
            self._refreshing.cancel()
        if isinstance(self.state, Guarded):
            await self.state.close()

    async def _refresh(self) -> None:
        """Refresh known wordings; those of before stay while that fails, which is logged once."""
        try:
            await self.known.refresh()
            (evicted,) = await self._run([Op("evicted", "")], "evicted")
            self._metrics.state_evicted.set(evicted)
        except Exception as error:
            if not self._stale:
                log("known_stale", level="warning", **error_site(error))
            self._stale = True
            await self._run([Op("marked", "probe")], "known")  # Guarded reports an outage even while no message asks
        else:
            if self._stale:
                log("known_refreshed")
            self._stale = False

    async def _run(self, ops: Sequence[Op], step: str) -> list[Any]:
        return await (self.state.run(ops, step) if isinstance(self.state, Guarded) else self.state.run(ops))

    def _by_policy(self, context: Context, answer: Answer, *, trial: bool) -> tuple[Answer, bool]:
        """Apply the rule that matches the message, if any; return also whether the rule decides alone."""
        scored, origin = answer.scored, context.origin
        if not self.policy.rules:
            return answer, False
        risk = scored.decision.risk if scored and scored.final else None
        source = MessageSource(origin.key, origin.sender, origin.route)
        for rule in self.policy.rules_for(source, scored.clean.original if scored else context.text):
            action = rule.decide(risk, answer.action) or answer.action
            if not trial:
                self._metrics.policy(rule.name, action).inc()
            if not rule.dry_run:
                reason = "policy" if rule.action or action != answer.action else answer.reason
                answer = answer._replace(action=action, reason=reason, more={**answer.more, "rule": rule.name})
                return answer, rule.action is not None
        return answer, False

    async def _known_wording(self, context: Context, text: CleanString, risk: float | None) -> Match | None:
        """Return the known wording that decides the message."""
        for match in self.known.index.find(text):
            if holds(match, risk):
                return match
            if match.wording.action != "pass" and match.around >= COMPANY:
                alone = await context.read(match.part)
                if alone and alone.final and holds(match, alone.decision.risk, alone=True):
                    return match
        return None

    async def _by_state(
        self, context: Context, answer: Answer, own_action: Action, risk: float, match: Match | None, *, trial: bool
    ) -> Answer:
        """Report a message, with its own action and risk, to the state; hold it if the state gives a reason."""
        scored, (_, key, sender, receiver, *_) = answer.scored, context.origin
        if scored is None:
            return answer
        text, suspects, bursts, conversations = scored.clean.text, self.suspects, self._bursts, self._conversations
        marks: list[str] = []
        if suspects:
            marks = suspects.marks(key, sender, contacts(scored.clean.original) if has_contact(text) else [])
        sender_ops = suspects.ask(marks, text, own_action) if suspects else []
        burst_ops = bursts.ask(text) if bursts and risk >= bursts.settings.risk else []
        ops = [*sender_ops, *burst_ops, *([Op("add", "hits", match.wording.id.encode())] if match else [])]
        passed = answer.action == "pass"
        slot = None
        if conversations and sender and receiver and scored.final and answer.action != "block" and not match:
            slot = conversations.slot(key, sender, receiver)
            ops.append(conversations.ask(slot, text, keep=passed))
        if not ops:
            return answer
        begun = perf_counter()
        asked, late = [_READING[op.name](op) for op in ops] if trial else ops, False
        if isinstance(self.state, Guarded):
            results, late = await self.state.ask(asked, "look_up")
        else:
            results = await self.state.run(asked)
        self._metrics.state_seconds.observe(perf_counter() - begun)
        suspect = None
        if suspects and answer.action == own_action == "pass" and not match:
            suspect = suspects.suspicious(marks, text, risk, results[: len(sender_ops)])
            if late and not suspect and self._on_timeout == "review" and risk >= suspects.risk:
                suspect = "memory_timeout"
        of_burst = results[len(sender_ops) : len(sender_ops) + len(burst_ops)]
        near = bursts.near_copies(of_burst) if burst_ops and bursts else None
        if near is not None and not trial:
            self._metrics.near_duplicates.observe(near)
        held = self._hold(answer, suspect, near)
        if not conversations or slot is None:
            return await self._settle(marks, text, own_action, held, held, [], trial=trial)
        joined = conversations.joined(text, results[-1])
        judged = await self._behind(context, held, joined, trial=trial) if joined else held
        # A message that its conversation raised is not joined with later ones. One held for its sender is: filters
        # forward it, and an offender's threat in pieces would else be forwarded in all of them.
        undone = [Op("unshift", ops[-1].key, ops[-1].value)] if passed and judged is not held else []
        return await self._settle(marks, text, own_action, held, judged, undone, trial=trial)

    def _hold(self, answer: Answer, suspect: str | None, near: int | None) -> Answer:
        """Hold a message that passes if `suspect` (its sender or a contact) is suspicious, or after `near` copies."""
        if suspect:
            answer = answer._replace(action="review", reason=suspect)
        if near is None or not self._bursts:
            return answer
        answer = answer._replace(more={**answer.more, "near_duplicates": near})
        if answer.action == "pass" and near > self._bursts.settings.count:
            return answer._replace(action="review", reason="burst")
        return answer

    async def _settle(
        self, marks: list[str], text: str, own_action: Action, held: Answer, judged: Answer, ops: list[Op],
        *, trial: bool,
    ) -> Answer:  # fmt: skip
        """Run `ops`, report the outcome of a message that passed alone to the state, and return the final answer."""
        if self.suspects and own_action == "pass":
            if judged.action == "pass":
                ops = [*ops, *self.suspects.passed(marks)]
            elif judged is not held:
                ops = [*ops, *self.suspects.ask(marks, text, judged.action)]
        if ops and not trial:
            await self._run(ops, "report")
        return judged

    async def _behind(self, context: Context, answer: Answer, joined: CleanString, *, trial: bool) -> Answer:
        """Score a message appended to those before it; the stronger action counts."""
        reading = await context.read(joined)
        if reading is None or not reading.final or answer.scored is None:
            reading, outcome = None, "unscored"
        else:
            raised = ACTIONS.index(reading.decision.action) > ACTIONS.index(answer.action)
            outcome = "raised" if raised else "same"
        if not trial:
            self._metrics.joined(outcome).inc()
        if reading is None or answer.scored is None or outcome == "same":
            return answer
        scored = reading._replace(clean=answer.scored.clean)
        return answer._replace(scored=scored, action=reading.decision.action, reason="conversation")


# ---- state shared by the processes of a service

_SOCKET, SECRET = "state", "secret"


@contextmanager
def shared_state(settings: Settings, folder: Path) -> Iterator[None]:
    """Keep the in-memory state, and the secret, of a service whose workers share the private `folder`.

    Raises ConfigError if the secret or the known wordings can't be read.
    """
    local = Local()
    if settings.state == "memory":
        file = settings.known_file
        try:
            read_secret(settings.secret_file, make=True)
            local = Local(file=file)
        except OSError as error:  # nothing can be written there
            if settings.known or settings.state_secret:
                raise ConfigError(f"{file.parent} can't be written ({type(error).__name__}); name another") from None
            log("known_not_kept", level="warning", folder=str(file.parent))
    share_secret(settings, folder)
    with listening(local, folder / _SOCKET):
        yield


def _rounded(seconds: int) -> float:
    """Return `seconds`, or up to a quarter more: the state has a queue for each lifetime, and clients choose these."""
    step = 2.0 ** (seconds.bit_length() - 3)
    return math.ceil(seconds / step) * step


def share_secret(settings: Settings, folder: Path) -> None:
    """Write the secret named by the settings to the workers' folder; raises ConfigError if it can't be read."""
    if settings.state != "memory" and settings.state_secret is None:
        raise ConfigError("a state on a server needs state_secret: make a file with openssl rand -hex 32")
    if settings.state_secret or os.path.exists(settings.secret_file):  # Path.exists raises where the folder is closed
        secret = read_secret(settings.secret_file, make=False)
    elif (folder / SECRET).exists():
        return  # a reload, where nothing can be kept: the state is still that of the first secret
    else:
        secret = secrets.token_bytes(32)
    with open(os.open(folder / SECRET, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as out:
        out.write(secret.hex())


def make_memory(settings: Settings, folder: Path | None, metrics: Metrics) -> Memory:
    """Return the memory of a worker; without a `folder` it has a state of its own. Raises ConfigError."""
    if folder is None:
        return Memory(settings, metrics, Secret(secrets.token_bytes(32), encrypts=False), Local())
    on_server = settings.state != "memory"
    secret = Secret(read_secret(folder / SECRET, make=False), encrypts=on_server)
    remote, patient = (ValkeyState(settings.state) if on_server else Socket(folder / _SOCKET) for _ in range(2))
    metrics.state_away.set(0)

    def observe(event: str, detail: str) -> None:
        metrics.state_events(event, detail if event == "late" else "").inc()
        if event != "late":
            metrics.state_away.set(event == "away")
            log(f"state_{event}", level="warning" if event == "away" else "info", error=detail)

    return Memory(settings, metrics, secret, Guarded(remote, Local(), observe), patient)
