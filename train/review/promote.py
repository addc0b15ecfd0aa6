"""`jingyin promote`: may a candidate replace the incumbent? Checks, each with its reason."""

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import InputError
from jingyin.train.evaluate.figures import refuse_few
from jingyin.train.evaluate.judge import RATES
from jingyin.train.evaluate.messages import read_messages
from jingyin.train.review.checks import Check, Side, comparison_checks
from jingyin.train.review.promote_config import load_config
from jingyin.train.review.requirements import requirement_checks
from jingyin.train.review.unused_rows import unused_rows


@dataclass(frozen=True)
class Decision:
    """Whether `candidate` may replace `incumbent` (bundle ids), and why; `files` gives the sha256 of the data."""

    promote: bool
    candidate: str
    incumbent: str
    files: dict[str, str]
    checks: list[Check]


def promote(candidate: Path, incumbent: Path | None, config_path: Path | None, out: Path) -> Decision:
    """Judge both bundles on the same messages, write the decision as JSON to `out`, and return it.

    By default the incumbent is the package's bundle, and the configuration the package's. Raises ConfigError for a bad
    configuration, InputError for data that can't be used or bundles with different labels, BundleError.
    """
    config = load_config(config_path or default_config())
    incumbent = incumbent or default_path()
    refuse_different_labels(candidate, incumbent)
    manifests = [read_bundle(path).manifest for path in (candidate, incumbent)]
    messages, reason = unused_rows(read_messages(config.data), config.data, manifests)
    refuse_few(int(messages.benign.sum()), RATES)
    new, old = (Side.of(path, messages) for path in (candidate, incumbent))
    checks = [
        Check("unused rows", passed=True, reason=reason),
        *requirement_checks(new, messages, config),
        *comparison_checks(new, old, messages, config),
    ]
    ids = [manifest.id for manifest in manifests]
    decision = Decision(all(check.passed for check in checks), ids[0], ids[1], messages.files, checks)
    out.write_text(json.dumps(asdict(decision), indent=1) + "\n", encoding="utf-8")
    return decision


def default_config() -> Path:
    """Return the configuration that comes with the package."""
    return Path(str(files("jingyin").joinpath("configs/promote.yaml")))


def refuse_different_labels(candidate: Path, incumbent: Path) -> None:
    """Raise InputError that names both label sets when they differ."""
    new, old = (read_bundle(path).manifest.labels for path in (candidate, incumbent))
    if set(new) != set(old):
        raise InputError(
            f"candidate {candidate} has labels {', '.join(new)}, incumbent {incumbent} has {', '.join(old)}; "
            "bundles of different label sets can't be compared: train the candidate on the incumbent's labels"
        )
