from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.similar import SIMILAR, jaccard, pairs_across, shingles

TEXTS = st.lists(st.text("甲乙丙丁", max_size=12), max_size=8)


@given(TEXTS, TEXTS)
def test_it_finds_all_pairs_and_no_others(few: list[str], many: list[str]):
    wanted = [
        (i, j)
        for j in range(len(many))
        for i in range(len(few))
        if jaccard(shingles(few[i]), shingles(many[j])) >= SIMILAR
    ]
    assert list(pairs_across(few, many)) == wanted
