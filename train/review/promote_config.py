"""What `jingyin promote` asks of a candidate: configs/promote.yaml."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jingyin.train.yaml_file import read_yaml


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Model):
    """A share for each action, 0 to 1."""

    review: float = Field(ge=0, lt=1)
    block: float = Field(ge=0, lt=1)


class PlainRates(_Model):
    """Shares, 0 to 1, of the plain threats that must be flagged, and of the plain innocents that must pass."""

    flagged: float = Field(ge=0, le=1)
    passed: float = Field(ge=0, le=1)


class PromoteConfig(_Model):
    """The data to judge on, what a candidate must hold by itself, and how much may be lost against the incumbent.

    `traffic` gives the largest share of real messages that may reach each action (the shipping rule), `nonsense` how
    many lines of nonsense are scored, of which none may be flagged, `family_slack` how much a benign family's
    false-positive bound may rise.
    """

    data: list[Path] = Field(min_length=1)
    traffic: Rates
    plain: PlainRates
    nonsense: int = Field(ge=1)
    family_slack: Rates
    latency_ratio: float = Field(ge=1)
    size_ratio: float = Field(ge=1)


_CONFIG: TypeAdapter[PromoteConfig] = TypeAdapter(PromoteConfig)


def load_config(path: Path) -> PromoteConfig:
    """Read a configuration; raises ConfigError that lists all of its errors."""
    return read_yaml(path, _CONFIG)
