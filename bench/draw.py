"""Draws the messages of further sources that configs/default/corpus.yaml names (docs/data.md, Further sources).

    python bench/draw.py data runs/mined

Reads SOURCE.jsonl.gz of each further source in the first folder with the bundle in the package. Writes strange.jsonl
(all messages of the sources kept out), varied.jsonl (random ones of the others) and suspicious.jsonl (the riskiest of
the rest, at most a fifth from one source) into the second. Messages already in suspicious.jsonl stay: run it again with
each new bundle, for another round of mining. Takes five minutes.
"""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

from jingyin import Scorer
from jingyin.model.files import atomic_file

PAGE = Path(__file__).parent.parent / "docs" / "data.md"
RANDOM, RISKIEST = 30_000, (20_000, 6_000)  # riskiest of the first round and of each later one
Message = tuple[str, str]  # text, source


def sources() -> dict[str, bool]:
    """Return the further sources that docs/data.md lists, and whether each is kept out."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Further sources\n")[1]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    names = [name for name, count, *_ in rows if count.replace(",", "").isdigit()]
    return {name.removesuffix(" *"): name.endswith(" *") for name in names}


def messages(folder: Path, source: str) -> list[Message]:
    """Return the messages of a source."""
    with gzip.open(folder / f"{source}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [(json.loads(line)["text"], source) for line in lines]


def riskiest(found: list[Message], count: int) -> list[Message]:
    """Return the `count` riskiest messages by the bundle in the package, at most a fifth of them from one source."""
    risks = [verdict.risk for verdict in Scorer.load().score_many((text for text, _ in found), processes=2)]
    counts, chosen = Counter[str](), list[Message]()
    for i in sorted(range(len(found)), key=lambda i: -risks[i]):
        if len(chosen) < count and counts[found[i][1]] < count // 5:
            counts[found[i][1]] += 1
            chosen.append(found[i])
    return chosen


def write(rows: list[Message], file: Path) -> None:
    """Write messages as JSON lines."""
    with atomic_file(file) as out:
        for text, source in rows:
            out.write((json.dumps({"text": text, "label": source}, ensure_ascii=False) + "\n").encode())


def main() -> None:
    """Write the three files."""
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    kept_out = sources()
    write([each for name, kept in kept_out.items() if kept for each in messages(data, name)], out / "strange.jsonl")
    pool = [each for name, kept in kept_out.items() if not kept for each in messages(data, name)]
    Random(7).shuffle(pool)
    write(pool[:RANDOM], out / "varied.jsonl")
    file = out / "suspicious.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    before = [(row["text"], row["label"]) for row in map(json.loads, lines)]
    known = set(before)
    left = [each for each in pool[RANDOM:] if each not in known]
    write(before + riskiest(left, RISKIEST[bool(before)]), file)


if __name__ == "__main__":
    main()
