from dataclasses import replace

import numpy as np

from jingyin.model.labels import LABELS
from jingyin.model.prefilter import windows
from jingyin.model.signs import SIGN_IDS
from jingyin.model.spans import PASS_TOKENS
from jingyin.model.text import clean
from jingyin.model.tokenizer import default_lexicon
from jingyin.train.corpus import store
from jingyin.train.data import Rows, examples_in_parts, read_split, signs_of_rows, unlabelled
from jingyin.train.encoder import parts_of_tokens
from jingyin.train.saved import Vocabulary


def signed(*signs: str) -> Rows:
    plain = unlabelled([clean("好")] * len(signs))
    return replace(plain, signs=list(signs))


def test_signs_of_rows_are_1_0_or_unknown():
    found = signs_of_rows(signed("joke,visit", "-", "?", "joke,!visit,?", "-"))
    assert found.shape == (5, len(SIGN_IDS))
    assert found.dtype == np.float32
    joke, visit = SIGN_IDS.index("joke"), SIGN_IDS.index("visit")
    assert np.nansum(found[0]) == found[0, joke] + found[0, visit] == 2
    assert not np.isnan(found[0]).any()
    assert (found[[1, 4]] == 0).all()
    assert np.isnan(found[2]).all()
    assert (found[3, joke], found[3, visit], np.isnan(found[3]).sum()) == (1, 0, len(SIGN_IDS) - 2)


def test_signs_go_with_their_rows():
    rows = signed("joke", "-", "visit")
    assert rows.take(np.array([2, 0])).signs == ["visit", "joke"]
    assert rows.and_(signed("?")).signs == ["joke", "-", "visit", "?"]
    assert unlabelled([clean("好")]).signs == ["?"]


def test_signs_are_read_from_the_corpus(tmp_path):
    row = store.Row("好", "ordinary", "chat", "plain", "authored", "g", "好", "", 1.0, signs="joke")
    store.write({split: [row] for split in store.SPLITS}, {}, "", tmp_path / "out")
    assert read_split(tmp_path / "out", "test").signs == ["joke"]


def test_drawn_rows_keep_their_order_so_that_a_message_comes_before_its_copies():
    plain = unlabelled([clean(f"第{i}条") for i in range(100)])
    drawn = plain.drawn(30, seed=1)
    assert len(drawn) == 30
    assert drawn.messages.tolist() == sorted(drawn.messages.tolist())
    assert set(drawn.messages) == set(np.random.default_rng(1).permutation(100)[:30])
    assert plain.drawn(None, seed=1) is plain


def test_windows_know_whether_they_are_part_of_the_message(tmp_path):
    head, message = "【某行】账单已出。请按时还款。", "再不还钱就去你家。等着瞧吧你。"
    row = store.Row(
        head + message, "debt_threat", "f", "plain", "authored", "g", "t", "company:lawful", 1.0,
        start=len(head), end=len(head + message), beside="lawful_collection",
    )  # fmt: skip
    plain = store.Row("给钱！", "pay_to_stop", "f", "plain", "authored", "g", "u", "", 1.0)
    store.write({split: [row, plain] for split in store.SPLITS}, {}, "", tmp_path / "out")
    rows = read_split(tmp_path / "out", "train")
    text = rows.cleaned[0].text
    assert text[slice(*rows.places[0])] == "再不还钱就去你家。等着瞧吧你。"
    assert rows.beside.tolist() == [LABELS.index("lawful_collection"), -1]
    words = Vocabulary.of_lexicon(default_lexicon())
    found = examples_in_parts(rows, parts_of_tokens(words, 192), np.zeros((2, 5), np.float32))
    parts = [text[start:end] for start, end in windows(text)]
    assert [part for part, inside in zip(parts, found["inside"][0], strict=True) if not inside] == [
        part for part in parts if part in "【某行】账单已出。请按时还款。"
    ]
    assert (len(found["spans"][0]), found["spans"][1], found["inside"][1]) == (2 * len(parts), [], [])


def test_a_long_text_is_cut_into_parts_each_with_the_label_of_what_it_shows(tmp_path):
    chat = "".join(f"今天第{i}个人来看房子，说挺喜欢的。" for i in range(20))
    frame = "刚收到一条短信，发给大家看看，" * 8
    threat = "再不还钱就去你家。等着瞧吧你。"
    behind = store.Row(
        chat + threat, "debt_threat", "f", "plain", "authored", "g", "t", "company:chat", 1.0, pair="p",
        start=len(chat), end=len(chat + threat), beside="ordinary",
    )  # fmt: skip
    reported = store.Row(
        frame + threat * 12, "ordinary", "f", "plain", "authored", "g", "u", "company:report", 1.0,
        start=len(frame), end=len(frame + threat * 12),
    )  # fmt: skip
    store.write({split: [behind, reported] for split in store.SPLITS}, {}, "", tmp_path / "out")
    rows = read_split(tmp_path / "out", "train")
    words = Vocabulary.of_lexicon(default_lexicon())
    parts = parts_of_tokens(words, 192)(rows.cleaned, [windows(each.text) for each in rows.cleaned])
    target = np.full((2, 5), 0.5, np.float32)
    found = examples_in_parts(rows, parts_of_tokens(words, 192), target)
    assert max(map(len, found["ids"])) <= PASS_TOKENS["lexicon"]
    # One part with chat alone, and those with half of the threat.
    own = [part for part in parts[0] if part.place[1] - len(chat) >= len(threat) / 2]
    assert found["ids"][: 1 + len(own)] == [part.ids for part in (parts[0][0], *own)]
    assert found["target"][: 1 + len(own)] == [[1.0, 0, 0, 0, 0], *[[0.5] * 5] * len(own)]
    assert found["pair"][: 1 + len(own)] == ["", *("p" if part.place[0] <= len(chat) else "" for part in own)]
    # Parts within the reported threats say nothing of the frame.
    shown = [part for part in parts[1] if part.place[0] < len(frame)]
    assert 0 < len(shown) < len(parts[1])
    assert found["ids"][1 + len(own) :] == [part.ids for part in shown]
