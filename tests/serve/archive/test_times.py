from datetime import date, datetime

import pyarrow as pa
import pytest

from jingyin.model.errors import ConfigError
from jingyin.serve.archive.times import check_time, read_times

T = datetime(2018, 3, 5, 12, 33)

ISO = {
    "2018-03-05 12:33:00": T,
    "2018-03-05T12:33": T,
    " 2018-03-05 12:33 ": T,
    "20180305T123300": T,
    "2018-03-05T20:33:00+08:00": T,
    "2018-03-05": datetime(2018, 3, 5),
    "gestern": None,
    "": None,
    "2018/3/5 12:33": None,
    "0001-01-01": None,
    "2018-13-05": None,
    None: None,
}


def test_text_is_iso_8601() -> None:
    assert read_times(pa.array(list(ISO)), None).to_pylist() == list(ISO.values())


def test_text_that_is_all_good_is_read_at_once() -> None:
    given = pa.array(["2018-03-05 12:33:00", None, "1918-03-05", "2100-01-01"])
    assert read_times(given, None).to_pylist() == [T, None, None, None]


def test_text_of_a_form() -> None:
    given = pa.array(["2018/3/5 12:33", "2018-03-05 12:33", None]).dictionary_encode()
    assert read_times(given, "%Y/%m/%d %H:%M").to_pylist() == [T, None, None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1520253180]),
        pa.array([1520253180000]),
        pa.array([T], pa.timestamp("s")),
        pa.array([1520253180], pa.timestamp("s", "Asia/Shanghai")),
    ],
)
def test_other_columns(column: pa.Array) -> None:
    assert read_times(column, None).to_pylist() == [T]


def test_dates_and_numbers_that_are_no_times() -> None:
    assert read_times(pa.array([date(2018, 3, 5)]), None).to_pylist() == [datetime(2018, 3, 5)]
    assert read_times(pa.array([-5, 10**17, None]), None).to_pylist() == [None, None, None]
    assert read_times(pa.array([-(2**63), 1520253180]), None).to_pylist() == [None, T]
    assert read_times(pa.array(["1" + "0" * 20, "2018-03-05T12:33"]), None).to_pylist() == [None, T]


def test_whole_numbers_are_read_as_they_would_be_in_text() -> None:
    assert read_times(pa.array([20180305, 2018, None]), None).to_pylist() == [datetime(2018, 3, 5), None, None]
    check_time(pa.int64(), "at", "%Y%m%d%H%M")
    assert read_times(pa.array([201803051233]), "%Y%m%d%H%M").to_pylist() == [T]


def test_columns_that_hold_no_times() -> None:
    with pytest.raises(ConfigError, match=r"column 'at' is double, wanted times"):
        check_time(pa.float64(), "at", None)
    with pytest.raises(ConfigError, match=r"column 'at' is time64\[us\], wanted times"):
        check_time(pa.time64("us"), "at", None)
    with pytest.raises(ConfigError, match=r"column 'at' is date32\[day\], which needs no time format"):
        check_time(pa.date32(), "at", "%Y")
