from jingyin.model.text import clean
from jingyin.train.corpus.everyday import everyday
from jingyin.train.corpus.perturb import entries


def test_the_seed_gives_the_innocents_and_frames_are_disjoint():
    training, tested = (everyday(3000, 1, held_out=held_out) for held_out in (False, True))
    assert training == everyday(3000, 1, held_out=False) != everyday(3000, 2, held_out=False)
    assert len(set(training)) == len(set(tested)) == 3000
    assert not set(entries("everyday")) & set(entries("everyday_held_out"))
    assert not set(map(masked, training)) & set(map(masked, tested))


def masked(text):
    return clean(text).text


def test_no_choice_and_no_slot_is_left():
    for held_out in (False, True):
        assert not [text for text in everyday(5_000, 0, held_out=held_out) if set("(){}") & set(text)]


def test_fewer_come_where_frames_run_out():
    assert everyday(0, 1, held_out=True) == []
