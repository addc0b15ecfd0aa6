import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus import rows as signs
from jingyin.train.corpus import similar, store
from jingyin.train.corpus.check import check
from jingyin.train.corpus.similar import Groups, jaccard, shingles, similar_pairs, skeleton
from jingyin.train.corpus.stats import stats

ROW = store.Row("晚上回家吃饭", "ordinary", "chat", "plain", "authored", "g1", "晚上回家吃饭", "", 1.0)


def write(path, *rows):
    lines = (json.dumps({"family": "f", "voice": "plain", **row}, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.exhaustive
def test_the_messages_in_the_package_pass():
    assert check() == []


def test_likeness_contradictions_and_numbers(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"text": "{name}，你欠的钱今天晚上六点以前必须还清", "label": "debt_threat"},
        {"text": "你欠的钱今天晚上六点以前必须还清，{name}！", "label": "debt_threat"},
        {"text": "{surname}，你欠的钱今天晚上六点以前必须还清", "label": "lawful_collection"},
        {"text": "有事打138 0013 8000", "label": "ordinary"},
        {"text": "额度500-5000，{phone}", "label": "ordinary"},
    )
    assert check([path]) == [
        f"{path}:4: a number as long as a phone's or an id's; put a slot such as {{phone}} there",
        f"{path}:2: 1.00 like {path}:1; rewrite or drop one",
        f"{path}:3: the text of {path}:1 with another label; settle which is right",
    ]


def test_series_are_found_and_two_of_a_kind_are_none(tmp_path):
    numbers = ("王芳欠三百，明天送到李家村", "老李欠五十，明天送到北京", "赵建国欠{amount}，明天送到红旗小学")
    path = write(
        tmp_path / "a.jsonl",
        *({"text": text, "label": "ordinary"} for text in numbers),
        {"text": "一百块，不给就差评", "label": "pay_to_stop"},
        {"text": "50块不给就差评", "label": "pay_to_stop"},
    )
    assert [error for error in check([path]) if " like " not in error] == [
        f"{path}:1: 3 messages differ in names, numbers or places alone, the last is {path}:3; keep one"
    ]


def test_likeness_across_files(tmp_path):
    one = write(tmp_path / "a.jsonl", {"text": "你欠的钱今天晚上六点以前必须还清", "label": "debt_threat"})
    other = write(tmp_path / "b.jsonl", {"text": "你欠的钱今天晚上六点以前必须还清吧", "label": "debt_threat"})
    assert check([one, other]) == [f"{other}:1: 0.93 like {one}:1; rewrite or drop one"]


def test_a_case_in_two_splits_is_a_fault(tmp_path):
    splits = {split: [] for split in store.SPLITS}
    splits["train"] = [replace(ROW, case="B07")]
    splits["test"] = [replace(ROW, group="g2", text="给钱就停", template="给钱就停", case="B07")]
    store.write(splits, {}, "card", tmp_path / "out")
    assert check([tmp_path / "out"]) == [f"{tmp_path}/out: case B07 in test, train; build it again"]


def test_leaks_and_bad_rows_of_a_built_corpus(tmp_path):
    splits = {split: [] for split in store.SPLITS}
    splits["train"] = [
        ROW,
        replace(ROW, text=" ", label="x", weight=0.0, group="g2", template="别的话13800138000", signs="jest"),
    ]
    splits["test"] = [ROW, replace(ROW, group="g3", template="晚上回家吃饭吧")]
    store.write(splits, {}, "card", tmp_path / "out")
    errors = [error.removeprefix(f"{tmp_path}/out") for error in check([tmp_path / "out"])]
    assert errors == [
        "/train.parquet: row 1: unknown label 'x'; known: ordinary, lawful_collection, debt_threat, pay_to_stop, "
        "other_threat",
        "/train.parquet: row 1: unknown signs jest; build the corpus again",
        "/train.parquet: row 1: no text; build the corpus again",
        "/train.parquet: row 1: weight 0.0; weights are above 0",
        "/train.parquet: row 1: a number as long as a phone's or an id's in its template; put a slot there",
        ": one template in train and test; build it again",
        ": group g1 in test, train; build it again",
        ": templates 0.75 alike in train and test; build it again",
    ]


def test_a_damaged_corpus_is_a_fault(tmp_path):
    store.write({split: [ROW] for split in store.SPLITS}, {}, "", tmp_path / "out")
    (tmp_path / "out" / "test.parquet").write_bytes(b"PAR1")
    (error,) = check([tmp_path / "out"])
    assert error.endswith("test.parquet can't be read as Parquet; build the corpus again")


def test_stats_of_authored_messages(tmp_path, monkeypatch):
    path = write(
        tmp_path / "a.jsonl",
        {"text": "给钱就停", "label": "pay_to_stop", "case": "B07", "writer": "w1"},
        {"text": "给钱就停止轰炸", "label": "pay_to_stop", "pair": "p"},
        {"text": "谁给钱就停", "label": "ordinary", "pair": "p"},
    )
    monkeypatch.setattr(
        signs, "_annotated", lambda: {signs.row_id("给钱就停"): "demand_money,visit", signs.row_id("谁给钱就停"): "-"}
    )
    table = stats(path)
    assert "People read the signs of 2 of 3 messages:" in table
    for sign, ordinary, pay in (("demand_money", 0, 1), ("visit", 0, 1), ("none", 1, 0)):
        assert f"| {sign} | {ordinary} | 0 | 0 | {pay} | 0 | 1 |" in table
    assert "| pay_to_stop | 2 | 4 | 6 | 7 | 50% |" in table
    assert "| plain | 1 | 0 | 0 | 2 | 0 | 3 |" in table
    assert "| B07 | 0 | 0 | 0 | 1 | 0 | 1 |" in table
    assert "| w1 | 0 | 0 | 0 | 1 | 0 | 1 |" in table
    assert "| unknown | 1 | 0 | 0 | 1 | 0 | 2 |" in table
    assert table.endswith("1 minimal pairs")


@given(st.lists(st.text("甲乙丙", max_size=12), max_size=12), st.sampled_from((0.3, 0.5, 0.7, 0.9, 1.0)))
def test_similar_pairs_are_those_of_every_pair_compared(texts, threshold):
    sets = [shingles(text) for text in texts]
    exact = [(i, j) for j in range(len(texts)) for i in range(j) if jaccard(sets[i], sets[j]) >= threshold]
    assert [(i, j) for i, j, _ in similar_pairs(texts, threshold)] == exact


@given(st.lists(st.text("甲乙丙", max_size=12), max_size=12), st.sampled_from((0.3, 0.5, 0.7, 0.9, 1.0)))
def test_texts_joined_as_they_are_found_give_the_groups_of_all_pairs(texts, threshold):
    joined, groups = Groups(len(texts)), Groups(len(texts))
    for i, j, _ in similar_pairs(texts, threshold):
        joined.union((i, j))
    for i, j, _ in similar_pairs(texts, threshold, groups=groups):
        assert groups.find(i) != groups.find(j)
        groups.union((i, j))
    assert [groups.find(i) for i in range(len(texts))] == [joined.find(i) for i in range(len(texts))]


def test_each_of_many_near_copies_is_compared_with_few(monkeypatch):
    compared = []
    monkeypatch.setattr(similar, "jaccard", lambda *sets: compared.append(sets) or jaccard(*sets))
    texts = [f"再不还钱就把你的照片发给{chr(0x4E00 + i)}先生全家看" for i in range(1_000)]
    groups = Groups(len(texts))
    for i, j, _ in similar.similar_pairs(texts, 0.5, groups=groups):
        groups.union((i, j))
    assert {groups.find(i) for i in range(len(texts))} == {0}
    assert len(compared) == 999  # of 499,500 pairs


def test_a_dropped_text_is_compared_with_no_other() -> None:
    dropped: set[int] = set()
    pairs = []
    for i, j, _ in similar_pairs(
        ["明天八点开会", "明天八点开会", "今晚吃饭", "明天八点开会", "今晚吃饭"], 0.5, dropped
    ):
        pairs.append((i, j))
        dropped.add(j)
    assert pairs == [(0, 1), (0, 3), (2, 4)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("老王明天送三百来", "小李明天送五百块来"),
        ("王总，{price}", "陈芳，{amount}"),
        ("李家村见", "北京市见"),
        ("今晚8:30 给钱", "今晚十点半给钱！"),
    ],
)
def test_a_skeleton_forgets_names_numbers_and_places(one, other):
    assert skeleton(one) == skeleton(other)


def test_a_skeleton_keeps_what_is_said():
    assert skeleton("不给钱就曝光") != skeleton("不给钱就举报")


def test_shingles():
    assert shingles("呼 死，你！") == {"呼死你"}
    assert shingles("今天不还") == {"今天不还"}
    assert shingles("今天不还钱") == {"今天不还", "天不还钱"}
    assert shingles("！？") == {""}


def test_groups():
    groups = Groups(5)
    groups.union((3, 1))
    groups.union((4, 3))
    assert [groups.find(i) for i in range(5)] == [0, 1, 2, 1, 1]
