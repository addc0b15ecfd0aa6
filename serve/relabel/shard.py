"""One shard: its rows, and what they add to the counts and side files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import InputError
from jingyin.serve.relabel.block import Block, share_read
from jingyin.serve.relabel.changes import FAMILY, Changes, moved_rows, older_labels
from jingyin.serve.relabel.columns import NAMES
from jingyin.serve.relabel.inputs import kind_of, suffix_of
from jingyin.serve.relabel.journal import Journal, State
from jingyin.serve.relabel.ranked import Ranked
from jingyin.serve.relabel.reading import texts
from jingyin.serve.relabel.rejects import Rejects
from jingyin.serve.relabel.writing import aside, writer


class Scored(NamedTuple):
    """A block with its verdict columns; `source` is the number of its file."""

    source: int
    block: Block
    verdicts: Sequence[pa.Array]


@dataclass(frozen=True)
class Job:
    """What stays the same through a run.

    `sizes` are the bytes of the input files, `ranks` gathers the rows to review for Label Studio.
    """

    out: Path
    files: Sequence[Path]
    sizes: Sequence[int]
    schema: pa.Schema
    text_column: str
    compare: str | None
    ranks: bool
    strict: bool

    @property
    def against(self) -> str:
        """The verdict column to compare with: the action for an older action, else the label."""
        return "jingyin_action" if self.compare == "jingyin_action" else "jingyin_label"


class Shard:
    """Counts and side files while a shard is written; begins from the state after the one before."""

    def __init__(self, job: Job, journal: Journal) -> None:
        last = journal.last
        self._job = job
        self._journal = journal
        self._rejects = Rejects(journal)
        self._ranked = Ranked()
        self._runs: list[int] = []
        self.rows = last.rows
        self.changes = Changes.from_dict(last.changes)

    def write(self, items: Iterable[Scored]) -> None:
        """Write the rows and commit them."""
        path = self._job.out / f"part-{len(self._journal.states):05d}{suffix_of(self._job.out)}"
        with aside(path) as file:
            with writer(kind_of(path), file, self._job.schema) as sink:
                for item in items:
                    sink.write(self._add(item))
            lengths = self._side_files()
        self._journal.commit(
            State(
                file=path.name,
                size=path.stat().st_size,
                position=(item.source, *item.block.next),
                share=share_read(self._job.sizes, item.source, item.block),
                rows=self.rows,
                rejects=self._rejects.counts,
                lengths=lengths,
                runs=self._runs,
                changes=self.changes.as_dict(),
            )
        )

    def _add(self, item: Scored) -> pa.RecordBatch:
        """Count a block and return its rows as they are written."""
        for row, reason in item.block.rejects:
            self._reject(self._job.files[item.source], row, reason)
        batch = item.block.batch
        if self._job.compare or self._job.ranks:
            self._rank(item)
        self.rows += batch.num_rows
        kept = [column for name, column in zip(batch.schema.names, batch.columns, strict=True) if name not in NAMES]
        return pa.record_batch([*kept, *item.verdicts], self._job.schema)

    def _reject(self, file: Path, row: int, reason: str) -> None:
        if self._job.strict:
            raise InputError(f"row {row} of {file} can't be scored: {reason}; mend it, or run without --strict to have "
                             "such rows listed and left out")  # fmt: skip
        self._rejects.add(file, row, reason)

    def _rank(self, item: Scored) -> None:
        job, batch = self._job, item.block.batch
        verdicts = dict(zip(NAMES, item.verdicts, strict=True))
        found: dict[str, pa.Array] = {}
        if job.compare:
            now = verdicts[job.against]
            found["before"] = older_labels(batch.column(job.compare))
            if FAMILY in batch.schema.names:
                found[FAMILY] = batch.column(FAMILY)
            self.changes.add(found["before"], now, found.get(FAMILY))
            rows = moved_rows(found["before"], now)
        else:
            rows = pc.indices_nonzero(pc.equal(verdicts["jingyin_action"], "review")).to_pylist()
        found["text"] = texts(item.block, job.text_column)
        for row in rows:
            shown = {name: column[row].as_py() for name, column in found.items()}
            self._ranked.add(self.rows + row, self._place(item, row) | _verdict(verdicts, row) | shown)
        if self._ranked.full:
            self._end_run()

    def _place(self, item: Scored, row: int) -> dict[str, object]:
        return {"input": str(self._job.files[item.source]), "row": item.block.numbers[row]}

    def _end_run(self) -> None:
        self._runs.append(self._journal.append("_ranked", self._ranked.run()))

    def _side_files(self) -> dict[str, int]:
        if self._ranked.held:
            self._end_run()
        ranked = self._runs[-1] if self._runs else self._journal.last.lengths.get("_ranked", 0)
        return {"_rejects.csv": self._rejects.write(), "_ranked": ranked}


def _verdict(verdicts: dict[str, pa.Array], row: int) -> dict[str, Any]:
    label = verdicts["jingyin_label"][row].as_py()
    return {
        "risk": verdicts["jingyin_risk"][row].as_py(),
        "label": label,
        "sure": verdicts["jingyin_probabilities"][row].as_py()[label],
        "action": verdicts["jingyin_action"][row].as_py(),
        "reasons": verdicts["jingyin_reasons"][row].as_py(),
    }
