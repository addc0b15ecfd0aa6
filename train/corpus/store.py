"""A built corpus on disk: one Parquet file per split, a card, and a manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from jingyin.model.bundle import FrozenModel
from jingyin.model.errors import InputError
from jingyin.model.files import atomic_folder
from jingyin.train.corpus.perturb import TRAINING
from jingyin.train.corpus.public import KINDS
from jingyin.train.corpus.rows import default_folders
from jingyin.train.recipes import Share, read_yaml

SPLITS = ("train", "validation", "calibration", "test")

MANIFEST = "corpus.json"
"""File that describes a built corpus: recipe, fingerprint, rows of each split."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a built corpus.

    `text` is a model's input; `template` the text it was made from, with slots and undisguised; `evasion` the family
    of its disguise, "framed", "restyled", "dressed", "company:KIND" or ""; a `group` is never in two splits; `weight`
    is that of a message of its source: each epoch shows one of a message's rows, with the whole weight; `pair` is the
    id of its minimal pair or ""; `case` the case it was written from or ""; `writer` its author; `signs` its signs, in
    the form of rows.py. The message itself stands in `text` from `start` to `end`, and the text next to it has the
    label `beside`; "" if there is none: all of the text is the message, or a frame around it.
    """

    text: str
    label: str
    family: str
    voice: str
    source: str
    group: str
    template: str
    evasion: str
    weight: float
    pair: str = ""
    case: str = ""
    writer: str = ""
    signs: str = "?"
    start: int = 0
    end: int = 0
    beside: str = ""


_TYPES = {str: pa.string(), float: pa.float64(), int: pa.int64()}
SCHEMA = pa.schema([(f.name, _TYPES[f.type]) for f in fields(Row)])  # type: ignore[index]
"""Arrow schema of every split's file."""


