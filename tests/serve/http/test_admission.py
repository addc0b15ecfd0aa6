import pytest

from jingyin.serve.http import admission
from jingyin.serve.http.admission import BURST, LEAST, REFUSALS, Admission


def test_late_answers_shrink_the_limit_once_a_while_and_answers_in_time_let_it_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(admission, "monotonic", lambda: now)
    found = Admission(100)
    found.note(late=True)
    found.note(late=True)
    assert found.limit == 70
    for _ in range(70):
        found.note(late=False)
    assert 70.9 < found.limit < 71.1
    for _ in range(50):
        now += 1
        found.note(late=True)
    assert found.limit == LEAST
    for _ in range(10_000):
        found.note(late=False)
    assert found.limit == 100


def test_a_small_limit_stays() -> None:
    found = Admission(2)
    found.note(late=True)
    assert found.limit == 2


def test_clients_rest_when_there_are_more_refusals_than_the_event_loop_can_bear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(admission, "monotonic", lambda: now)
    found = Admission(100)
    assert {found.rest() for _ in range(round(BURST * REFUSALS) - 1)} == {0.0}
    now += 1
    rests = [found.rest() for _ in range(512)]
    assert max(rests) == pytest.approx(512 / REFUSALS)
    assert rests == sorted(rests)
