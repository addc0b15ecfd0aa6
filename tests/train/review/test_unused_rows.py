import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.json_lines import write

from jingyin.model.bundle import Manifest
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.promote import unused_rows

ROWS = [{"text": f"第{i}条", "label": label} for i in range(4) for label in LABELS]
ROWS = [{**row, "text": row["text"] + row["label"]} for row in ROWS]


def write_split(path: Path, **columns: list[str]) -> str:
    """Write a split and return its hash."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifest(anew: dict[str, str] | None = None, **hashes: str) -> Manifest:
    """Return what a bundle says of its splits; `anew` are those of a later calibration."""
    provenance = {"data_sha256": hashes} | ({"calibrated": {"data_sha256": anew}} if anew else {})
    return Manifest.model_construct(id="b1", provenance=provenance)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "corpus" / "test.jsonl", [*ROWS[:-1], {**ROWS[-1], "template": "{name}听着"}])


def test_rows_whose_text_or_template_trained_a_bundle_are_left_out(data, tmp_path):
    train = {"text": [ROWS[0]["text"], "王强听着，你等着"], "template": [ROWS[1]["text"], "{name}听着"]}
    made = manifest(
        train=write_split(data.parent / "train.parquet", **train),
        validation=write_split(data.parent / "validation.parquet", text=[ROWS[2]["text"]]),
        calibration=write_split(tmp_path / "older" / "calibration.parquet", text=[ROWS[3]["text"]]),
    )
    messages, reason = unused_rows(read_messages([data]), [data], [made, made])
    assert messages.texts == [row["text"] for row in ROWS[4:-1]]
    assert reason == "5 of 20 rows left out: bundles were made with them"


def test_a_row_is_known_by_its_clean_text(data, tmp_path):
    write_split(data.parent / "train.parquet", text=[f" {ROWS[0]['text']}\u200b"])
    made = manifest(train=hashlib.sha256((data.parent / "train.parquet").read_bytes()).hexdigest())
    assert unused_rows(read_messages([data]), [data], [made])[0].texts == [row["text"] for row in ROWS[1:]]


def test_splits_that_no_bundle_was_made_with_take_nothing_out_and_what_is_missing_is_said(data):
    write_split(data.parent / "train.parquet", text=[row["text"] for row in ROWS])
    made = manifest(train="other", calibration=write_split(data.parent / "calibration.parquet", text=["没有"]))
    messages, reason = unused_rows(read_messages([data]), [data], [made])
    assert len(messages) == 20
    assert reason == (
        "0 of 20 rows left out: bundles were made with them; train, validation of b1: not near the data, so their rows "
        "can't be recognised"
    )


def test_the_splits_of_both_runs_count_for_a_bundle_that_was_calibrated_anew(data, tmp_path):
    first = write_split(data.parent / "train.parquet", text=[ROWS[0]["text"]])
    second = write_split(tmp_path / "later" / "train.parquet", text=[ROWS[1]["text"]])
    messages, _ = unused_rows(read_messages([data]), [data], [manifest({"train": second}, train=first)])
    assert messages.texts == [row["text"] for row in ROWS[2:]]


def test_a_used_split_is_refused_beside_an_unused_file_of_the_same_name(data, tmp_path):
    other = write(tmp_path / "other" / "test.jsonl", ROWS)
    made = manifest(train=hashlib.sha256(data.read_bytes()).hexdigest())
    wanted = r"corpus/test\.jsonl is the train split that bundle b1 was made with; name the"
    with pytest.raises(InputError, match=wanted):
        unused_rows(read_messages([data, other]), [data, other], [made])


def test_data_of_which_no_row_of_a_label_is_left_is_refused(data):
    made = manifest(train=write_split(data.parent / "train.parquet", text=[row["text"] for row in ROWS[::5]]))
    with pytest.raises(InputError, match=r"test\.jsonl: no row to score has label ordinary; add rows"):
        unused_rows(read_messages([data]), [data], [made])
