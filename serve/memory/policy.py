"""Policies: a gateway's rules for some of its traffic, whatever the model says.

A YAML file with `rules`, an ordered list; the first rule that matches a message decides. A rule names senders, routes
or API keys (with * and ?), or signatures (【…】) in the message; one that names none matches every message:

    rules:
      - {name: our own codes, key: [otp], signature: [某某银行], action: pass}
      - {name: marketing, sender: ["10690*"], review: 0.3, block: 0.9, on_deadline: review}
      - {name: strangers abroad, sender: ["+*"], review: 0.2, dry_run: true}

A rule with dry_run is counted but decides nothing: the search continues after it.
"""

import re
from collections.abc import Iterator
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jingyin.model.errors import ConfigError, faults_of
from jingyin.model.labels import Action

_SIGNATURE = re.compile(r"[【\[]([^【】\[\]]{1,30})[】\]]")

Patterns = Annotated[tuple[str, ...], Field(min_length=1)]
"""Without a list every message matches, so an empty one, which nothing should match, is refused."""
Risk = Annotated[float, Field(gt=0, le=1)]


class MessageSource(NamedTuple):
    """Where a message comes from: the name of the API key ("" without), and fields of the request."""

    key: str = ""
    sender: str | None = None
    route: str | None = None


class Rule(BaseModel):
    """One rule. `review` and `block` are the risks from which these actions are taken, in place of the bundle's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sender: Patterns = ()
    signature: Patterns = ()
    route: Patterns = ()
    key: Patterns = ()
    action: Action | None = None
    review: Risk | None = None
    block: Risk | None = None
    on_deadline: Action | None = None
    dry_run: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.action and (self.review or self.block or self.on_deadline):
            raise ValueError("action decides alone: leave out review, block and on_deadline")
        if not (self.action or self.review or self.block or self.on_deadline):
            raise ValueError("a rule needs an action, review, block or on_deadline")
        if self.review and self.block and self.review > self.block:
            raise ValueError("review must not be above block")
        return self

    def meets(self, source: MessageSource, text: str) -> bool:
        """Whether the rule applies to a message: of each kind of pattern that it names, one matches."""
        for patterns, given in ((self.sender, source.sender), (self.route, source.route), (self.key, source.key)):
            if patterns and (given is None or not _pattern(patterns).match(given)):
                return False
        return not self.signature or any(_pattern(self.signature).match(each) for each in _SIGNATURE.findall(text))

    def decide(self, risk: float | None, alone: Action | None) -> Action | None:
        """Return the action for a message to which the bundle gives this risk (None: not scored) and action `alone`.

        None leaves the action to the service.
        """
        if self.action or risk is None:
            return self.action or self.on_deadline
        if self.block and risk >= self.block:
            return "block"
        if self.review and risk >= self.review:
            return "review" if self.block else max(alone or "pass", "review", key=("pass", "review", "block").index)
        if self.review:
            return "pass"
        return "review" if self.block and alone == "block" else alone


class Policy(BaseModel):
    """An ordered list of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[Rule, ...]

    def rules_for(self, source: MessageSource, text: str) -> Iterator[Rule]:
        """Yield the dry-run rules that match a message, and last the rule that decides, if any."""
        for rule in self.rules:
            if rule.meets(source, text):
                yield rule
                if not rule.dry_run:
                    return


@cache
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def read_policy(file: Path) -> Policy:
    """Read a policy; raises a ConfigError that lists all faults."""
    try:
        return Policy.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigError(f"policy {file} is wrong: {faults_of(error)}") from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: no text, or a date such as 2024-99-99
        raise ConfigError(f"policy {file} can't be read as YAML ({type(error).__name__})") from None
