"""Measures the loop from traffic to a better bundle: decisions chosen by `jingyin mine`, and the same number at random.

    python bench/loop.py OUT TRAFFIC ROWS [--bundle BUNDLE] [--rounds 0 1 3]

TRAFFIC are ordinary messages of a source that the bundle never saw (.jsonl, .txt, .gz, .parquet); ROWS messages with
text, label and case (JSON lines as train/rows/cases/*.jsonl, or test.parquet of a built corpus), whose cases it never
saw either. The six cases of which the bundle flags nearest to half of the threats are the new situations. A third of
the traffic, at most 10,000 messages, and half of the rows of these situations are the stream from which messages are
decided; as much traffic is the random share for thresholds; the rest is kept apart and counted.

In a round 200 messages of the stream get their labels, as from analysts, and all decisions so far fine-tune the bundle,
with the traffic and, for `mine`, the ordinary messages that it drew. `mine` chooses with the bundle of the round
before. Each fine-tuning takes about 15 minutes of one core; all rounds take five. The same command resumes.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import traffic

from jingyin.model.bundle import default_path
from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.serve.archive.mine import mine
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus.slots import fill_slots
from jingyin.train.finetune import finetune
from jingyin.train.finetune_data import Columns

DECISIONS, SITUATIONS, FEWEST = 200, 6, 15
"""Decisions of a round; new situations, each with at least so many threats."""
MOST_TRAFFIC = 10_000  # of the stream, and of the random share
WAYS = ("mine", "random")

MessageRow = Mapping[str, str]


def main() -> None:
    """Run the rounds, and print what each bundle flags of the messages kept apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("traffic", type=Path)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--bundle", type=Path, default=default_path())
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 1, 3], help="rounds after which to count")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = Random(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(traffic.texts(options.traffic)))
    rng.shuffle(texts)
    part = min(MOST_TRAFFIC, len(texts) // 3)
    seen, random_share, apart = texts[:part], texts[part : 2 * part], texts[2 * part :]
    rows = [{**row, "text": fill_slots(row["text"], rng)} for path in options.rows for row in read(path) if row["case"]]
    names = half_missed(Scorer.load(options.bundle), rows)
    print(f"new situations: {', '.join(names)}", flush=True)
    new = [row for row in rows if row["case"] in names]
    rng.shuffle(new)
    half = len(new) // 2
    stream = dict.fromkeys(seen, "ordinary") | {row["text"]: row["label"] for row in new[:half]}
    kept: dict[str, Sequence[MessageRow]] = {
        "traffic": [{"text": text, "label": "ordinary"} for text in apart],
        "new situations": new[half:],
        "other rows": [row for row in rows if row["case"] not in names],
    }
    _write(options.out / "traffic.jsonl", [{"text": text} for text in random_share])
    # Shuffled, or a rule that goes by order would meet the threats last.
    _write(options.out / "stream.jsonl", [{"text": text} for text in rng.sample(list(stream), len(stream))])
    print("| decisions | chosen by | " + " | ".join(_heads(kept)) + " |\n|" + "---|" * (2 + len(_heads(kept))))
    if 0 in options.rounds:
        _line(0, "", options.bundle, kept)
    for way in WAYS:
        bundle, decided = options.bundle, list[str]()
        for number in range(1, max(options.rounds) + 1):
            folder = options.out / f"{way}-{number}"
            folder.mkdir(exist_ok=True)
            if way == "mine":
                decided += _mined(options.out, folder, bundle, decided)
            else:
                left = [text for text in stream if text not in set(decided)]
                decided += Random(f"{options.seed}|{number}").sample(left, min(DECISIONS, len(left)))
                if number not in options.rounds:  # no later choice needs this bundle
                    continue
            labelled = [{"text": text, "label": stream[text], "count": 1, "source": "cases"} for text in decided]
            _write(folder / "decided.jsonl", labelled)
            ordinary = folder / "mined-ordinary.jsonl"
            data = [folder / "decided.jsonl", *([ordinary] if ordinary.is_file() else [])]
            benign = [str(options.out / "traffic.jsonl")]
            finetune([str(path) for path in data], folder / "run", Columns(), benign=benign, bundle=options.bundle,
                     seed=options.seed, tell=lambda _: None)  # fmt: skip
            bundle = folder / "run" / "bundle"
            if number in options.rounds:
                threats = sum(stream[text] in FLAGGED for text in decided)
                _line(len(decided), f"{way} ({threats} threats)", bundle, kept)


def half_missed(scorer: Scorer, rows: Sequence[MessageRow]) -> list[str]:
    """Return the cases of which the bundle flags nearest to half of the threats."""
    by_case: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["label"] in FLAGGED:
            by_case[row["case"]].append(row["text"])
    shares = {
        case: sum(each.action != "pass" for each in scorer.score_many(texts)) / len(texts)
        for case, texts in by_case.items()
        if len(texts) >= FEWEST
    }
    return sorted(shares, key=lambda case: (abs(shares[case] - 0.5), case))[:SITUATIONS]


def _mined(out: Path, folder: Path, bundle: Path, decided: Sequence[str]) -> list[str]:
    """Return the messages that `jingyin mine` picks from the stream with a bundle, none like those decided earlier."""
    _write(folder / "earlier.jsonl", [{"text": text} for text in decided])
    earlier = [folder / "earlier.jsonl"] if decided else []
    mine([out / "stream.jsonl"], folder / "mined.jsonl", keep=DECISIONS, decided=earlier, bundle=bundle)
    return [row["text"] for row in read(folder / "mined.jsonl")]


def _heads(kept: Mapping[str, Sequence[MessageRow]]) -> list[str]:
    found = []
    for name, rows in kept.items():
        threats, innocents = (sum(row["label"] in labels for row in rows) for labels in (FLAGGED, BENIGN))
        found += [f"{name}: threats flagged, of {threats:,}"] * bool(threats)
        found += [f"{name}: innocents flagged, of {innocents:,}"] * bool(innocents)
    return found


def _line(decisions: int, way: str, bundle: Path, kept: Mapping[str, Sequence[MessageRow]]) -> None:
    scorer, cells = Scorer.load(bundle), []
    for rows in kept.values():
        flags = [each.action != "pass" for each in scorer.score_many([row["text"] for row in rows])]
        for labels in (FLAGGED, BENIGN):
            counted = [flag for flag, row in zip(flags, rows, strict=True) if row["label"] in labels]
            cells += [f"{sum(counted):,} ({sum(counted) / len(counted):.2%})"] if counted else []
    print(f"| {decisions} | {way} | {' | '.join(cells)} |", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of JSON lines or Parquet, with an empty case if they have none."""
    if path.suffix == ".parquet":
        return list(pq.read_table(path, columns=["text", "label", "case"]).to_pylist())
    return [{"case": "", **json.loads(line)} for line in path.read_bytes().splitlines()]


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != content:  # a run resumes if its inputs are untouched
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
