from jingyin.train.data import read_split
from jingyin.train.pack import bundle as pack


def test_messages_on_which_int8_is_compared_are_drawn_from_all_of_the_split(corpus, monkeypatch):
    monkeypatch.setattr(pack, "AGREEMENT_SAMPLES", 30)
    texts = [each.original for each in read_split(corpus, "calibration").cleaned]
    first, again, other = ([each.original for each in pack._samples(corpus, seed)] for seed in (1, 1, 2))
    assert len(first) == 30
    assert first == again != other
    assert first != texts[:30]
    assert set(first) <= set(texts)
