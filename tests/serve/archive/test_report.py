from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

from tests.json_lines import write
from tests.serve.archive.campaigns_helpers import Run, rows, table

from jingyin.serve.archive import campaign_tables as report

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u202e&lt;b&gt;\" ' onmouseover=x"
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "code", "span", "input", "label", "table",
    "thead", "tbody", "tr", "th", "td", "a", "article", "svg", "rect", "path", "text", "small", "blockquote",
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def page(out: Path) -> Tags:
    tags = Tags()
    tags.feed((out / "report.html").read_text(encoding="utf-8"))
    return tags


def test_nothing_in_a_message_becomes_html(tmp_path: Path, run: Run) -> None:
    data = [{"text": EVIL + "啊" * n, "at": "2018-03-05", "from": EVIL} for n in range(3)]
    run(write(tmp_path / "in.jsonl", data), tmp_path / "out", time="at", sender="from")
    found = page(tmp_path / "out")
    assert found.found <= KNOWN
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7*7 }}\ufffd&lt;b&gt;" in found.text


def test_what_the_report_shows(senders: Path, tmp_path: Path, run: Run, columns: dict[str, str]) -> None:
    run(senders, tmp_path / "out", **columns)
    text = page(tmp_path / "out").text
    threats = table(tmp_path / "out")[0]
    assert "60 of 64 messages" in text
    assert "15 wordings, 3 senders, 40 receivers" in text
    assert all(example in text for example in threats["examples"])
    assert "再不还1706元我们" in text
    assert "您的验证码是a code," in text
    assert "2018-03-01 08:00:00 – 2018-03-02 23:00:00" in text
    assert "2018-03-01 08:00" in text
    assert "rows an hour" in text
    assert "rows a day" in text
    content = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert content.startswith("<!doctype html>")
    assert content.count("<svg") == 2


def test_the_report_in_chinese(senders: Path, tmp_path: Path, run: Run, columns: dict[str, str]) -> None:
    run(senders, tmp_path / "out", **columns)
    assert run(senders, tmp_path / "out", **columns, language="zh").campaigns == 2  # it is written again
    text = page(tmp_path / "out").text
    assert "共读取 64 条，其中 64 条；60 条属于 2 组群发短信" in text
    assert "15 种措辞, 3 个发送方, 40 个接收方" in text
    assert "您的验证码是验证码," in text
    assert "每小时条数" in text
    assert not {"rows", "risk", "wordings", "reasons"} & set(text[text.index("群发短信") :].split())


def test_bars_fill_the_width_and_the_tallest_the_height() -> None:
    start, day = datetime(2018, 3, 5), timedelta(days=1)
    timeline = [{"start": start + n * day, "rows": n + 1, "disguised": n} for n in range(4)]
    assert report.bars(timeline, day) == [(0.0, 21.6, 15.0, 0.0), (24.0, 21.6, 30.0, 15.0), (48.0, 21.6, 45.0, 30.0),
                                          (72.0, 21.6, 60.0, 45.0)]  # fmt: skip
    year = [{"start": start + n * day, "rows": 1, "disguised": 0} for n in range(0, 1000, 3)]
    left, width, _, _ = report.bars(year, day)[-1]
    assert left + width <= 640
    assert report.bars([], day) == []


def test_the_riskiest_are_shown_beside_the_largest(senders: Path, tmp_path: Path, run: Run, monkeypatch) -> None:
    monkeypatch.setattr(report, "SHOWN", 1)
    data = [*rows(), *({"text": f"还钱不然弄死你全家{n % 2}"} for n in range(2))]
    run(write(tmp_path / "other.jsonl", data), tmp_path / "out")
    found = table(tmp_path / "out")
    riskiest = max(found, key=lambda row: (row["risk"], row["rows"]))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    shown = {row["campaign"] for row in found if f'id="c{row["campaign"]}"' in text}
    assert shown == {found[0]["campaign"], riskiest["campaign"]}
