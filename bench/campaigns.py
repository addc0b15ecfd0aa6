"""Measures `jingyin campaigns` on archives of size.

    python bench/campaigns.py 1000000 FOLDER [CORPUS...]    the command with --all: seconds and peak memory

The archive: 2,000 messages of CORPUS, by default authored ones, the r-th with a share like 1/r (Zipf). One
row in five is a new copy, with names of its own before and after it; the others repeat one. FOLDER keeps archive and
output.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import traffic

from jingyin.train.corpus.slots import SLOTS


def scale(rows: int, folder: Path, corpora: Sequence[Path], bundle: Path | None) -> None:
    """Print the cost of `jingyin campaigns --all` on an archive of `rows` rows, which is created if missing."""
    archive = folder / f"{rows}.parquet"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(rows, archive, corpora)
    out = folder / f"{rows}.campaigns"
    shutil.rmtree(out, ignore_errors=True)
    code = "import sys; from jingyin.cli import main; sys.argv[0] = 'jingyin'; main()"
    chosen = ["--bundle", str(bundle)] if bundle else []
    columns = ["--sender", "sender", "--receiver", "receiver", "--time", "at"]
    begun, peak = time.monotonic(), 0
    scored = grouped = 0.0
    with psutil.Popen(
        [sys.executable, "-c", code, "campaigns", str(archive), str(out), "--all", *columns, *chosen]
    ) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process))
            now = time.monotonic() - begun
            scored = now if any(out.glob("_part-*.writing")) else scored
            grouped = grouped or now * any(out.glob("*members.parquet*"))
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"jingyin campaigns ended with {process.returncode}")
    seconds = time.monotonic() - begun
    grouped = grouped or seconds
    print(f"{rows:,} rows, {pq.read_metadata(out / 'campaigns.parquet').num_rows:,} campaigns, {seconds:.0f} s: "
          f"scoring {scored:.0f}, grouping {grouped - scored:.0f}, tables {seconds - grouped:.0f}; "
          f"peak {peak / 1e6:.0f} MB RSS")  # fmt: skip


def make(rows: int, file: Path, corpora: Sequence[Path]) -> None:
    """Write the archive, in batches, under its name when it is whole."""
    rng = Random(8)
    messages = traffic.distinct(corpora, 2000, seed=8)
    weights = [1 / rank for rank in range(1, len(messages) + 1)]
    schema = pa.schema({"text": pa.string(), "sender": pa.string(), "receiver": pa.string(), "at": pa.timestamp("s")})
    draft = file.with_suffix(".writing")
    with pq.ParquetWriter(draft, schema) as writer:
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            copies = [_copy(text, rng) for text in rng.choices(messages, weights, k=-(-count // 5))]
            texts = rng.sample(copies * 5, count)
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
    draft.replace(file)


def _copy(text: str, rng: Random) -> str:
    return f"{SLOTS['name'](rng)}，{text}{SLOTS['name'](rng)}"


def _memory(process: psutil.Popen) -> int:
    try:
        return int(sum(each.memory_info().rss for each in [process, *process.children()]))
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("corpora", nargs="*", type=Path)
    parser.add_argument("--bundle", type=Path)
    scale(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
