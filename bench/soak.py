"""Soak test of `jingyin serve`: ten minutes of steady mixed traffic over loopback while one thing after another fails.

    python bench/soak.py                          authored messages, nine minutes and the preparation
    python bench/soak.py FILE... --minutes 1      ordinary messages of your own; phases get shorter in proportion

Phases, with the steady traffic (soak_client.py) in all of them:

    steady      nothing else
    reload      the bundle is read again, by POST /admin/reload and by SIGHUP; no connection may break
    bad reload  the same after half of the network's file is gone: the old bundle answers on
    kill        kill -9 of one worker; connections may break
    warm        a round of `idle` and one of `full queue`: memory for peak load then isn't growth later
    slow        100 clients that send one byte a second, half of them only in the body; wanted is 408
    idle        2,000 connections that send nothing; wanted is 408
    full queue  waves of 1,000 single messages and 80 batches of 64 at once by one client; wanted are some 503, with
                Retry-After
    full disk   no room for the log, which gets lines from mistaken requests and reloads
    SIGTERM     under load; connections may break

The service logs to standard error, and takes no path. So that goes to a file, in a tmpfs of 32 MB where root can mount
one, which is filled up for `full disk`. Elsewhere that phase has a service of its own, with /dev/full for its log.

Verdicts are compared with those of a scorer in this process. Exits 1 if an answer is wrong or missing, a connection
broke where none may, the log holds a message of 8 characters or more, the service ended before its time, or memory
(PSS of all its processes) grew by more than 3% from two minutes to the end. A run of less than four minutes shows
memory and does not judge it: its first fifth isn't a steady state.
"""

import argparse
import asyncio
import json
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, gettempdir

import psutil
import traffic
from soak_client import Mix, SoakClient, SoakRequest, Tally, Verdicts
from soak_service import SoakedService, fill, prepare, small_disk, until

from jingyin import Scorer
from jingyin.serve.http.connection import READ_SECONDS

MOST_MINUTES = 9.0
RATE, CONNECTIONS = 50.0, 32
IDLE, SLOW, WAVE, BATCHES = 2_000, 100, 1_000, 80
GROWTH = 0.03
KEPT_LOG = Path(gettempdir()) / "soak.log"
JUDGED_MINUTES = 4.0
SPARE_SECONDS = 50.0
"""Time that all phases together may overrun."""
MAY_BREAK = ("kill", "SIGTERM")
SHARES = {
    "steady": 0.03, "reload": 0.04, "bad reload": 0.03, "kill": 0.04, "warm": 0.08, "slow": 0.18, "idle": 0.2,
    "full queue": 0.16, "full disk": 0.16, "SIGTERM": 0.08,
}  # fmt: skip
"""Of the run; the first look at memory is at two minutes of nine, after `warm`, since a new worker is small."""


