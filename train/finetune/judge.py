"""Whether the new bundle may replace the one that serves: `jingyin promote` on the run's own test split."""

from pathlib import Path

import yaml

from jingyin.train.finetune.corpus import TRAFFIC
from jingyin.train.review.promote import Decision, default_config, promote


def decide(run: Path, incumbent: Path, sources: list[str]) -> Decision:
    """Judge `run`/bundle on `run`/corpus, whose test rows have `sources`; leaves promote.yaml, promotion.json in `run`.

    The configuration is the package's, but that of few messages of traffic one may reach each action: a rate of 1 in
    10,000 can't be asked of a thousand.
    """
    config = yaml.safe_load(default_config().read_text(encoding="utf-8"))
    rows = sources.count(TRAFFIC)
    config["data"] = [str(run / "corpus" / "test.parquet")]
    config["traffic"] = {action: max(rate, 1 / rows) if rows else rate for action, rate in config["traffic"].items()}
    file = run / "promote.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return promote(run / "bundle", incumbent, file, run / "promotion.json")
