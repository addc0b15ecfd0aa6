"""Whether fine-tuning helps: recall on threats of a new kind, and on all others, before and after.

    python bench/finetune.py families OUT     # the bundle is trained without three families of threats
    python bench/finetune.py dialect OUT      # the package's bundle, and 100 messages in a dialect that it lacks

Each cell of a table is one fine-tuning (`jingyin finetune`) with a seed and a number of messages, in a run folder of
its own below OUT: the same command goes on after a kill. What is counted was trained on by neither bundle: held-out
messages of the new kind, and the test split of the authored messages. Flagged means reviewed or blocked, by each
bundle's own thresholds.

families    takes the families' rows out of the authored corpus, trains a bundle on the rest, and fine-tunes it with 50,
            200 and 500 of their training messages and as many innocents of the corpus, which it knows: from one side
            alone nothing is learnt
dialect     data/dialect_train.jsonl, 100 invented messages in Sichuan dialect, and data/dialect_test.jsonl, 60 others
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import mean

import yaml

from jingyin.model.bundle import default_path
from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.store import SPLITS, Row
from jingyin.train.evaluate.samples import read_rows
from jingyin.train.finetune import finetune
from jingyin.train.finetune_data import Columns, Splits, authored_corpus
from jingyin.train.pipeline import train

HERE = Path(__file__).parent
FAMILIES = ("bad_review", "denunciation", "protection_money")
SIZES = (50, 200, 500)
NEW, NEW_INNOCENT, OTHER, INNOCENT = "new threats", "new innocents", "other threats", "innocents"

Texts = Mapping[str, Sequence[str]]
"""Held-out messages by what they are: one of the four above."""

Counts = dict[str, tuple[int, int]]
"""How many of them are flagged, and how many there are."""


def families(given: argparse.Namespace) -> None:
    """Print a row for each seed and number of messages, and the mean over the seeds."""
    authored = _authored(given)
    rest = given.out / "rest"
    if not store.is_built(rest):
        kept = {split: [row for row in authored[split] if not _is_new(row, given.families)] for split in SPLITS}
        store.write(kept, {"without": given.families}, "The authored corpus without some families.", rest)
    base = _base(given, rest)
    new = {split: [row for row in _plain(authored[split]) if _is_new(row, given.families)] for split in SPLITS}
    texts = {NEW: [row.text for row in new["test"]], **_others(store.read(rest))}
    innocents = [row for row in _plain(store.read(rest)["train"]) if row.label in BENIGN]
    table = _Table(given.out, base, rest, texts)
    for size in given.sizes:
        for seed in given.seeds:
            rng = Random(f"{size} {seed}")
            drawn = [*rng.sample(new["train"], size), *rng.sample(innocents, size)]
            table.cell(size, seed, [{"text": row.text, "label": row.label} for row in drawn])
    table.show()


def dialect(given: argparse.Namespace) -> None:
    """Print a row for each seed, and their mean."""
    held_out = read_rows(HERE / "data" / "dialect_test.jsonl")
    texts = {
        NEW: [row["text"] for row in held_out if row["label"] in FLAGGED],
        NEW_INNOCENT: [row["text"] for row in held_out if row["label"] in BENIGN],
        **_others(_authored(given)),
    }
    table = _Table(given.out, given.bundle or default_path(), _folder(given), texts)
    rows = read_rows(HERE / "data" / "dialect_train.jsonl")
    for seed in given.seeds:
        table.cell(len(rows), seed, rows)
    table.show()


def _folder(given: argparse.Namespace) -> Path:
    return given.corpus or given.out / "authored"


def _authored(given: argparse.Namespace) -> Splits:
    given.out.mkdir(parents=True, exist_ok=True)
    return authored_corpus(_folder(given))


def _is_new(row: Row, names: Sequence[str]) -> bool:
    return row.family in names and row.label in FLAGGED


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Return each message once, as it stands."""
    return list({row.template: row for row in reversed(rows) if not row.evasion}.values())[::-1]


def _others(splits: Splits) -> dict[str, list[str]]:
    rows = _plain(splits["test"])
    return {
        OTHER: [row.text for row in rows if row.label in FLAGGED],
        INNOCENT: [row.text for row in rows if row.label in BENIGN],
    }


def _base(given: argparse.Namespace, corpus: Path) -> Path:
    """Train a bundle that has seen nothing but `corpus`; return its folder."""
    recipe = given.out / "base.yaml"
    content = yaml.safe_load(given.recipe.read_text(encoding="utf-8")) | {"corpus": str(corpus.resolve())}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return train([recipe], given.out) / "bundle"


class _Table:
    """Fine-tunes `bundle`, with replay from corpus folder `replay`, and counts what is flagged of held-out `texts`."""

    def __init__(self, out: Path, bundle: Path, replay: Path, texts: Texts) -> None:
        self.out, self.bundle, self.replay, self.texts = out, bundle, replay, texts
        self.before = flagged(bundle, texts)
        self.after: dict[int, dict[int, Counts]] = {}

    def cell(self, size: int, seed: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Fine-tune on rows of `text` and `label`, unless that is done, and count."""
        run = self.out / f"rows-{size}-seed-{seed}"
        data = self.out / f"{run.name}.jsonl"
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        finetune([str(data)], run, Columns(), bundle=self.bundle, replay=self.replay, seed=seed)
        self.after.setdefault(size, {})[seed] = flagged(run / "bundle", self.texts)

    def show(self) -> None:
        """Print the table."""
        print("| messages | seed | " + " | ".join(f"{name} flagged: before | after" for name in self.texts) + " |")
        print("|---" * (2 + 2 * len(self.texts)) + "|")
        for size, seeds in self.after.items():
            for seed, after in seeds.items():
                cells = [f"{_show(self.before[name])} | {_show(after[name])}" for name in self.texts]
                print(f"| {size} | {seed} | " + " | ".join(cells) + " |")
            means = [
                f"{_share(self.before[name]):.1%} | {mean(_share(after[name]) for after in seeds.values()):.1%}"
                for name in self.texts
            ]
            print(f"| {size} | mean | " + " | ".join(means) + " |")


def flagged(bundle: Path, texts: Texts) -> Counts:
    """Return how many of each kind of messages a bundle reviews or blocks, and how many there are."""
    scorer = Scorer.load(bundle, cache_bytes=0)
    return {
        name: (sum(each.decision.action != "pass" for each in scorer.scored(some)), len(some))
        for name, some in texts.items()
    }


def _show(count: tuple[int, int]) -> str:
    return f"{count[0]} of {count[1]}"


def _share(count: tuple[int, int]) -> float:
    return count[0] / max(1, count[1])


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["families", "dialect"])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--corpus", type=Path, help="a corpus folder in place of the package's authored messages")
    parser.add_argument("--families", nargs="+", default=FAMILIES, help="those that are taken out")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="messages of the families")
    parser.add_argument("--recipe", type=Path, default=HERE / "data" / "finetune_base.yaml", help="of the first bundle")
    parser.add_argument("--bundle", type=Path, help="dialect: by default the package's")
    given = parser.parse_args()
    {"families": families, "dialect": dialect}[given.what](given)


if __name__ == "__main__":
    main()