class Soak:
    """One run: its phases are methods that return their findings; faults go to `faults`."""

    def __init__(
        self, folder: Path, *, mounted: bool, mix: Mix, verdicts: Verdicts, options: argparse.Namespace
    ) -> None:
        self.folder = folder
        self.mounted = mounted
        self.mix = mix
        self.tally = Tally()
        self.faults: list[str] = []
        self.memory: list[float] = []
        self.revived = False
        self.seconds = options.minutes * 60
        self._verdicts = verdicts
        self._workers = options.workers

    def start(self, log: Path) -> SoakedService:
        return SoakedService(self.folder, log, self._workers)

    async def run(self) -> None:
        self.service = self.start(self.folder / "log" / "service")
        try:
            if not await self.service.serving():
                raise SystemExit(f"the service did not start:\n{self.service.log.read_text()}")
            bundle = json.loads((self.folder / "bundle" / "manifest.json").read_text())["id"]
            self.client = SoakClient(self.service.port, bundle, self._verdicts, self.tally)
            traffic = asyncio.create_task(self.client.steady(iter(self.mix), RATE, CONNECTIONS))
            async with asyncio.timeout(self.seconds + SPARE_SECONDS):
                await self._phases()
                await traffic
        except TimeoutError:
            raise SystemExit(f"not done after {self.seconds + SPARE_SECONDS:.0f} s: the machine is too busy") from None
        finally:
            shutil.copy(self.service.log, KEPT_LOG)
            if self.service.runs:
                self.service.process.kill()
                self.service.process.wait(10)

    async def _phases(self) -> None:
        steps: dict[str, Callable[[float], Awaitable[str]]] = {
            "steady": self._steady, "reload": self._reload, "bad reload": self._bad_reload, "kill": self._kill,
            "warm": self._warm, "slow": self._slow, "idle": self._idle, "full queue": self._queue,
            "full disk": self._disk, "SIGTERM": self._end,
        }  # fmt: skip
        end = time.monotonic()
        for name, step in steps.items():
            self.tally.phase = name
            end += SHARES[name] * self.seconds
            print(f"{name:10}  {await step(end)}", flush=True)
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            if name != "SIGTERM" and not self.service.runs:
                await self._revive(name)
            if name in ("warm", "full disk"):
                self.memory.append(self.service.megabytes())

    async def _revive(self, name: str) -> None:
        """Go on with a new service after one that ended by a fault, so that later phases are seen too."""
        self.faults.append(f"the service ended in phase {name} with {self.service.process.returncode}")
        self.revived = True
        self.service = self.start(self.service.log)
        if not await self.service.serving():
            raise SystemExit(f"the service ended in phase {name}, and does not start again; see {KEPT_LOG}")
        self.client.port = self.service.port

    # ---- phases

    async def _steady(self, end: float) -> str:
        return f"{RATE:.0f} requests a second, {self.service.megabytes():.0f} MB"

    async def _reload(self, end: float, event: str = "reloaded") -> str:
        """Reload twice; the parent logs a line for each."""
        took = []
        for ask in (self._post_reload, self._hang_up):
            start, before = time.monotonic(), len(self.service.events(event))
            await ask()
            if not await until(lambda before=before: len(self.service.events(event)) > before, 60):
                self.faults.append(f"{self.tally.phase}: {ask.__name__} left no line {event}")
            took.append(f"{time.monotonic() - start:.1f}")
        return f"done after {took[0]} and {took[1]} s"

    async def _post_reload(self) -> None:
        await self.client.ask(self.mix.reload())

    async def _hang_up(self) -> None:
        self.service.process.send_signal(signal.SIGHUP)

    async def _bad_reload(self, end: float) -> str:
        network = self.folder / "bundle" / "model.onnx"
        whole = network.read_bytes()
        network.write_bytes(whole[: len(whole) // 2])
        try:
            return await self._reload(end, "reload_failed")
        finally:
            network.write_bytes(whole)

    async def _kill(self, end: float) -> str:
        before = self.service.workers()
        ready, start = len(self.service.events("worker_ready")), time.time()
        psutil.Process(min(before)).kill()
        back = await until(lambda: len(self.service.workers() - before) == 1, 30)
        replaced = time.time() - start
        if not back or not await until(lambda: len(self.service.events("worker_ready")) > ready, 60):
            self.faults.append("kill: the worker was not replaced")
            return "not replaced"
        answering = self.service.events("worker_ready")[-1] - start
        return f"a new process after {replaced:.2f} s, which answers after {answering:.2f} s"

    async def _slow(self, end: float) -> str:
        def clients() -> Iterator[Awaitable[None]]:
            for number in range(SLOW):
                ask = self.mix.slow()
                yield self.client.drip(ask, ask.data.index(b"\r\n\r\n") + 4 if number % 2 else 1)

        return f"{SLOW} clients, {await self._rounds(clients, end)} times"

    async def _warm(self, end: float) -> str:
        await self._idle(0.0)
        return await self._queue(end)

    async def _idle(self, end: float) -> str:
        ask = SoakRequest("idle", b"", status=408)
        rounds = await self._rounds(lambda: (self.client.drip(ask) for _ in range(IDLE)), end)
        return f"{IDLE:,} connections, {rounds} times; {self.service.megabytes():.0f} MB"

    async def _rounds(self, clients: Callable[[], Iterator[Awaitable[None]]], end: float) -> int:
        """Have all clients at once be sent away, as often as there is time for."""
        rounds = 0
        while not rounds or time.monotonic() + READ_SECONDS + 1 < end:
            await asyncio.gather(*clients())
            rounds += 1
        return rounds

    async def _queue(self, end: float) -> str:
        waves = 0
        while not waves or time.monotonic() + 2 < end:
            go = asyncio.Event()
            asks = [self.mix.single("burst") for _ in range(WAVE)] + [self.mix.batch("burst 64", 64)] * BATCHES
            sending = [asyncio.create_task(self.client.ask(ask, alone=True, go=go)) for ask in asks]
            await asyncio.sleep(0.5)  # until all are connected, so that they really come at once
            go.set()
            await asyncio.gather(*sending)
            waves += 1
            await asyncio.sleep(0.5)
        if not self.tally.total("refused", self.tally.phase):
            self.faults.append(f"{self.tally.phase}: nothing was refused; make the waves larger")
        return f"{waves} waves"

    async def _disk(self, end: float) -> str:
        if not self.mounted:
            return await self._disk_of_another(end)
        filler = self.folder / "log" / "filler"
        fill(filler)
        fill(self.service.log)  # there is room in its last page
        try:
            said = await self._with_full_log(self.service, end)
        finally:
            filler.unlink()
        size = self.service.log.stat().st_size
        await asyncio.sleep(0.1)
        await self.client.ask(self.mix.mistake())
        if not await until(lambda: self.service.log.stat().st_size > size, 5):
            self.faults.append("full disk: the log did not go on when there was room again")
        return said

    async def _disk_of_another(self, end: float) -> str:
        other = self.start(Path("/dev/full"))
        usual = self.client.port
        try:
            if not await other.serving():
                self.faults.append("full disk: the service does not start when its log is full")
                return "did not start"
            self.client.port = other.port
            return await self._with_full_log(other, end)
        finally:
            self.client.port = usual
            if other.runs:
                other.process.terminate()

    async def _with_full_log(self, service: SoakedService, end: float) -> str:
        """Wait, ask for a reload, which logs in the parent, and wait again."""
        left = max(2.0, end - time.monotonic())
        await asyncio.sleep(left / 3)
        when = "at" if service.runs else "before"
        await self.client.ask(self.mix.reload())
        await asyncio.sleep(left / 3)
        if service.runs:
            return f"{service.log} is full, the service runs"
        self.faults.append(f"full disk: the service ended with {service.process.returncode} {when} a reload")
        return f"{service.log} is full, the service ended"

    async def _end(self, end: float) -> str:
        await asyncio.sleep(max(0.0, end - time.monotonic()) / 2)
        start = time.monotonic()
        self.client.ending = True
        self.service.process.terminate()
        if not await until(lambda: not self.service.runs, 30):
            self.faults.append("SIGTERM: the service did not end in 30 s")
        elif self.service.process.returncode:
            self.faults.append(f"SIGTERM: exit code {self.service.process.returncode}")
        self.client.ended.set()
        return f"ended after {time.monotonic() - start:.2f} s with {self.service.process.returncode}"


def found(log: str, secrets: set[str]) -> int:
    """Count the secrets that appear in the log, verbatim or with their characters escaped."""
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), log)
    return sum(secret in log or secret in plain for secret in secrets if len(secret) >= 8)


