"""Counts what the prefilter loses: python bench/prefilter_loss.py DATA...

DATA is .parquet or .jsonl with "text", or .txt. Of the messages that the networks alone would review or block, how many
does the prefilter stop? The bound is the one-sided 95% upper bound of that share (Clopper & Pearson 1934). DATA that
the prefilter was not trained on, please: the test split of a corpus folder, or traffic.
"""

import sys
from pathlib import Path

import traffic

from jingyin import Scorer
from jingyin.train.pack.thresholds import upper_bound


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    if not files:
        sys.exit("wanted: prefilter_loss.py DATA..., see the top of this file")
    messages = [text for file in files for text in traffic.texts(file)]
    stages = [decision.stage for decision in Scorer.load().decisions(messages)]
    flagged = [decision.action != "pass" for decision in Scorer.load(prefilter=False).decisions(messages)]
    lost = sum(flag and stage == "prefilter" for flag, stage in zip(flagged, stages, strict=True))
    passed = sum(not flag and stage == "network" for flag, stage in zip(flagged, stages, strict=True))
    ordinary = len(messages) - sum(flagged)
    print(f"{len(messages)} messages, of which the networks alone review or block {sum(flagged)}")
    print(f"the prefilter stops {lost} of these: at most {upper_bound(lost, sum(flagged)):.3%} at 95%")
    print(f"of the other {ordinary} it lets {passed} through ({passed / max(1, ordinary):.1%})")


if __name__ == "__main__":
    main()
