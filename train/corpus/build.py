"""Builds the corpus: load, clean, de-duplicate, group, split, fill slots, disguise, frame, write."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.train.corpus import company, public, rows, store
from jingyin.train.corpus.company import FRAMES, Neighbours, Placed
from jingyin.train.corpus.edits import EDITOR, EDITS
from jingyin.train.corpus.everyday import everyday, nonsense
from jingyin.train.corpus.perturb import HELD_OUT, affix, anonymous, evade, quoted_copy, restyled
from jingyin.train.corpus.public import KINDS, MINED, USERS, is_excluded
from jingyin.train.corpus.rows import Record, at_least, is_annotated
from jingyin.train.corpus.similar import Groups, pairs_across, similar_pairs
from jingyin.train.corpus.slots import SLOT, fill_slots
from jingyin.train.corpus.stats import corpus_tables
from jingyin.train.corpus.store import SPLITS, CorpusRecipe, Evasion, Public, Row, Splits, load_recipe


def card(splits: Mapping[str, Sequence[Row]], kinds: Sequence[str], families: Sequence[str], fingerprint: str) -> str:
    """Return the card in Markdown: sources with citation and licence, families of disguises, counts, fingerprint."""
    lines = ["- authored: invented for jingyin; Apache-2.0"]
    for kind in dict.fromkeys(kinds):
        source = KINDS[kind]
        cited = f"; {source.citation}" if source.citation else ""
        label = f"all {source.label}" if source.label else "labels of its own"
        lines.append(f"- {kind}: {source.title}{cited}; licence: {source.licence}; {label}")
    annotated = {row.template for rows in splits.values() for row in rows if is_annotated(row.signs)}
    return _HERE.joinpath("card.md").read_text(encoding="utf-8").format(
        fingerprint=fingerprint, annotated=len(annotated), training=", ".join(families),
        held_out=", ".join(HELD_OUT), sources="\n".join(lines), counts=corpus_tables(splits),
    )  # fmt: skip


_HERE = files("jingyin.train.corpus")
_FEWER_FRAMED = 5  # times fewer framed copies of a public message than of an authored one
_AFFIXED = 2  # copies per message: there are hundreds of heads and tails, and an epoch shows one variant
_T = TypeVar("_T")
_CONSOLE = Console(stderr=True)


def build(config_path: Path, out: Path) -> str:
    """Build the corpus that a recipe describes into the folder `out` and return its fingerprint.

    Writes <split>.parquet for each of SPLITS, README.md (the card) and corpus.json. An existing corpus is
    replaced, anything else refused. The same recipe and files give the same fingerprint. Raises ConfigError
    or InputError, and leaves `out` as it was.
    """
    recipe = load_recipe(config_path)
    if out.exists() and not store.is_built(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not a corpus; name a new folder or remove it first")
    records = [*(each for path in recipe.authored for each in rows.load(path)), *_public(recipe.public)]
    distinct, groups = group_records(records, recipe.similarity)
    splits = _rows_by_split(distinct, groups, recipe)
    fingerprint = store.fingerprint(splits)
    sources = [source.kind for source in recipe.public]
    page = card(splits, sources, recipe.evasion.families, fingerprint)
    store.write(splits, recipe.model_dump(mode="json"), page, out)
    return fingerprint


CORPUS_VERSION = 18
"""Raised whenever the same recipe and files would make a different corpus."""


def source_key(config_path: Path) -> str:
    """Return a hash of everything that a corpus is made from, regardless of folders.

    That is the recipe, the authored files and their signs, the tables of slots, affixes and disguises, size and time of
    public files, and CORPUS_VERSION.
    """
    recipe = load_recipe(config_path)
    settings = recipe.model_dump_json(exclude={"authored": True, "public": {"__all__": {"path"}}})
    digest = hashlib.sha256(f"{CORPUS_VERSION} {settings}".encode())
    for path in recipe.authored:
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    tables = sorted(_HERE.joinpath("tables").iterdir(), key=lambda each: each.name)
    for table in (rows.ANNOTATED, rows.OF_FAMILIES, EDITS, *tables):
        digest.update(table.read_bytes())
    for source in recipe.public:
        for file in sorted(source.path.rglob("*")) if source.path.is_dir() else [source.path]:
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def comparable_text(template: str) -> str:
    """Return the clean text by which messages are compared: without slots, with masks."""
    return clean(SLOT.sub("", template)).text


def group_records(records: Sequence[Record], similarity: float) -> tuple[list[Record], list[str]]:
    """Drop messages similar to own ones, and public ones similar to an earlier one; return the rest and their groups.

    A group joins similar authored messages, the rows of a minimal pair, those of one case, or one user's messages; or
    similar own messages (the user's, labelled). Its name is its first member's, also if that is dropped: an own message
    like one side of a minimal pair must not move the other side to another split. Public messages are dropped rather
    than grouped: greetings would chain all users into one group. So are authored ones similar to own ones: groups of
    thousands of authored messages might take all own ones out of training, and their label is the one that counts.
    """
    texts = [comparable_text(record.text) for record in _track(records, "cleaning")]
    groups = Groups(len(records))
    dropped: set[int] = set()
    replaced: set[int] = set()  # authored, and still what joins others
    with _CONSOLE.status("comparing"):
        for i, j, _ in similar_pairs(texts, similarity, dropped, groups):
            if (records[i].source in USERS) != (records[j].source in USERS):
                other = j if records[i].source in USERS else i
                (replaced if records[other].source == "authored" else dropped).add(other)
            elif records[j].source in ("authored", *USERS):
                groups.union((i, j))
            else:
                dropped.add(j)
    first_of_name: dict[str, int] = {}
    for i, record in enumerate(records):
        if i not in dropped:
            for name in filter(None, (record.group, record.case and f"case {record.case}")):
                groups.union((first_of_name.setdefault(name, i), i))
    remaining = [i for i in range(len(records)) if i not in dropped and i not in replaced]
    return [records[i] for i in remaining], [_group_name(records[groups.find(i)]) for i in remaining]


def _group_name(first: Record) -> str:
    """Return the name of the group whose first member is `first`."""
    return (first.case if first.source == "authored" else first.group) or first.text


def _public(sources: Sequence[Public]) -> Iterator[Record]:
    edited: dict[str, Record] = {}  # by group, which they share with their message
    for source in sources:
        read = list(_track(public.read(source.kind, source.path), f"reading {source.kind}"))
        records = [record for record in read if record.source != "authored"]
        edited |= {record.group: record for record in read if record.source == "authored"}
        if not records:
            raise InputError(f"{source.path} holds no usable message of kind {source.kind}; check path and kind")
        if KINDS[source.kind].label:  # the user's own labels count
            records = [record for record in records if not is_excluded(record.text)]
        # A sample by hash changes little when the file does.
        for record in sorted(records, key=lambda record: _hash(record.text))[: source.limit]:
            yield record
            if record.group in edited:
                yield edited.pop(record.group)


def _rows_by_split(records: Sequence[Record], groups: Sequence[str], recipe: CorpusRecipe) -> dict[str, list[Row]]:
    weights = {source.kind: source.weight for source in recipe.public}
    records, placed = _sampled(records, _placed(records, groups, recipe), recipe)
    of_split = {
        name: [record for record, (_, split) in zip(records, placed, strict=True) if split == name] for name in SPLITS
    }
    others: dict[str, Neighbours] = {}
    for split in ("train", "calibration"):
        rng = Random(recipe.seed)
        filled = (replace(record, text=_filled(record, rng)) for record in of_split[split])
        others[split] = company.neighbours(filled)
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for record, (key, split) in zip(_track(records, "filling"), placed, strict=True):
        weight = weights.get(record.source, 1.0)
        splits[split] += _variants(record, key, weight, recipe, split, others.get(split, {}))
    splits["train"] += [_generated(text, "nonsense") for text in dict.fromkeys(nonsense(recipe.nonsense, recipe.seed))]
    innocents = everyday(recipe.everyday, recipe.seed, held_out=False)
    held_out = [comparable_text(row.template) for split in SPLITS[1:] for row in splits[split]]
    like = {i for i, _ in pairs_across([clean(text).text for text in innocents], held_out, recipe.similarity)}
    splits["train"] += [_generated(text, "everyday") for i, text in enumerate(innocents) if i not in like]
    return splits


def _placed(records: Sequence[Record], groups: Sequence[str], recipe: CorpusRecipe) -> list[tuple[str, str]]:
    """Return the key of each record's group, 16 hex digits, and its split."""
    shares = {source.kind: source.splits or recipe.splits for source in recipe.public}
    of_case = {group for record, group in zip(records, groups, strict=True) if record.case}
    unseen = {group for record, group in zip(records, groups, strict=True) if record.writer in recipe.test_writers}
    # A threat made out of a real message goes where that message goes, if the message stays.
    sources = {group: record.source for record, group in zip(records, groups, strict=True) if record.writer != EDITOR}
    written = (group for record, group in zip(records, groups, strict=True) if record.source == "authored")
    edited = {group for record, group in zip(records, groups, strict=True) if record.writer == EDITOR}
    invented = {group for group in written if group not in edited or sources.get(group, "authored") == "authored"}
    # Near-copies that are much of a label are trained on: held out, they would leave next to nothing of it to learn.
    own = Counter((g, record.label) for record, g in zip(records, groups, strict=True) if record.source in USERS)
    of_label = Counter(label for _, label in own.elements())
    held_out = 1 - next((shares[kind] for kind in USERS if kind in shares), recipe.splits).train
    learnt = {group for (group, label), count in own.items() if count > max(1, held_out * of_label[label])}
    placed = []
    for group in groups:
        key = _hash(f"{recipe.seed}|{group}")
        of_source = recipe.splits if group in invented else shares.get(sources[group], recipe.splits)
        shared = recipe.case_splits if group in of_case else of_source
        split = "test" if group in unseen else "train" if group in learnt else _split(key, shared)
        placed.append((key[:16], split))
    return placed


def _sampled(
    records: Sequence[Record], placed: Sequence[tuple[str, str]], recipe: CorpusRecipe
) -> tuple[list[Record], list[tuple[str, str]]]:
    """Return as many records of each split as the recipe wants, with their places; the user's own all stay."""
    wanted: list[tuple[bool, Mapping[Any, int]]] = [(True, recipe.most_authored), (False, recipe.most_public)]
    left = {(split, kind): most.get(split, len(records)) for kind, most in wanted for split in SPLITS}
    indices = []
    for i in sorted(range(len(records)), key=lambda i: _hash(records[i].text)):
        if records[i].source not in (*USERS, MINED, "jsonl", "csv"):
            kind = (placed[i][1], records[i].source == "authored")
            left[kind] -= 1
            if left[kind] < 0:
                continue
        indices.append(i)
    indices.sort()
    return [records[i] for i in indices], [placed[i] for i in indices]


def _generated(text: str, source: str) -> Row:
    """Return the row of a generated text, a group of its own."""
    return Row(text, "ordinary", source, "public", source, _hash(text)[:16], text, "", 1.0)


def _split(key: str, shares: Splits) -> str:
    """Choose a split by the group's hash, so that no group moves when another one is added."""
    at = int(key[:12], 16) / 16**12
    for split in SPLITS[:-1]:
        at -= getattr(shares, split)
        if at < 0:
            return split
    return SPLITS[-1]


def _variants(
    record: Record, group: str, weight: float, recipe: CorpusRecipe, split: str, others: Neighbours
) -> Iterator[Row]:
    """Yield a record with its slots filled; for training several times, with copies of CorpusRecipe's kinds.

    For calibration an authored one comes once more in company, so that windows get the weight they deserve there. The
    other splits have messages as they stand; evaluation changes them by itself. `others` are the texts for company.
    """
    rng = Random(f"{recipe.seed}|{record.text}")
    draws = recipe.draws if split == "train" else 1
    plain = list(dict.fromkeys(_filled(record, rng) for _ in range(draws)))
    pair = record.group if record.source == "authored" or record.group.startswith("edited ") else ""
    copies = [_Copy(_whole(text), "") for text in plain]
    if split == "train":
        most = recipe.copies if record.source == "authored" else recipe.copies / 2
        found = list(_copies(record, plain, recipe, others, rng))
        variants = [copy for copy in found if not copy.pair]
        copies += rng.sample(variants, min(int(most + rng.random()), len(variants)))
        copies += [copy for copy in found if copy.pair]
        if pair and recipe.company:
            copies += _twin_in_company(record, plain, pair, recipe.seed, others)
    elif split == "calibration" and recipe.company and record.source == "authored":
        copies += _in_company(record, plain, 1, others, rng)
        copies += _in_frames(record, plain, recipe.reported, split, rng)
    for placed, evasion, own_pair in copies:
        kind = evasion.removeprefix("company:") if evasion.startswith("company:") else ""
        yield Row(
            text=placed.text,
            label=company.label_in(record.label, kind),
            family=record.family,
            voice=record.voice,
            source=record.source,
            group=group,
            template=placed.text if own_pair else record.text,
            evasion=evasion,
            weight=weight,
            pair=own_pair or pair,
            case=record.case,
            writer=record.writer,
            signs=at_least(record.signs) if kind else record.signs,
            start=placed.start,
            end=placed.end,
            beside="ordinary" if evasion == "dressed" else company.label_beside(kind) if kind else "",
        )


class _Copy(NamedTuple):
    """A copy of a message, and how it was made; with a `pair` of its own it is a message of its own.

    An epoch shows one copy of a message, but both sides of each pair.
    """

    placed: Placed
    evasion: str
    pair: str = ""


def _copies(
    record: Record, plain: Sequence[str], recipe: CorpusRecipe, others: Neighbours, rng: Random
) -> Iterator[_Copy]:
    """Yield copies of a training message: disguised, quoted, restyled, with affixes, in other text."""
    # By distinct text, so that the share of disguised rows is the same with slots and without.
    disguised = [_disguised(text, recipe.evasion, rng) for text in plain if rng.random() < recipe.evasion.share]
    yield from [_Copy(_whole(text), family) for text, family in disguised]
    if record.source == "authored" and rng.random() < recipe.framed:
        yield _Copy(_whole(quoted_copy(record.text, rng)), "framed")
    copies = recipe.restyled if record.source == "authored" else recipe.restyled / 2
    in_styles = [restyled(_filled(record, rng, redact=True), rng) for _ in range(int(copies + rng.random()))]
    yield from [_Copy(_whole(text), "restyled") for text in in_styles]
    # A sender does several: some copies with a head or tail, or in company, are restyled or disguised too.
    texts = [*plain, *in_styles, *(text for text, _ in disguised)]
    if rng.random() < recipe.dressed:
        for text in rng.choices(texts, k=_AFFIXED):
            head, tail = affix(rng)
            yield _Copy(Placed(head + text + tail, len(head), len(head) + len(text)), "dressed")
    copies = recipe.company if record.source == "authored" else recipe.company / 2
    yield from _in_company(record, texts, int(copies + rng.random()), others, rng)
    share = recipe.reported if record.source in ("authored", "quoted") else recipe.reported / _FEWER_FRAMED
    yield from _in_frames(record, [*plain, *in_styles], share, "train", rng)


def _whole(text: str) -> Placed:
    return Placed(text, 0, len(text))


def _filled(record: Record, rng: Random, *, redact: bool = False) -> str:
    """Return a message with its slots, which only authored ones have, filled, or some names redacted."""
    if record.source != "authored":
        return record.text
    return fill_slots(anonymous(record.text, rng) if redact else record.text, rng)


def _in_company(record: Record, texts: Sequence[str], copies: int, others: Neighbours, rng: Random) -> Iterator[_Copy]:
    for _ in range(copies):
        if found := company.training_company(rng.choice(texts), record.label, rng, others):
            yield _Copy(found[0], f"company:{found[1]}")


def _twin_in_company(record: Record, texts: Sequence[str], pair: str, seed: int, others: Neighbours) -> Iterator[_Copy]:
    """Yield a side of a minimal pair among lawful notices, the same ones for both sides, drawn by the pair.

    So the notices are no evidence for either side: innocents among them were flagged three times as often as alone.
    """
    if found := company.training_company(texts[0], record.label, Random(f"{seed}|{pair}"), others, ["lawful"]):
        yield _Copy(found[0], "company:lawful", f"{pair}:company")


def _in_frames(record: Record, texts: Sequence[str], share: float, split: str, rng: Random) -> Iterator[_Copy]:
    """Yield, of a `share` of messages, a threat handed on and the same one reported, or an innocent in any frame."""
    if rng.random() >= share:
        return
    text = rng.choice(texts)
    if record.label in FLAGGED:
        frames = dict(zip(("passed_on", "report"), company.twin_frames(split, rng), strict=True))
    else:
        # A lawful reminder among words that press for a debt would be something between the two.
        kind = rng.choice(("innocent", "innocent", "report") if record.label == "lawful_collection" else FRAMES)
        frames = {kind: rng.choice(company.frames_of(split)[kind])[0]}
    for kind, frame in frames.items():
        yield _Copy(company.framed(text, frame, rng), f"company:{kind}", f"{_hash(record.text)[:16]}:frames")


def _disguised(text: str, evasion: Evasion, rng: Random) -> tuple[str, str]:
    """Disguise a text by a family drawn from those that change it, so that all labels are disguised equally often."""
    for family in rng.sample(evasion.families, len(evasion.families)):
        hidden = evade(text, family, rng.uniform(*evasion.strength), rng)
        if hidden != text:
            return hidden, family
    return text, ""


def _track(items: Iterable[_T], what: str) -> Iterator[_T]:
    total = len(items) if isinstance(items, Sequence) else None
    return iter(track(items, what, total=total, console=_CONSOLE, transient=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
