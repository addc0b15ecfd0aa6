"""Proves that a change of the code changes no result: python bench/same.py FILE

If FILE does not exist, writes the hashes of this code's results; if it does, compares and exits 1 if any differs:

    git stash && python bench/same.py /tmp/before.json && git stash pop && python bench/same.py /tmp/before.json

Hashed are the verdicts of 2,000 messages (distinct, templated, long, disguised, empty) in all fields, the bytes of
`relabel` in three formats, the groups of `campaigns`, metrics, bundle and evaluation of configs/tiny.yaml (a minute;
`--quick` leaves training out). It also checks that stream, cache and processes give the results of single messages.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import traffic

from jingyin import Scorer
from jingyin.model.labels import Verdict
from jingyin.train.corpus.perturb import FAMILIES, evade

MESSAGES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Hashes of results, to be compared after a change")
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true", help="no training and no evaluation")
    options = parser.parse_args()
    before = json.loads(options.file.read_text(encoding="utf-8")) if options.file.exists() else {}
    texts = messages()
    with tempfile.TemporaryDirectory() as folder:
        now = dict(verdicts(texts)) | dict(archive(texts, Path(folder)))
        if not options.quick:
            now |= dict(training(Path(folder)))
    for name, digest in now.items():
        print(f"{'  ' if before.get(name, digest) == digest else '! '}{digest[:16]} {name}")
    if not before:
        options.file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    elif any(before.get(name) != digest for name, digest in now.items()):
        sys.exit("the lines with ! differ")


def messages() -> list[str]:
    """Return the messages, in a drawn order."""
    rng = Random(11)
    plain = traffic.distinct([], MESSAGES // 2, seed=11) + traffic.templated(MESSAGES // 4, seed=11)
    hidden = [evade(rng.choice(plain), rng.choice(FAMILIES), 0.5, rng) for _ in range(MESSAGES // 8)]
    long = ["".join(rng.sample(plain, 8)) for _ in range(MESSAGES // 8 - 2)]
    texts = [*plain, *hidden, *long, "", " "]
    rng.shuffle(texts)
    return texts


def verdicts(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the hash of the verdicts; every way to score gives the same but for the stage."""
    stream = list(Scorer.load().score_many(texts))
    single = Scorer.load()
    _same("one at a time", stream, map(single.score, texts))
    _same("without a cache", stream, Scorer.load(cache_bytes=0).score_many(texts))
    _same("in two processes", stream, Scorer.load().score_many(texts, processes=2))
    yield "verdicts", _hash(json.dumps(asdict(each), ensure_ascii=True, default=str) for each in stream)


def _same(way: str, wanted: list[Verdict], found: Iterable[Verdict]) -> None:
    for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if replace(one, stage="network") != replace(other, stage="network"):
            sys.exit(f"{way}: message {number} has another verdict")


def archive(texts: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of the output of `relabel` and `campaigns`; messages come three times, as in campaigns."""
    rows = [{"id": number, "text": text, "sender": f"s{number % 7}"} for number, text in enumerate(texts * 3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "in.jsonl").write_text("".join(lines), encoding="utf-8")
    for suffix in ("parquet", "csv", "jsonl"):
        _run("relabel", folder / f"in.{suffix}", folder / f"out.{suffix}")
        shards = (path for path in sorted((folder / f"out.{suffix}").iterdir()) if not path.name.startswith("_"))
        yield f"relabel, {suffix}", _hash(path.read_bytes() for path in shards if path.suffix == f".{suffix}")
    _run("campaigns", folder / "in.parquet", folder / "groups", "--all", "--sender", "sender")
    yield "campaigns", _hash(_tables(folder / "groups"))


def _tables(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.parquet")):
        held = json.dumps([path.name, pq.read_table(path, partitioning=None).to_pylist()], default=str)
        yield held.replace(str(folder.parent), "")  # the input's, which has another name each time


def training(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of the results of configs/tiny.yaml."""
    recipe = Path(__file__).parent.parent / "configs" / "tiny.yaml"
    _run("train", recipe, "--out", folder / "runs")
    run = folder / "runs" / "tiny"
    manifest = json.loads((run / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    yield "tiny: metrics", _hash([(run / "metrics.json").read_bytes()])
    files = {name: digest for name, digest in manifest["files"].items() if name != "card.md"}  # has the folder's name
    yield "tiny: files of the bundle", _hash([json.dumps(files, sort_keys=True)])
    (test,) = folder.glob("runs/**/test.parquet")
    _run("evaluate", run / "bundle", test, "--out", folder / "report")
    evaluation = json.loads((folder / "report" / "evaluation.json").read_text(encoding="utf-8"))
    figures = {name: table for name, table in evaluation["tables"].items() if name != "cost"}  # milliseconds
    yield "tiny: evaluation", _hash([json.dumps(figures)])


def _run(*words: object) -> None:
    done = subprocess.run(["jingyin", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"jingyin {words[0]}: {done.stderr}")


def _hash(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