def print_table(tally: Tally) -> None:
    columns = ("sent", *Tally.OUTCOMES, "wrong", "late")
    print(f"\n{'':12}" + "".join(f"{column:>9}" for column in columns) + "   adds up   p99 of singles")
    kinds = sorted({kind for _, kind, _ in tally.counts})
    for phase, kind in [*((name, None) for name in SHARES), *((None, kind) for kind in kinds), (None, None)]:
        row = "".join(f"{tally.total(column, phase, kind):9,}" for column in columns)
        times = sorted(tally.times.get(phase or "", ()))
        p99 = f"{times[int(0.99 * len(times))]:9.1f} ms" if times else ""
        print(f"{phase or kind or 'all':12}{row}   {'yes' if tally.adds_up(phase, kind) else 'NO':7}{p99}")


def judge(soak: Soak, minutes: float) -> list[str]:
    """Print the tables, the memory use and the number of messages found in the log; return all faults."""
    tally, faults = soak.tally, soak.faults
    print_table(tally)
    if not tally.adds_up():
        faults.append("requests sent are not answers, refusals and broken connections together")
    faults += [f"wrong: {what} ({count:,} times)" for what, count in tally.surprises.items()]
    broken = {phase: tally.total("broken", phase) for phase in SHARES if phase not in MAY_BREAK}
    faults += [f"{count:,} connections broke in phase {phase}" for phase, count in broken.items() if count]
    early, late = soak.memory
    growth = late / early - 1
    print(
        f"\nmemory {early:.0f} MB at {soak.seconds * 2 / 9 / 60:.1f} minutes, {late:.0f} MB at the end: {growth:+.1%}"
    )
    if growth > GROWTH and minutes >= JUDGED_MINUTES:
        faults.append(f"memory grew by {growth:.1%}, at most {GROWTH:.0%} was wanted")
    log = soak.service.log.read_text(errors="replace")
    leaked, secrets = found(log, tally.secrets), sum(len(secret) >= 8 for secret in tally.secrets)
    print(f"log of {len(log.split()):,} lines: {leaked} of {secrets:,} messages and payloads found")
    if leaked:
        faults.append(f"{leaked} messages stand in the log")
    return faults


def messages(files: list[Path]) -> list[str]:
    """Make distinct and templated messages that recur, so that memory does not grow with the cache's entries."""
    found = traffic.distinct(files, 2_000, seed=1) + traffic.templated(700, seed=1)
    Random(1).shuffle(found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=MOST_MINUTES, help=f"0.5 to {MOST_MINUTES:.0f}")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if not 0.5 <= options.minutes <= MOST_MINUTES:
        parser.error(f"--minutes {options.minutes}: wanted 0.5 to {MOST_MINUTES:.0f}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the service inherits it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that service and tmpfs go too
    texts = messages(options.files)
    verdicts = {text: (v.label, v.action) for text, v in zip(texts, Scorer.load().score_many(texts), strict=True)}
    with TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        mix = Mix(cycle(texts), prepare(folder))
        with small_disk(folder / "log") as mounted:
            soak = Soak(folder, mounted=mounted, mix=mix, verdicts=verdicts, options=options)
            asyncio.run(soak.run())
            faults = judge(soak, options.minutes)
    print("\n".join(["", *faults, f"{len(faults)} faults; the log is kept in {KEPT_LOG}"]))
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
