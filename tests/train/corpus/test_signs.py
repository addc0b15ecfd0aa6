import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from jingyin.model.errors import InputError
from jingyin.model.signs import SIGN_IDS, SIGNS
from jingyin.train.corpus import rows as authored
from jingyin.train.corpus import rows as signs
from jingyin.train.corpus.check import check
from jingyin.train.corpus.rows import find_errors, is_annotated, row_id, shown, sign_targets, signs_of, unknown_ids

KNOWN = ", ".join(SIGN_IDS)


@pytest.fixture
def annotate(tmp_path, monkeypatch):
    """Put other lines, and other signs of families, in place of the package's."""

    def write(*lines: object, families: str = "# none\n") -> None:
        for name, content in (
            ("ANNOTATED", "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)),
            ("OF_FAMILIES", families),
        ):
            path = tmp_path / {"ANNOTATED": "signs.jsonl"}.get(name, name)
            path.write_text(content, encoding="utf-8")
            monkeypatch.setattr(signs, name, path)
        forget()

    def forget() -> None:
        signs._annotated.cache_clear()
        signs._of_families.cache_clear()

    yield write
    monkeypatch.undo()
    forget()


def test_a_row_is_known_by_its_text():
    assert row_id("给钱就停") == "9809f751a26987f1"
    assert row_id("给钱就停。") != row_id("给钱就停")


def test_what_people_read_counts_before_what_the_family_implies(annotate):
    annotate(
        {"row": row_id("甲"), "signs": ["demand_money", "joke"]},
        {"row": row_id("乙"), "signs": []},
        families="# family signs\nbanter joke !visit\n",
    )
    assert signs_of("甲", "banter") == "demand_money,joke"
    assert signs_of("乙", "banter") == "-"
    assert signs_of("丙", "banter") == "joke,!visit,?"
    assert signs_of("丙", "other") == "?"


def test_messages_are_loaded_with_their_signs_and_checked_without(annotate, tmp_path):
    annotate({"row": row_id("甲"), "signs": ["joke"]})
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "甲", "label": "ordinary", "family": "f", "voice": "plain"}\n', encoding="utf-8")
    assert [record.signs for record in authored.load(path)] == ["joke"]
    assert [record.signs for record in authored.scan(path)[0]] == ["?"]


@pytest.mark.parametrize(
    ("given", "there", "absent"),
    [
        ("-", [], SIGN_IDS),
        ("demand_money,joke", ["demand_money", "joke"], [s for s in SIGN_IDS if s not in ("demand_money", "joke")]),
        ("joke,!visit,?", ["joke"], ["visit"]),
        ("?", [], []),
    ],
)
def test_targets_are_1_where_shown_0_where_absent_and_unknown_elsewhere(given, there, absent):
    wanted = [1.0 if s in there else 0.0 if s in absent else np.nan for s in SIGN_IDS]
    np.testing.assert_array_equal(sign_targets(given), np.array(wanted, np.float32))
    assert shown(given) == there
    assert is_annotated(given) is (len(there) + len(absent) == len(SIGN_IDS))


def test_ids_that_are_no_signs():
    assert unknown_ids("joke,!visit,?") == unknown_ids("-") == []
    assert unknown_ids("jokes,!visits,joke,jokes") == ["jokes", "visits"]


def test_all_errors_of_a_file_come_at_once(annotate):
    annotate(
        {"row": "aa", "signs": ["joke", "jest", "fun"]},
        {"row": "bb", "signs": ["visit"]},
        {"row": "bb", "signs": []},
        "{",
        {"row": "cc", "signs": "joke"},
        ["row"],
    )
    wrong = [
        f"{signs.ANNOTATED}:1: signs.1: 'jest' is unknown; known: {KNOWN}",
        f"{signs.ANNOTATED}:4: Invalid JSON: EOF while parsing an object at line 1 column 1",
        f"{signs.ANNOTATED}:5: signs: Input should be a valid array",
        f"{signs.ANNOTATED}:6: Input should be an object",
        f"{signs.ANNOTATED}:3: the id bb comes twice; keep one line",
    ]
    assert sorted(find_errors()) == sorted(wrong)
    assert [each for each in find_errors(frozenset(("aa",))) if each not in wrong] == [
        f"{signs.ANNOTATED}:2: no message has the id bb; remove the line",
        f"{signs.ANNOTATED}:3: no message has the id bb; remove the line",
    ]
    with pytest.raises(InputError, match=r"signs of authored messages can't be used:\n(.*signs\.jsonl:.*\n?){5}$"):
        signs_of("甲", "f")


