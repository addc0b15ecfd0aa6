"""Label once: a task for Label Studio a campaign, and its answer for all rows of the campaign.

labels.parquet   file, row, campaign, label: every row of a campaign that has an answer
finetune.jsonl   text, label, campaign, rows: for `jingyin finetune`, one message a campaign, so that ten thousand
copies weigh as one situation
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jingyin.model.errors import InputError
from jingyin.serve.campaigns.gather import PARQUET
from jingyin.serve.campaigns.table import CAMPAIGNS, MEMBER, MEMBERS_FILE
from jingyin.serve.label_studio import read_annotations, task, with_signs
from jingyin.serve.relabel.writing import as_json, aside, writer

LONGEST = 1_000
"""Characters of a message that finetune takes."""

_SHOWN = ("campaign", "rows", "texts", "senders", "receivers", "template")
_COLUMNS = [*_SHOWN, "label", "label_share", "risk", "examples", "reasons"]


class Answers(NamedTuple):
    """What people said: campaigns and rows that have a label now, tasks that got two labels, and that got none."""

    campaigns: int
    rows: int
    disputed: int
    open: int


def tasks_of(out: Path, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield a task for each campaign of the folder `out`, the largest first."""
    for row in _campaigns(out):
        yield _task(row, bundle)


def _campaigns(out: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(out / CAMPAIGNS) as file:
        for batch in file.iter_batches(1024, columns=_COLUMNS):
            yield from batch.to_pylist()


def _task(row: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Return the task of a campaign. Its text is a message of no other campaign: that is how the answer finds it."""
    counts = [
        (row["rows"], "rows"),
        (row["texts"], "texts"),
        (row["senders"], "senders"),
        (row["receivers"], "receivers"),
    ]
    numbers = ", ".join(f"{number:,} {name}" for number, name in counts if number is not None)
    others = "".join(f"\n{text}" for text in row["examples"][1:])
    reasons = [each["sign"] for each in row["reasons"]]
    data = {
        "text": row["examples"][0],
        "reason": with_signs(f"{numbers}; risk {row['risk']:.0%}", reasons) + f"\n{row['template']}{others}",
        **{name: row[name] for name in _SHOWN},
        "reasons": reasons,
    }
    return task(data, row["label"], row["label_share"], f"jingyin {bundle}")


def take_answers(export: Path, out: Path) -> Answers:
    """Write labels.parquet and finetune.jsonl to the folder `out` by the answers of a Label Studio export.

    Raises InputError when it is none, or answers tasks of other campaigns.
    """
    found = read_annotations(export)
    labels: dict[str, str] = {}
    with aside(out / "finetune.jsonl") as file:
        for row in _campaigns(out):
            text = row["examples"][0]
            if (label := found.labels.get(text)) is not None:
                labels[row["campaign"]] = label
                line = {"text": text[:LONGEST], "label": label, "campaign": row["campaign"], "rows": row["rows"]}
                file.write(as_json(line).encode() + b"\n")
        if strangers := len(found.labels) - len(labels):
            raise InputError(
                f"{strangers} answers of {export} are about no campaign of {out}; "
                "name the folder that the tasks came from"
            )
    rows = _write_labels(out, labels)
    return Answers(len(labels), rows, found.disputed, found.open)


def _write_labels(out: Path, labels: dict[str, str]) -> int:
    schema = MEMBER.append(pa.field("label", pa.string()))
    names, answers = pa.array(list(labels), pa.string()), pa.array(list(labels.values()), pa.string())
    count = 0
    with (
        pq.ParquetFile(out / MEMBERS_FILE, read_dictionary=["file"]) as members,
        aside(out / "labels.parquet") as file,
        writer(PARQUET, file, schema) as sink,
    ):
        for batch in members.iter_batches():
            answer = answers.take(pc.index_in(batch.column("campaign"), names))
            kept = batch.append_column("label", answer).filter(answer.is_valid())
            count += kept.num_rows
            sink.write(pa.record_batch([kept[field.name].cast(field.type) for field in schema], schema))
    return count