def fingerprint(splits: Mapping[str, Sequence[Row]]) -> str:
    """Return the SHA-256 of all rows in order."""
    digest, values = hashlib.sha256(), attrgetter(*SCHEMA.names)  # astuple copies each value
    for split, rows in splits.items():
        for row in rows:
            digest.update(json.dumps([split, *values(row)], ensure_ascii=False).encode())
    return digest.hexdigest()


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of a built corpus; "" for another folder."""
    if not is_built(folder):
        return ""
    return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["fingerprint"])


def is_built(path: Path) -> bool:
    """Whether `path` is the folder of a built corpus."""
    return (path / MANIFEST).is_file()


def write(splits: Mapping[str, Sequence[Row]], recipe: Mapping[str, object], card: str, out: Path) -> None:
    """Write a corpus to the folder `out`, replacing an existing one; all of it or nothing."""
    manifest = {
        "fingerprint": fingerprint(splits),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "recipe": recipe,
    }
    with atomic_folder(out) as folder:
        for split, rows in splits.items():
            columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
            pq.write_table(pa.Table.from_pydict(columns, SCHEMA), folder / f"{split}.parquet")
        text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def read(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of each split; raises InputError for a file that is missing, damaged or not a split."""
    return {split: [Row(**row) for row in read_table(folder / f"{split}.parquet").to_pylist()] for split in SPLITS}


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a split, or some of its columns; raises InputError for a file that is missing, damaged or not a split."""
    try:
        schema, table = pq.read_schema(path), pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read as Parquet; build the corpus again") from error
    if not schema.equals(SCHEMA):
        raise InputError(f"{path} has other columns than {SCHEMA.names}; build the corpus again")
    return table


class Splits(FrozenModel):
    """Shares of the groups; they add up to 1. One that is left out is 0."""

    train: Share = 0.0
    validation: Share = 0.0
    calibration: Share = 0.0
    test: Share = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = sum(getattr(self, name) for name in SPLITS)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares of the splits add up to {total:g}; they must add up to 1")
        return self


def _there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the path of a file or folder, from the working directory")
    return path


_Existing = Annotated[Path, AfterValidator(_there)]


class Public(FrozenModel):
    """A public corpus to add: its kind (public.KINDS), path, weight of each message, how many, its splits.

    `splits` may hold out more of it than of the authored messages: bounds on false positives take many benign rows.
    """

    kind: str
    path: _Existing
    weight: float = Field(1.0, gt=0, le=10)
    limit: int | None = Field(None, ge=1)
    splits: Splits | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
        return kind


class Evasion(FrozenModel):
    """How many training messages get a disguised copy, how strong, and by which families."""

    share: Share = 0.5
    strength: tuple[Share, Share] = (0.2, 0.8)
    families: tuple[str, ...] = TRAINING

    @field_validator("families")
    @classmethod
    def _training_only(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if not families or (wrong := sorted(set(families) - set(TRAINING))):
            named = f"{wrong} can't be used" if families else "no family"
            raise ValueError(f"{named}; training families: {', '.join(TRAINING)}")
        return families


Most = dict[Literal["train", "validation", "calibration", "test"], Annotated[int, Field(ge=0)]]
"""Split -> the most messages of it."""


class CorpusRecipe(FrozenModel):
    """A corpus recipe. `draws` is how often the slots of a training message are filled anew.

    `authored` is a file or folder of authored messages or a list of them, by default all folders in the package
    (rows.py). A kind of `public` comes once. Authored messages whose character 4-grams have a Jaccard of
    `similarity` or more stay on one side of a split; a public message as similar to an earlier one is left out.
    `framed` is the share of the authored training messages that get a quoted copy (perturb.py); `dressed` that
    of all training messages that get two with a head or a tail. `restyled` and `company` are how many copies in other
    punctuation (perturb.py) and in company (company.py) an authored training message gets on average, a public one
    half as many. `reported` is the share of the authored threats that get a copy handed on to its victim and one that
    is reported, a pair; other messages get one in any frame, public ones a fifth as often.
    `copies` is the most of all these that an authored training message has, drawn by chance, a public one half as many;
    by default all are kept, and those in frames always.
    `nonsense` is how many lines of nonsense the training split gets as ordinary ones (everyday.py), `everyday` how many
    innocents made from frames (everyday.py); those like a held-out message are left out.
    `most_authored` and `most_public` are the most messages of a split, drawn by hash; the user's own (kinds own,
    cases, mined, jsonl, csv) come on top.
    `splits` are the shares of the groups, `case_splits` those of groups with a message written from a real case.
    Messages by the `test_writers` are test only, and so are messages grouped with them.
    """

    seed: int = 0
    authored: Annotated[
        tuple[_Existing, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value)
    ] = Field(default_factory=default_folders)
    public: tuple[Public, ...] = ()
    draws: int = Field(2, ge=1, le=20)
    similarity: float = Field(0.5, ge=0.4, le=1)
    evasion: Evasion = Evasion()
    framed: Share = 0.0
    dressed: Share = 0.0
    restyled: float = Field(0.0, ge=0, le=10)
    company: float = Field(0.0, ge=0, le=10)
    reported: Share = 0.0
    copies: int = Field(100, ge=0)
    nonsense: int = Field(0, ge=0)
    everyday: int = Field(0, ge=0)
    test_writers: tuple[str, ...] = ()
    most_authored: Most = Field({})
    most_public: Most = Field({})
    splits: Splits = Splits(train=0.7, validation=0.1, calibration=0.1, test=0.1)
    case_splits: Splits = Splits(train=0.7, validation=0.02, calibration=0.08, test=0.2)

    @field_validator("public")
    @classmethod
    def _each_kind_once(cls, public: tuple[Public, ...]) -> tuple[Public, ...]:
        kinds = Counter(source.kind for source in public)
        if twice := [kind for kind, count in kinds.items() if count > 1]:
            entries = f"{', '.join(twice)} in more than one entry"
            raise ValueError(f"{entries}; weight and splits go by kind: put the messages into one file")
        return public


def load_recipe(path: Path) -> CorpusRecipe:
    """Read a recipe; raises ConfigError that lists all of its errors."""
    return read_yaml(path, CorpusRecipe.model_validate)
