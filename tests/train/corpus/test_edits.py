import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import json_lines

from jingyin.model.errors import InputError
from jingyin.train.corpus import edits, public
from jingyin.train.corpus.build import _placed
from jingyin.train.corpus.rows import Record
from jingyin.train.corpus.store import CorpusRecipe

TEXT = "楼下的灯坏了  快去交钱修"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Edits of the one message TEXT, written by the function that the fixture gives."""
    path = tmp_path / "edits.jsonl"
    monkeypatch.setattr(edits, "EDITS", path)
    edits._edits.cache_clear()
    yield lambda **row: path.write_text(json.dumps(row), encoding="utf-8")
    edits._edits.cache_clear()


def traffic(tmp_path: Path) -> Path:
    return json_lines.write(tmp_path / "traffic.jsonl", [{"text": text} for text in (TEXT, "早啊")])


def test_a_message_and_the_threat_made_of_it_are_a_pair(tmp_path, table):
    table(id=public.fingerprint(TEXT), label="pay_to_stop", edits=[[0, 2, "你家"], [4, 6, "我拔了"]])
    message, threat, other = public.read("waimai", traffic(tmp_path))
    assert (message.text, message.label, message.source) == ("楼下的灯坏了 快去交钱修", "ordinary", "waimai")
    assert (threat.text, threat.label, threat.source) == ("你家的灯我拔了 快去交钱修", "pay_to_stop", "authored")
    assert message.group == threat.group == f"edited {public.fingerprint(TEXT)}"
    assert (other.text, other.group) == ("早啊", "")


@pytest.mark.parametrize("change", [[3, 99, "走"], [3, 2, "走"]])
def test_an_edit_beyond_the_message_is_left_out(tmp_path, table, change):
    table(id=public.fingerprint(TEXT), label="pay_to_stop", edits=[change])
    assert [record.label for record in public.read("waimai", traffic(tmp_path))] == ["ordinary", "ordinary"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"id": "x", "label": "pay_to_stop", "edits": []}, "edits.jsonl:1: id"),
        ({"id": "0" * 16, "label": "ordinary", "edits": []}, "edits.jsonl:1: label 'ordinary'"),
        ({"id": "0" * 16, "label": "pay_to_stop", "edits": [[0, 0, "长" * 41]]}, "edits.jsonl:1: edits.0.2"),
    ],
)
def test_a_faulty_edit_is_named_by_its_line(tmp_path, table, row, fault):
    table(**row)
    with pytest.raises(InputError, match=fault):
        list(public.read("waimai", traffic(tmp_path)))


def test_a_threat_made_of_a_message_goes_where_the_message_goes():
    real = [
        Record(f"第{i}条消息讲的是{i * 37}号楼", "ordinary", "f", "public", "waimai", f"edited {i}") for i in range(60)
    ]
    threats = [replace(each, label="pay_to_stop", source="authored", writer=edits.EDITOR) for each in real]
    records, groups = [*real, *threats], [*map(str, range(60)), *map(str, range(60))]
    shares = {"kind": "waimai", "path": str(Path(__file__)), "splits": {"train": 1.0}}
    recipe = CorpusRecipe.model_validate({"public": [shares]})
    assert {split for _, split in _placed(records, groups, recipe)} == {"train"}
    recipe = CorpusRecipe.model_validate({"public": [shares | {"splits": {"train": 0.5, "test": 0.5}}]})
    placed = _placed(records, groups, recipe)
    assert placed[:60] == placed[60:]
    assert {split for _, split in placed} == {"train", "test"}
