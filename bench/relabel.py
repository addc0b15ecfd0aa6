"""Measures `jingyin relabel` beside in-process score_many, on a Parquet file of templated rows.

    python bench/relabel.py make 1000000 /tmp/1m.parquet     about a minute
    python bench/relabel.py run /tmp/1m.parquet              the command, two processes
    python bench/relabel.py baseline /tmp/1m.parquet         score_many, in process, on each half: two processes
    python bench/relabel.py resume /tmp/1m.parquet           killed after three shards, then the same command

Rows a CPU second is the figure to compare on a machine that does other work: both sides are counted with all of their
processes, start included. Peak memory is the largest sum over the command's processes at one time: RSS counts pages
that they share for each of them, PSS once. The first shard is timed from the start of the command.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import traffic

MILLION = 1_000_000
SCHEMA = pa.schema(
    {"id": pa.int64(), "sender": pa.string(), "received": pa.timestamp("s"), "text": pa.string(), "old": pa.string()}
)
HALF = """
import sys, time, pyarrow.parquet as pq
from jingyin import Scorer
part, file = int(sys.argv[1]), pq.ParquetFile(sys.argv[2])
texts = (text.as_py() for n, batch in enumerate(file.iter_batches(4096, columns=["text"])) if n % 2 == part
         for text in batch.column(0))
print(sum(1 for _ in Scorer.load().score_many(texts)))
"""


def messages(rows: int, rng: Random) -> Iterator[str]:
    """Yield messages of 1,000 senders' templates (Zipf): names stay, every digit is drawn anew."""
    templates = traffic.templated(1000, seed=8)
    drawn = rng.choices(templates, [1 / rank for rank in range(1, len(templates) + 1)], k=rows)
    digits = re.compile(r"(?<=\d)\d")  # a first digit stays, so that an amount keeps its size
    for template in drawn:
        yield digits.sub(lambda _: rng.choice("0123456789"), template)


def make(rows: int, file: Path) -> None:
    """Write rows of an id, a sender, a time, a message and an older label; messages repeat after a million."""
    rng = Random(8)
    texts = pa.array(messages(min(rows, MILLION), rng))
    senders = pa.array([f"1069{rng.randrange(10**8):08d}" for _ in texts])
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for start in range(0, rows, MILLION):
            count = min(MILLION, rows - start)
            ids = pa.array(range(start, start + count))
            old = pa.array(["ordinary"] * count)
            columns = [ids, senders[:count], ids.cast(pa.timestamp("s")), texts[:count], old]
            writer.write_table(pa.table(columns, schema=SCHEMA))
    print(f"{rows:,} rows, {len(texts.unique()):,} different, {file.stat().st_size / 1e6:.0f} MB")


def start(file: Path, out: Path) -> psutil.Popen:
    code = "import sys; from jingyin.cli import main; sys.argv = ['jingyin', *sys.argv[1:]]; main()"
    arguments = ["relabel", str(file), str(out), "--processes", "2"]
    return psutil.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return RSS and PSS of a process and its children, in bytes."""
    rss = pss = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            info = each.memory_full_info()
        except psutil.Error:
            continue
        rss, pss = rss + info.rss, pss + info.pss
    return rss, pss


def watch(process: psutil.Popen, out: Path, begun: float, shards: int = 1) -> tuple[float, tuple[int, int]]:
    """Wait for the end; return the seconds until `shards` shards were there, and the peak RSS and PSS."""
    first, peak, due = 0.0, (0, 0), 0.0
    while process.poll() is None:
        if not first and len(list(out.glob("part-*"))) >= shards:
            first = time.monotonic() - begun
        if time.monotonic() >= due:
            now = memory(process)
            peak, due = (max(peak[0], now[0]), max(peak[1], now[1])), time.monotonic() + 0.5
        time.sleep(0.02)
    return first, peak


def spent_by(process: psutil.Process) -> float:
    """Return the CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu() -> float:
    """Return the CPU seconds of children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def row(what: str, rows: int, seconds: float, spent: float) -> str:
    return f"{what}: {rows:,} rows, {seconds:.1f} s, {rows / seconds:,.0f} rows/s, {rows / spent:,.0f} rows/CPU s"


def run(file: Path) -> None:
    out = Path(f"{file.with_suffix('')}.out.parquet")
    shutil.rmtree(out, ignore_errors=True)
    begun, spent, rows = time.monotonic(), cpu(), pq.read_metadata(file).num_rows
    with start(file, out) as process:
        first, peak = watch(process, out, begun)
    print(row("relabel", rows, time.monotonic() - begun, cpu() - spent), end="; ")
    print(f"first shard {first:.1f} s; peak {peak[0] / 1e6:.0f} MB RSS, {peak[1] / 1e6:.0f} MB PSS", flush=True)


def baseline(file: Path) -> None:
    begun, spent, rows = time.monotonic(), cpu(), pq.read_metadata(file).num_rows
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda part: subprocess.run([sys.executable, "-c", HALF, str(part), str(file)], check=True), (0, 1)
            )
        )
    print(row("score_many", rows, time.monotonic() - begun, cpu() - spent), flush=True)


def resume(file: Path) -> None:
    """Kill after three shards; time the start of the first run and of the second until rows flow."""
    out = Path(f"{file.with_suffix('')}.killed.parquet")
    shutil.rmtree(out, ignore_errors=True)
    for shards in (0, 3):
        begun, draft = time.monotonic(), out / f"_part-{shards:05d}.parquet.writing"
        with start(file, out) as process:
            while not draft.exists() and process.poll() is None:
                time.sleep(0.005)
            seconds, spent = time.monotonic() - begun, sum(map(spent_by, [process, *process.children()]))
            print(f"{shards} shards there: rows flow after {seconds:.2f} s, {spent:.2f} CPU s", flush=True)
            while not shards and len(list(out.glob("_part-*.json"))) < 3 and process.poll() is None:
                time.sleep(0.005)
            if process.poll() is not None:
                sys.exit(f"{file} is too small to be interrupted after three shards; make one of 100,000 rows")
            process.send_signal(signal.SIGKILL)
        (out / "_part-00003.parquet.writing").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "baseline", "resume"])
    parser.add_argument("arguments", nargs="+")
    args = parser.parse_args()
    if args.what == "make":
        make(int(args.arguments[0]), Path(args.arguments[1]))
    else:
        {"run": run, "baseline": baseline, "resume": resume}[args.what](Path(args.arguments[0]))


if __name__ == "__main__":
    main()
