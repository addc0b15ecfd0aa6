import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.memory.operations import EVERY, MARK, MARKED, check

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.state import LISTED, Local, Op


def lasting(name: str, key: str, seconds: float) -> Op:
    return Op(name, key, {"tally": 1, "mark": seconds, "shift": b"x"}[name], seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 6e8

    def __call__(self) -> float:
        return self.now


def test_in_memory() -> None:
    check(Local().run_now([op for op, _ in EVERY]))


@pytest.mark.exhaustive
def test_of_many_marks_the_longest_are_listed_at_once() -> None:
    local = Local(clock=Clock())
    local.run_now([Op("mark", f"s:{i}", 20.0 * (i % 3), 10.0) for i in range(150_000)])
    local.run_now([Op("mark", f"s:{i}", 20.0, 10.0) for i in range(0, 150_000, 3)])
    start = time.process_time()
    found = local.run_now([Op("marks", "s:")])[0]
    assert time.process_time() - start < 0.02
    assert [name for name, _ in found[:3]] == ["s:149997", "s:149994", "s:149991"]
    assert len(found) == LISTED
    assert {left for _, left in found} == {20}


def test_setting_the_clock_moves_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    local, wall = Local(), time.time()
    local.run_now([MARK])
    monkeypatch.setattr(time, "time", lambda: wall + 86_400)
    assert local.run_now([MARKED, Op("now", "")]) == [1, pytest.approx(wall, abs=600)]


def test_counts_fade_over_two_windows() -> None:
    clock = Clock()  # at the start of a window
    local = Local(clock=clock)
    local.run_now([Op("tally", "t", 10, 600.0)])
    found = []
    for _ in range(6):
        found += local.run_now([Op("tally", "t", 0, 600.0)])
        clock.now += 300
    assert found == [10.0, 10.0, 10.0, 5.0, 0.0, 0.0]
    assert len(local) == 0


@given(st.lists(st.tuples(st.sampled_from(["tally", "mark", "shift"]), st.sampled_from("abc"), st.integers(1, 9))))
def test_nothing_outlives_twice_its_time(done: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    local = Local(clock=clock)
    for name, key, seconds in done:
        local.run_now([lasting(name, f"{name}{key}", float(seconds))])
        clock.now += 1
    clock.now += 18
    local.expire()
    assert (len(local), local.used) == (0, 0)


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    local = Local(budget=100_000)
    local.run_now([Op("mark", f"s:{number}", 60.0, 60.0) for number in range(1_000)])
    assert local.used <= 100_000
    assert local.run_now([Op("marked", f"s:{number}") for number in (0, 999)]) == [0, 1]


def test_services_that_share_a_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    one, other = Local(file=tmp_path / "known.json"), Local(file=tmp_path / "known.json")
    for local, name in ((one, b"x"), (other, b"y"), (one, b"z")):
        local.run_now([Op("put", "known", (name, b"1"))])
        local.run_now([Op("add", "hits", b"x")])
    other.run_now([Op("remove", "known", b"z")])
    assert [local.run_now([Op("fields", "known")]) for local in (one, other)] == [[[b"x", b"y"]]] * 2
    for local in (one, other):
        local.save()
    assert Local(file=tmp_path / "known.json").run_now([Op("field", "hits", b"x")]) == [b"3"]


def test_tables_survive_a_restart_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "below" / "known.json"
    first = Local(file=file)
    first.run_now([Op("put", "known", (b"a", b"\xff")), Op("add", "hits", b"a"), Op("mark", "s:a", 60.0, 60.0)])
    first.save()
    assert file.stat().st_mode & 0o777 == 0o600
    second = Local(file=file)
    assert second.run_now([Op("field", "known", b"a"), Op("field", "hits", b"a"), Op("marked", "s:a")]) == [
        b"\xff",
        b"1",
        0,
    ]
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"known\.json can't be read as known wordings"):
        Local(file=file)


def test_a_table_that_can_not_be_saved_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    local = Local(file=tmp_path / "folder" / "known.json")
    local.run_now([Op("put", "known", (b"x", b"1"))])
    (tmp_path / "folder").rename(tmp_path / "other")
    (tmp_path / "folder").touch()
    for op in (Op("put", "known", (b"y", b"2")), Op("remove", "known", b"x")):
        with pytest.raises(OSError, match="folder"):
            local.run_now([op])
    assert local.run_now([Op("fields", "known")]) == [[b"x"]]


def test_lifetimes_that_nothing_has_any_more_take_no_memory() -> None:
    clock = Clock()
    local = Local(clock=clock)
    for seconds in range(1, 200):
        local.run_now([Op("push", f"p:{seconds}", b"x", float(seconds))])
    clock.now += 200
    local.expire()
    assert (len(local), local._alike) == (0, {})


def test_tables_are_on_the_disk_before_a_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, synced = Local(file=tmp_path / "known.json"), []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    local.run_now([Op("put", "known", (b"a", b"1"))])
    assert synced == [str(tmp_path / "_known.json.writing"), str(tmp_path)]
