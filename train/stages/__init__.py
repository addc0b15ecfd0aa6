"""The stages of training, one module each; STAGES says which a recipe's `stage` runs."""

from collections.abc import Callable
from typing import Any

from jingyin.train.stages.align import run_align
from jingyin.train.stages.calibrate import run_calibrate
from jingyin.train.stages.classify import run_classify
from jingyin.train.stages.job import Job, StageResult

STAGES: dict[str, Callable[[Job[Any]], StageResult]] = {
    "align": run_align,
    "classify": run_classify,
    "calibrate": run_calibrate,
}
