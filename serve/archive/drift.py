"""`jingyin drift`: has the traffic moved? Population stability between two relabelled archives, without any text.

The population stability index sums (current - reference) * ln(current / reference) over bins (Siddiqi 2006, Credit Risk
Scorecards). Without drift it is about chi-squared times (1/n + 1/m) (Yurdakul 2018): a lower index is chance.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.files import write_json
from jingyin.model.labels import LABELS
from jingyin.serve.archive.shards import check_finished

MEASURES = {
    "risk": "jingyin_risk",
    "label": "jingyin_label",
    "length": "jingyin_length",
    "disguises": "jingyin_hits",
    "unknown characters": "jingyin_unknown",
}
"""The features compared, each with its column in a relabelled archive."""

NEEDED = ("jingyin_risk", "jingyin_label")

# Quantiles of the risk would all lie near 0, like most messages, and miss the range that matters.
_RISK_EDGES = np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 0.97])
_QUANTILES = np.linspace(0.1, 0.9, 9)
_CHI2 = (3.8415, 5.9915, 7.8147, 9.4877, 11.0705, 12.5916, 14.0671, 15.5073, 16.9190)
"""95% points of chi-squared for 1 to 9 degrees of freedom: no measure has more than ten bins."""
MOVED, SHIFTED = 0.1, 0.25
"""Usual readings of the index: stable below the first, a different population from the second on."""


@dataclass(frozen=True)
class Drift:
    """One measure: share of messages in each bin before and now, the index, its 95% chance level, a reading."""

    measure: str
    bins: list[str]
    reference: list[float]
    current: list[float]
    index: float
    chance: float
    reading: str


@dataclass(frozen=True)
class DriftReport:
    """All measures; `missing` names columns that one of the archives lacks or has no values in."""

    reference_rows: int
    current_rows: int
    drifts: list[Drift]
    missing: list[str]


def drift(reference: Path, current: Path, out: Path | None = None) -> DriftReport:
    """Compare two relabelled archives in Parquet; with `out`, also write the report to that file as JSON.

    Reads only the columns of MEASURES. Raises InputError if one of NEEDED is missing, there are no rows or a run isn't
    finished, ConfigError if `out` would replace an archive.
    """
    if out and {out.resolve(), *out.resolve().parents} & {reference.resolve(), current.resolve()}:
        raise ConfigError(f"{out} is an archive to compare, or in one; name another file for the report")
    tables = [_read(path) for path in (reference, current)]
    measured = [{name for name in table.column_names if table[name].null_count < table.num_rows} for table in tables]
    shared = [name for name, column in MEASURES.items() if all(column in each for each in measured)]
    report = DriftReport(
        tables[0].num_rows,
        tables[1].num_rows,
        [_drift(name, *(table[MEASURES[name]] for table in tables)) for name in shared],
        [MEASURES[name] for name in MEASURES if name not in shared],
    )
    if out:
        write_json(out, asdict(report))
    return report


def _read(path: Path) -> pa.Table:
    check_finished(path)
    try:
        names = pq.ParquetDataset(path).schema.names
        table = pq.read_table(path, columns=[column for column in MEASURES.values() if column in names])
    except (OSError, pa.ArrowException) as error:
        kind = type(error).__name__
        raise InputError(f"{path} can't be read as Parquet ({kind}); name an output of `jingyin relabel`") from None
    missing = [column for column in NEEDED if column not in names]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; name an output of `jingyin relabel`")
    if not table.num_rows:
        raise InputError(f"{path} holds no rows; there is nothing to compare")
    return table


def _drift(name: str, before: pa.ChunkedArray, now: pa.ChunkedArray) -> Drift:
    if name == "label":
        bins, counts = list(LABELS), [_label_counts(before), _label_counts(now)]
    else:
        values = [np.asarray(column.drop_null(), np.float64) for column in (before, now)]
        edges = _RISK_EDGES if name == "risk" else np.unique(np.quantile(values[0], _QUANTILES))
        bins = [*(f"up to {edge:.3g}" for edge in edges), f"over {edges[-1]:.3g}"]
        counts = [np.bincount(np.searchsorted(edges, side), minlength=len(bins)) for side in values]
    index, chance = stability(counts[0], counts[1])
    shares = [(count / max(1, int(count.sum()))).tolist() for count in counts]
    if index <= chance:
        reading = "no more than chance"
    else:
        reading = "stable" if index < MOVED else "moved" if index < SHIFTED else "shifted"
    return Drift(name, bins, shares[0], shares[1], index, chance, reading)


def _label_counts(column: pa.ChunkedArray) -> NDArray[np.int64]:
    found = {each["values"]: each["counts"] for each in column.drop_null().value_counts().to_pylist()}
    unknown = sorted(set(found) - set(LABELS))
    if unknown:
        raise InputError(f"column jingyin_label holds {unknown[:5]}; known labels: {', '.join(LABELS)}")
    return np.array([found.get(label, 0) for label in LABELS], np.int64)


def stability(reference: NDArray[np.int64], current: NDArray[np.int64]) -> tuple[float, float]:
    """Return the population stability index of two counts over the same bins (at most ten), and its 95% chance level.

    Half a message is added to each bin, so that an empty one counts as rare rather than impossible.
    """
    used = (reference + current) > 0
    before, now = reference[used] + 0.5, current[used] + 0.5
    shares = before / before.sum(), now / now.sum()
    index = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    return index, float(_CHI2[max(0, int(used.sum()) - 2)] * (1 / reference.sum() + 1 / current.sum()))


def lines(report: DriftReport) -> Iterator[str]:
    """Yield the table for a terminal, with the bins below each measure that moved."""
    for each in report.drifts:
        yield f"{each.measure:<18} {each.index:.4f} (chance explains {each.chance:.4f}): {each.reading}"
        if each.index > max(each.chance, MOVED):
            for name, before, now in zip(each.bins, each.reference, each.current, strict=True):
                yield f"  {name:<16} {before:6.1%} -> {now:6.1%}"
    if report.missing:
        yield f"not compared, missing: {', '.join(report.missing)}"
