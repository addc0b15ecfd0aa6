import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.disguises import undecorate
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.text import clean

PARTICLES = "哈呵嘻嘿啊呀啦嘛呢哦噢喔哟哒喽呐咯捏呗哇咧"
DECORATED = st.lists(
    st.one_of(
        st.sampled_from(
            [*"哈哈呀啦~～吗吧还钱走😊💰❤️[](（）)^_.。,，!！?:;-=><@|oOtTqQwahxXdD 1 ", "[微笑]", "微笑", "哭"]
        ),
        st.characters(),
    ),
    max_size=60,
).map("".join)


def plain(text: str) -> str:
    """Return folded text without its decoration."""
    found = undecorate(text, {})
    pieces, at = [], 0
    for start, end, nothing in found:
        assert at <= start < end <= len(text)
        assert nothing == ""
        pieces.append(text[at:start])
        at = end
    return "".join([*pieces, text[at:]])


@pytest.mark.parametrize(("text", "wanted"), [
    ("好的哈", "好的"), ("今晚还钱哈哈哈", "今晚还钱"), ("还钱呀,不然找你单位啦!", "还钱,不然找你单位!"),
    ("还钱~~明天见", "还钱~~明天见"), ("还钱~ 明天见", "还钱 明天见"), ("还钱(快点哈)", "还钱(快点)"),
    ("还钱呀?快点", "还钱?快点"),
])  # fmt: skip
def test_particles_at_the_end_of_a_clause_are_dropped(text, wanted):
    assert plain(text) == wanted


@pytest.mark.parametrize("particle", [*PARTICLES, "~"])
def test_every_particle(particle):
    assert plain(f"还钱{particle * 3}") == "还钱"
    assert plain(f"还{particle}钱") == f"还{particle}钱"


@pytest.mark.parametrize(
    "face", ["😊", "😂🙏", "🌹", "[微笑]", "[捂脸][捂脸]", "^_^", "(^o^)", "^^", ":)", ";-)", ">_<", "=_=", "-_-||"]
)
def test_faces_are_dropped_wherever_they_stand(face):
    for text in ("还钱{}", "{}还钱", "还{}钱"):
        assert plain(text.format(face)) == "还钱"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("还钱哈😊", "还钱"), ("还钱😊哈哈~😊,快", "还钱,快"), ("好呀😊明天见", "好呀明天见"), ("哈😊还钱", "哈还钱")],
)
def test_faces_among_particles(text, wanted):
    assert plain(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["还钱吗", "还钱?", "还钱吧", "在网吧等你", "转💰给我", "带🔪来", "哈尔滨见", "呵斥他", "他嘻嘻笑着走了",
     "[公告]还钱", "[1]还钱", "(一)还钱", "8:30见", "a-b", "1>0"],
)  # fmt: skip
def test_what_has_a_meaning_of_its_own_stays(text):
    assert plain(text) == text
    assert undecorate(text, {}) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("哈哈,还钱", "还钱"),
        ("😊。。!还钱", "还钱"),
        ("。哈,还钱", "。还钱"),
        ("[微笑] 哈哈! 还钱", "还钱"),
        ("还钱哈,,快", "还钱,,快"),
    ],
)
def test_marks_behind_decoration_that_begins_a_message_go_with_it(text, wanted):
    assert plain(text) == wanted


@pytest.mark.parametrize("text", ["哈哈", "哈", "😊", "[微笑]。", "哈哈,哈哈!", "^_^ ~", "", "。"])
def test_a_message_that_is_nothing_else_stays(text):
    assert plain(text) == text


def test_decorations_are_counted_and_are_no_disguise():
    edits = {"decoration": 1}
    undecorate("哈,还钱哈😊,快", edits)
    assert edits == {"decoration": 3}
    assert clean("还钱哈哈😊").edits == {"decoration": 1}
    unchanged: dict[str, int] = {}
    undecorate("还钱", unchanged)
    assert unchanged == {}


def test_what_decoration_hid_is_read():
    assert clean("口😊乎死亻😊尔").text == "呼死你"
    assert clean("bao[微笑]光你").text == "曝光你"
    assert clean("还钱哈\u200b哈～😊").text == "还钱"


@pytest.mark.parametrize("text", ["[[[微笑]微笑]微笑]还钱", "还钱:哈)", "[快.哭.了]还钱", "还钱(+++哈)"])
def test_decoration_that_comes_to_light_goes_too(text):
    assert clean(text).text == "还钱"


def test_offsets_pass_over_what_was_dropped():
    assert clean("哈哈，还😊钱哈").offsets == [(3, 4), (5, 6)]


@given(DECORATED)
def test_it_is_total_and_never_longer(text):
    assert len(plain(text)) <= len(text)
    clean(text)


@given(DECORATED)
def test_it_is_idempotent_through_clean(text):
    once = clean(text).text
    if not any(c in PLACEHOLDERS.values() for c in once):
        assert clean(str(once)).text == once


@given(DECORATED)
def test_only_decoration_and_marks_go(text):
    assert not set("吗吧还钱走💰1") & set("".join(text[start:end] for start, end, _ in undecorate(text, {})))


@pytest.mark.exhaustive  # ten seconds of the processor together
@pytest.mark.parametrize(
    "kind",
    ["哈", "哈走", "哈,", "😊", "😊走", "哈😊", "~", "[", "[微笑]", "[微", "(", "(+", "^", "^_", "h", "h ", "xd", "t_",
     ":", ":)", ">", "=_", "-_-|", " ", "。", "走", "口", "bao"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["走", ""])
def test_a_hundred_thousand_characters_of_any_kind_take_linear_time(kind, end):
    assert _seconds(kind * (100_000 // len(kind)) + end) < 5


@pytest.mark.exhaustive  # ten seconds of the processor together
@pytest.mark.parametrize(("left", "right"), [("[", "微笑]"), (":", ")"), (">_", "<"), ("(+", "++)"), (":", "哈,)")])
def test_faces_in_faces_take_linear_time(left, right):
    depth = 100_000 // len(left + right)
    assert _seconds(left * depth + right * depth + "还钱") < 20


def _seconds(text: str) -> float:
    """Return the seconds of one core that cleaning takes; quadratic steps take minutes."""
    began = time.process_time()
    clean(text)
    return time.process_time() - began