def test_the_check_of_the_package_names_them_and_that_of_a_file_does_not(annotate, tmp_path, monkeypatch):
    messages = tmp_path / "messages"
    messages.mkdir()
    row = {"text": "晚上回家吃饭", "label": "ordinary", "family": "f", "voice": "plain"}
    (messages / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    monkeypatch.setattr("jingyin.train.corpus.check.default_folders", lambda: (messages,))
    annotate({"row": row_id(row["text"]), "signs": ["jest"]}, {"row": "0123456789abcdef", "signs": []})
    assert check() == [
        f"{signs.ANNOTATED}:1: signs.0: 'jest' is unknown; known: {KNOWN}",
        f"{signs.ANNOTATED}:2: no message has the id 0123456789abcdef; remove the line",
    ]
    assert check([messages]) == []


def test_the_signs_of_the_package_are_sound():
    assert find_errors() == []
    families = signs._of_families()
    assert [signs_ for signs_ in families.values() if unknown_ids(signs_)] == []
    assert not any(is_annotated(signs_) for signs_ in families.values())
    contradictory = [set(shown(s)) & {e[1:] for e in s.split(",") if e.startswith("!")} for s in families.values()]
    assert not any(contradictory)


# ---- the guide


def guide() -> str:
    text = Path(str(files("jingyin.train.corpus").joinpath("LABELS.md"))).read_text(encoding="utf-8")
    return text.split("\n## Signs\n")[1].split("\n## ")[0]


def test_the_guide_says_of_each_sign_what_the_code_says():
    for sign in SIGNS:
        law = f" Law: {sign.source}." if sign.source else ""
        definition = sign.definition[0].upper() + sign.definition[1:]
        assert f"**`{sign.id}`** {sign.chinese}, {sign.english}.\n{definition}.{law}\n" in guide()


def test_the_guide_gives_each_sign_two_examples_on_either_side():
    for sign in SIGNS:
        block = guide().split(f"**`{sign.id}`**")[1].split("\n\n")[1]
        examples = block.splitlines()
        assert all(line.startswith("- ") for line in examples)
        near = [line for line in examples if line.startswith("- not: ")]
        assert (len(examples), len(near)) == (4, 2)
        for line in near:
            named = re.findall("`([a-z_]+)`", line)
            assert set(named) <= set(SIGN_IDS) - {sign.id}
            assert named or line.endswith("(none)")


def test_the_guide_counts_the_messages_that_the_file_holds():
    rows = [json.loads(line)["signs"] for line in Path(str(signs.ANNOTATED)).read_text("utf-8").splitlines()]
    assert f"signs of {len(rows):,} messages" in guide()
    counts = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", guide(), re.M))
    assert {sign: int(n.replace(",", "")) for sign, n in counts.items()} == {
        sign: sum(sign in row for row in rows) for sign in SIGN_IDS
    }


def test_kappa_follows_from_the_counts():
    table = re.findall(r"^\| `\w+` \| [\d,]+ \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", guide(), re.M)
    assert len(table) == len(SIGNS)
    for first, second, both, kappa in table:
        a, b, c = int(first) / 1000, int(second) / 1000, int(both) / 1000
        agreed, chance = 1 - a - b + 2 * c, a * b + (1 - a) * (1 - b)
        assert float(kappa) == pytest.approx((agreed - chance) / (1 - chance), abs=6e-4)
        assert float(kappa) >= 0.6
