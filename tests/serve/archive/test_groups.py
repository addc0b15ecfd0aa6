from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jingyin.serve.archive import groups as minhash
from jingyin.serve.archive.groups import HASHES, band_keys, groups, signatures, similarity

HAN = [chr(c) for c in range(0x4E00, 0x6000)]
THREAT = "再不还钱我们就把你欠钱不还的事告诉通讯录里的所有人后果自负"


def pairs(text: str) -> set[str]:
    padded = f"\n{text}\n"
    return {padded[i : i + 2] for i in range(len(padded) - 1)}


def edited(text: str, edits: int, rng: Random) -> str:
    characters = list(text)
    for place in rng.sample(range(len(text)), edits):
        characters[place] = rng.choice(HAN)
    return "".join(characters)


def test_signatures_estimate_the_jaccard_similarity_of_pairs() -> None:
    rng, found, wanted = Random(1), [], []
    for edits in range(0, 20, 2):
        for _ in range(20):
            other = edited(THREAT, edits, rng)
            one, two = pairs(THREAT), pairs(other)
            wanted.append(len(one & two) / len(one | two))
            found.append(similarity(signatures([THREAT, other]), np.array([0]), np.array([1]))[0])
    errors = np.array(found) - wanted
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.05


@settings(deadline=None)
@given(st.lists(st.text(max_size=50), max_size=20), st.integers(1, 60))
def test_a_signature_depends_on_its_text_alone(texts: list[str], size: int) -> None:
    texts = [text.replace("\n", "") for text in texts]
    whole = signatures(texts)
    assert whole.shape == (len(texts), HASHES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "_CHARACTERS", size)
        assert (signatures(texts) == whole).all()
        assert all((signatures([text]) == row).all() for text, row in zip(texts, whole, strict=True))


def test_band_keys_are_equal_where_all_values_of_the_band_are() -> None:
    found = np.zeros((3, HASHES), np.uint16)
    found[1, 5] = found[2, 3] = 7
    assert [(band_keys(found, 0) == 0).all(), *(len(set(band_keys(found, band).tolist())) for band in (1, 2))] == [
        True,
        3,
        1,
    ]


def test_copies_with_edits_are_one_group_and_other_messages_none() -> None:
    rng = Random(2)
    campaigns = ["".join(rng.choices(HAN, k=30)) for _ in range(20)]
    texts = [edited(text, rng.randrange(4), rng) for text in campaigns for _ in range(30)]
    texts += ["".join(rng.choices(HAN, k=30)) for _ in range(400)]
    found = groups(signatures(texts), np.ones(len(texts), np.int64)).tolist()
    assert found[:600] == [i // 30 * 30 for i in range(600)]
    assert found[600:] == list(range(600, 1000))


def test_a_chain_of_likenesses_does_not_tie_unlike_messages() -> None:
    rng = Random(3)
    base = "".join(rng.choices(HAN, k=400))
    texts = [base[i : i + 60] for i in range(0, 340, 6)]  # each shares nine tenths with the next
    found = groups(signatures(texts), np.ones(len(texts), np.int64))
    assert found[0] == found[1]
    assert len(set(found.tolist())) > 3


def test_the_commonest_text_stands_for_a_group_and_of_equals_the_first() -> None:
    rng = Random(4)
    texts = [edited(THREAT, 2, rng) for _ in range(6)]
    assert groups(signatures(texts), np.array([1, 3, 1, 9, 9, 2])).tolist() == [3] * 6
    assert groups(signatures(texts), np.ones(6, np.int64)).tolist() == [0] * 6


def test_the_order_of_the_texts_changes_no_group() -> None:
    rng = Random(5)
    base = "".join(rng.choices(HAN, k=300))
    texts = [base[start : start + 60] for start in range(0, 240, 6)]
    rows = np.array(rng.sample(range(100), len(texts)))
    order = rng.sample(range(len(texts)), len(texts))
    found = groups(signatures(texts), rows)
    again = groups(signatures([texts[i] for i in order]), rows[order])
    assert [order[i] for i in again] == found[order].tolist()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "a", "还钱", THREAT, THREAT + "!"]), max_size=12))
def test_equal_texts_are_of_one_group_whose_first_stands_for_it(texts: list[str]) -> None:
    found = groups(signatures(texts), np.ones(len(texts), np.int64)).tolist()
    assert all(found[i] <= found[texts.index(text)] <= i for i, text in enumerate(texts))
    assert all(found[group] == group for group in found)
