"""What a corpus is built from: the recipe in YAML."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from jingyin.train.corpus.authored import default_folders
from jingyin.train.corpus.evade import TRAINING
from jingyin.train.corpus.readers import SOURCES
from jingyin.train.corpus.store import SPLITS
from jingyin.train.yaml_file import read_yaml

Share = Annotated[float, Field(ge=0, le=1)]


def _several(value: object) -> object:
    return (value,) if isinstance(value, str | Path) else value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Splits(_Model):
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


class Public(_Model):
    """A public corpus to add: its kind (see readers.SOURCES), path, weight of each message, how many, its splits.

    `splits` may hold out more of it than of the authored messages: bounds on false positives take many benign rows.
    """

    kind: str
    path: Path
    weight: float = Field(1.0, gt=0, le=10)
    limit: int | None = Field(None, ge=1)
    splits: Splits | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in SOURCES:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(SOURCES)}")
        return kind

    @field_validator("path")
    @classmethod
    def _there(cls, path: Path) -> Path:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give the path of the files as published")
        return path


class Evasion(_Model):
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


class CorpusRecipe(_Model):
    """A corpus recipe. `draws` is how often the slots of a training message are filled anew.

    `authored` is a file or folder of authored messages or a list of them, by default all folders in the package
    (authored.py). A kind of `public` comes once. Authored messages whose character 4-grams have a Jaccard of
    `similarity` or more stay on one side of a split; a public message so like an earlier one is left out.
    `framed` is the share of the authored training messages that get a copy in quotation (quoting.py); `dressed` that
    of all training messages that get two with a head or a tail, `accompanied` with a short everyday message beside it
    (dress.py).
    `nonsense` is how many lines of nonsense the training split gets as ordinary ones (nonsense.py).
    `splits` are the shares of the groups, `case_splits` those of groups with a message written from a real case.
    What the `test_writers` wrote is test only, and so is what is grouped with it.
    """

    seed: int = 0
    authored: Annotated[tuple[Path, ...], BeforeValidator(_several)] = Field(default_factory=default_folders)
    public: tuple[Public, ...] = ()
    draws: int = Field(2, ge=1, le=20)
    similarity: float = Field(0.5, ge=0.4, le=1)
    evasion: Evasion = Evasion()
    framed: Share = 0.0
    dressed: Share = 0.0
    accompanied: Share = 0.0
    nonsense: int = Field(0, ge=0)
    test_writers: tuple[str, ...] = ()
    splits: Splits = Splits(train=0.7, validation=0.1, calibration=0.1, test=0.1)
    case_splits: Splits = Splits(train=0.7, validation=0.02, calibration=0.08, test=0.2)

    @field_validator("public")
    @classmethod
    def _each_kind_once(cls, public: tuple[Public, ...]) -> tuple[Public, ...]:
        kinds = Counter(source.kind for source in public)
        if twice := [kind for kind, count in kinds.items() if count > 1]:
            raise ValueError(
                f"{', '.join(twice)} in more than one entry; "
                "weight and splits go by kind: put the messages into one file"
            )
        return public


_RECIPE: TypeAdapter[CorpusRecipe] = TypeAdapter(CorpusRecipe)


def load_recipe(path: Path) -> CorpusRecipe:
    """Read a recipe; raises ConfigError that lists all of its errors."""
    return read_yaml(path, _RECIPE)
