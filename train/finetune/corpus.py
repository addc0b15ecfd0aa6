"""The corpus of a fine-tuning: one's own messages, a replay of authored ones, and traffic of one's own.

Authored messages keep the split that they have in the default corpus: what the shipped bundle was trained on is never
tested on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random

import yaml

from jingyin.model.decision import FLAGGED_INDEX
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.build import bare, build
from jingyin.train.corpus.dress import dress
from jingyin.train.corpus.evade import TRAINING, evade
from jingyin.train.corpus.similar import Groups, similar_pairs
from jingyin.train.corpus.stats import corpus_tables
from jingyin.train.corpus.store import SPLITS, Row
from jingyin.train.finetune.alike import SIMILAR, pairs_across
from jingyin.train.finetune.deduplicate import is_flagged
from jingyin.train.finetune.read import SIDES, Labelled

REPLAY = 4000
"""Authored training messages that are trained on again; four times as many as the own ones where that is more."""

HELD_OUT = {"validation": 500, "calibration": 2500, "test": 2000}
"""Authored messages of the other splits, at most."""

TRAFFIC = "jsonl"
"""Source of the messages of traffic: the corpus's name for messages of one's own that nobody picked."""

MOST_TRAFFIC = 20_000
SHARES = {"test": 0.2, "calibration": 0.1}
"""Of the own messages; the rest is trained on."""

_TRAFFIC_TEST = 0.4
_CARD = """# Corpus of a fine-tuning run

Sources: own (labelled messages of one's own), authored (invented for jingyin), jsonl (own messages without labels,
taken for ordinary ones).

{counts}
"""

Splits = dict[str, list[Row]]


def replayed(own: int) -> int:
    """Return how many authored messages are trained on again beside so many own ones."""
    return max(REPLAY, 4 * own)


def authored_corpus(folder: Path) -> Splits:
    """Return the authored messages in their splits of the default corpus, built into `folder` unless they are there."""
    if not store.is_built(folder):
        content = yaml.safe_load(files("jingyin").joinpath("configs/default/corpus.yaml").read_text(encoding="utf-8"))
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump({**content, "public": []}), encoding="utf-8")
        build(recipe, folder)
    return store.read(folder)


def write_corpus(
    own: Sequence[Labelled], traffic: Sequence[str], authored: Mapping[str, Sequence[Row]], incumbent: Scorer,
    folder: Path, seed: int,
) -> Splits:  # fmt: skip
    """Write the corpus folder; near-duplicates never lie in two splits. Returns its rows."""
    rng = Random(seed)
    splits = {split: _some(authored[split], HELD_OUT.get(split, replayed(len(own))), rng) for split in SPLITS}
    placed = _place(own, authored["train"], splits)
    labels = _full_labels(own, incumbent)
    for row, label, split in zip(own, labels, placed, strict=True):
        splits[split] += _own_rows(row, label, split == "train", rng)
    for text, split in _apart(traffic, [row.text for row in own], splits, rng):
        splits[split].append(_row(text, "ordinary", "traffic", TRAFFIC, text))
    store.write(splits, {"seed": seed}, _CARD.format(counts=corpus_tables(splits)), folder)
    return splits


def _some(rows: Sequence[Row], messages: int, rng: Random) -> list[Row]:
    """Return the rows of so many messages, drawn at random, in their order."""
    templates = list(dict.fromkeys(row.template for row in rows))
    chosen = set(rng.sample(templates, min(messages, len(templates))))
    return [row for row in rows if row.template in chosen]


def _place(own: Sequence[Labelled], seen: Sequence[Row], splits: Splits) -> list[str]:
    """Return the split of each own message; take authored held-out rows out of `splits` that are like one elsewhere.

    What is like an authored training message is trained on: the incumbent has seen its like.
    """
    texts = [clean(row.text).text for row in own]
    groups = Groups(len(own))
    for i, j, _ in similar_pairs(texts, SIMILAR):
        groups.union((i, j))
    templates = list(dict.fromkeys(row.template for row in seen))
    known = {groups.find(i) for i, _ in pairs_across(texts, [bare(each) for each in templates])}
    placed = _shares([groups.find(i) for i in range(len(own))], texts, known)
    for split in HELD_OUT:
        rows = splits[split]
        like = pairs_across(texts, [bare(row.template) for row in rows])
        dropped = {j for i, j in like if placed[i] != split}
        splits[split] = [row for j, row in enumerate(rows) if j not in dropped]
    return placed


def _shares(groups: Sequence[int], texts: Sequence[str], known: set[int]) -> list[str]:
    """Fill test and calibration with whole groups in an order drawn by their texts; `known` groups are for training."""
    sizes = Counter(groups)
    split = dict.fromkeys(sizes, "train")
    free = iter(sorted(sizes.keys() - known, key=lambda group: hashlib.sha256(texts[group].encode()).digest()))
    for name, share in SHARES.items():
        left = round(share * len(groups))
        while left > 0 and (group := next(free, None)) is not None:
            split[group] = name
            left -= sizes[group]
    return [split[group] for group in groups]


def _full_labels(own: Sequence[Labelled], incumbent: Scorer) -> list[str]:
    """Return a label of the five for each row.

    A row with a side alone gets the label of that side that the incumbent gives most.
    """
    half = [row for row in own if row.label in SIDES]
    decided = {row.where: each for row, each in zip(half, incumbent.decisions([r.text for r in half]), strict=True)}
    return [
        _likeliest(decided[row.where].probabilities, is_flagged(row.label)) if row.label in SIDES else row.label
        for row in own
    ]


def _likeliest(probabilities: Mapping[str, float], flagged: bool) -> str:
    side = [label for i, label in enumerate(LABELS) if (i in FLAGGED_INDEX) == flagged]
    return max(side, key=lambda label: probabilities[label])


def _own_rows(own: Labelled, label: str, training: bool, rng: Random) -> Iterator[Row]:
    """Yield a message, and for training a disguised and a dressed copy of it."""
    copies = [(own.text, "")]
    if training:
        families = rng.sample(TRAINING, len(TRAINING))
        hidden = ((evade(own.text, family, rng.uniform(0.2, 0.8), rng), family) for family in families)
        copies += [next((each for each in hidden if each[0] != own.text), (own.text, ""))]
        copies.append((dress(own.text, rng), "dressed"))
    for text, evasion in copies:
        yield _row(text, label, own.label, "own", own.text, evasion, 1 / len(copies))


def _row(text: str, label: str, family: str, source: str, template: str, evasion: str = "", weight: float = 1.0) -> Row:
    group = hashlib.sha256(f"{source} {template}".encode()).hexdigest()[:16]
    return Row(text, label, family, "public", source, group, template, evasion, weight)


def _apart(traffic: Sequence[str], own: Sequence[str], splits: Splits, rng: Random) -> Iterator[tuple[str, str]]:
    """Yield messages of traffic with their split: each once, none like another one, an own or an authored one."""
    once = list({clean(text).text: text for text in traffic}.values())
    drawn = rng.sample(once, min(MOST_TRAFFIC, len(once)))
    texts = [clean(text).text for text in drawn]
    like = {j for _, j, _ in similar_pairs(texts, SIMILAR)}
    others = [clean(text).text for text in own] + [bare(row.template) for rows in splits.values() for row in rows]
    like |= {i for i, _ in pairs_across(texts, list(dict.fromkeys(others)))}
    kept = [text for i, text in enumerate(drawn) if i not in like]
    for number, text in enumerate(kept):
        yield text, "test" if number < _TRAFFIC_TEST * len(kept) else "calibration"
