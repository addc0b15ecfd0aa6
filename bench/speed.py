"""Measures jingyin beside baselines, in one run on one machine.

    python bench/speed.py                                   authored messages, about four minutes
    python bench/speed.py FILE... --run runs/student        messages of your own, each file by itself too; baselines
    with
                                                            the same weights
    python bench/speed.py FILE... --profile                 microseconds a stage

Traffic is described in traffic.py, baselines in speed_baselines.py. Every process is bound to a core of its own and has
one thread; on two cores each takes half of the messages. A rate is messages a CPU second for each core, the median of
repeats between which they take turns: other work on the machine moves it less than a wall clock. Latency is the wall
clock of calls with one message each.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import traffic

# The systems measured, the traffic that each runs on, and the number of messages that suffices.
MEASURED = (
    ("jieba.lcut", "distinct", 3000),
    ("jingyin, distinct", "distinct", 3000),
    ("jieba.lcut", "templated", 3000),
    ("jingyin, templated", "templated", 20_000),
    ("char n-grams + linear", "distinct", 3000),
    ("jingyin, worst case", "distinct", 200),
    ("onnxruntime fp32, padded", "distinct", 100),
    ("HF pipeline", "distinct", 100),
)
CALLS = {"HF pipeline": 100, "onnxruntime fp32, padded": 100, "jingyin, worst case": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description="jingyin beside baselines; see the top of this file")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--run", type=Path, help="run folder whose weights the baselines take")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    messages = {
        "distinct": traffic.distinct(options.files, 6000, seed=1),
        "templated": traffic.templated(40_000, seed=1),
        **{file.name: traffic.distinct([file], 6000, seed=1) for file in options.files},
    }
    if options.profile:
        from speed_profile import profile

        return profile(messages)
    cores = sorted(os.sched_getaffinity(0), reverse=True)[:2]
    work = partial(_work, messages=messages, run=options.run)
    measured = [*MEASURED, *((name, file.name, 3000) for file in options.files for name in ("jieba.lcut", "jingyin"))]
    for count in range(1, len(cores) + 1):
        _print_rates(_rates(work, cores[:count], measured, options.repeats), count)
    _print_latency(work, cores[0])
    _print_memory(work, cores[0])
    return None


def _work(pipe: Connection, core: int, *, messages: dict[str, list[str]], run: Path | None) -> None:
    """Answer (name, traffic, first, last, one at a time?) with the seconds taken, by CPU and wall clock, until None."""
    import speed_baselines

    os.sched_setaffinity(0, [core])
    built: dict[str, speed_baselines.Baseline] = {}
    while (task := pipe.recv()) is not None:
        name, kind, first, last, single = task
        if name not in built:
            built[name] = speed_baselines.build(name, messages["distinct"], run)
        texts = messages[kind][first:last]
        parts = [[text] for text in texts] if single else [texts]
        clocks = []
        for part in parts:
            cpu, wall = time.process_time(), time.perf_counter()
            built[name](part)
            clocks.append((time.process_time() - cpu, time.perf_counter() - wall))
        pipe.send((clocks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


class _Worker:
    def __init__(self, work: partial[None], core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, core))
        self.process.start()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def _rates(
    work: partial[None], cores: Sequence[int], measured: Sequence[tuple[str, str, int]], repeats: int
) -> dict[tuple[str, str], float]:
    """Return messages a second of each on its traffic, all cores together."""
    workers = [_Worker(work, core) for core in cores]
    found: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):
        for name, kind, count in measured:
            for i, worker in enumerate(workers):
                worker.pipe.send((name, kind, i * count, (i + 1) * count, False))
            clocks = [worker.pipe.recv()[0][0] for worker in workers]
            if repeat:  # the first round builds and warms up
                found.setdefault((name, kind), []).append(sum(count / cpu for cpu, _ in clocks))
    for worker in workers:
        worker.close()
    return {key: statistics.median(rates) for key, rates in found.items()}


def _print_rates(rates: dict[tuple[str, str], float], cores: int) -> None:
    print(f"\n{'messages a second,':34}{cores} core{'s' * (cores > 1)}{'x jieba.lcut':>20}{'x HF pipeline':>15}")
    for (name, kind), rate in rates.items():
        ratios = rate / rates["jieba.lcut", kind], rate / rates["HF pipeline", "distinct"]
        print(f"{name + ' (' + kind + ')':34}{rate:>8,.0f}{ratios[0]:>19.2f}{ratios[1]:>15.1f}", flush=True)


def _print_latency(work: partial[None], core: int) -> None:
    print(f"\n{'one message a call, microseconds':34}{'p50':>8}{'p99':>8}")
    worker = _Worker(work, core)
    for name, kind, _ in MEASURED:
        count = CALLS.get(name, 2000)
        worker.pipe.send((name, kind, 0, count, True))
        took = sorted(wall for _, wall in worker.pipe.recv()[0])
        print(
            f"{name + ' (' + kind + ')':34}{took[count // 2] * 1e6:>8.0f}{took[count * 99 // 100] * 1e6:>8.0f}",
            flush=True,
        )
    worker.close()


def _print_memory(work: partial[None], core: int) -> None:
    print(f"\n{'a process of its own':34}{'peak MB':>8}")
    for name, kind in {name: kind for name, kind, _ in MEASURED}.items():
        worker = _Worker(work, core)
        worker.pipe.send((name, kind, 0, 64, False))
        print(f"{name:34}{worker.pipe.recv()[1]:>8.0f}", flush=True)
        worker.close()
    base = (
        "import time; t = time.perf_counter(); from jingyin import Scorer; s = Scorer.load(); "
        "t = time.perf_counter() - t;"
        "import resource; s.score('你好'); print(t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    runs = [subprocess.run([sys.executable, "-c", base], check=True, capture_output=True, text=True) for _ in range(5)]
    seconds, megabytes = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    print(f"base import and Scorer.load(): {statistics.median(seconds):.2f} s, peak {max(megabytes):.0f} MB")


if __name__ == "__main__":
    main()
