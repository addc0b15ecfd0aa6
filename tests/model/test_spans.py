"""Spans: which tokens a unit has."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.spans import passes_of, spans_of

OFFSETS = [(0, 0), (0, 2), (2, 3), (3, 6), (6, 7), (0, 0)]  # START, four words, END


def test_a_unit_has_the_tokens_that_overlap_it():
    assert spans_of([(0, 7), (0, 3), (3, 7), (2, 3)], OFFSETS).tolist() == [[0, 6], [1, 3], [3, 5], [2, 3]]
    assert spans_of([(1, 4), (4, 5)], OFFSETS).tolist() == [[1, 4], [3, 4]]  # words cut in two belong to both sides


def test_a_unit_with_all_tokens_or_none_is_the_whole():
    assert spans_of([(0, 7), (1, 7), (7, 9), (3, 3)], OFFSETS).tolist() == [[0, 6]] * 4
    assert spans_of([(0, 0), (0, 5)], [(0, 0), (0, 0)]).tolist() == [[0, 2], [0, 2]]  # an empty text
    empty_first = [(0, 0), (0, 0), (0, 2), (2, 3), (0, 0)]
    assert spans_of([(0, 3), (0, 2)], empty_first).tolist() == [[0, 5], [2, 3]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.data())
def test_spans_by_definition(lengths, data):
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    offsets = [(0, 0), *zip([0, *ends[:-1]], ends, strict=True), (0, 0)]
    start = data.draw(st.integers(0, ends[-1]))
    end = data.draw(st.integers(start, ends[-1] + 3))
    own = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if len(own) in (0, len(lengths)):
        own = range(len(offsets))
    assert spans_of([(start, end)], offsets).tolist() == [[own[0], own[-1] + 1]]


@given(st.integers(17, 200), st.integers(16, 64), st.data())
def test_passes_cover_a_long_message_and_hold_its_units(tokens, most, data):
    tokens = max(tokens, most + 1)
    first = data.draw(st.integers(1, tokens - 2))
    last = data.draw(st.integers(first + 1, min(tokens - 1, first + (most - 2) // 3)))
    spans = np.array([(0, tokens), (first, last)])
    passes = passes_of(spans, tokens, most)
    assert {i for each in passes for i in range(each.start, each.end)} == set(range(1, tokens - 1))
    assert all(each.end - each.start == most - 2 for each in passes)
    ((start, units, own),) = [(each.start, each.units.tolist(), each.spans) for each in passes if len(each.units)]
    assert units == [1]
    assert (own + start - 1).tolist() == [[first, last]]  # none is cut that is shorter than the overlap
    assert ((own >= 1) & (own <= most - 1)).all()
