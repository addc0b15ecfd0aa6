import io
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.command import run_command

from jingyin import Scorer, __version__
from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.http import process
from jingyin.serve.terminal import render

THREAT = "有人出钱让我每天拨你的号，想清静就转两百到这个微信"
CHAT = "明天下午三点老地方见，记得带伞"
JINGYIN = [sys.executable, "-c", "from jingyin.cli import main; main()"]


@pytest.fixture
def jingyin(monkeypatch, capfd, scorer):
    """Run the command line in this process: arguments and standard input in, exit code, output and errors out."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_command(*arguments)
        return code, *capfd.readouterr()

    load = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda bundle=None: load(bundle) if bundle else scorer)
    return run


def test_one_line_a_message(jingyin):
    code, out, err = jingyin("score", THREAT, CHAT)
    first, second = (line for line in out.splitlines() if not line.startswith(" "))
    assert (code, err) == (0, "")
    assert first.split()[0] in ("review", "block")
    assert first.split()[2:] == ["pay_to_stop", THREAT]
    assert second.split()[0] == "pass"
    assert second.endswith(f"%  ordinary          {CHAT}")


def test_colours_are_for_terminals(jingyin, monkeypatch):
    assert "\x1b" not in jingyin("score", "--explain", THREAT)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    scorer = Scorer.load()
    coloured = render(THREAT, scorer.score(THREAT), scorer.explanation(THREAT), language="en")
    assert "\x1b[31m\x1b[4m" in coloured


def test_json_lines(jingyin, scorer):
    code, out, _ = jingyin("score", "--json", THREAT, CHAT)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["text"] for row in rows] == [THREAT, CHAT]
    fields = ["text", "label", "probabilities", "risk", "action", "stage", "edits", "bundle", "reasons"]
    assert [list(row) for row in rows] == [fields, fields]
    assert rows[0]["risk"] == scorer.score(THREAT).risk
    assert rows[0]["bundle"] == scorer.bundle.manifest.id


def test_json_holds_chinese_as_chinese(jingyin):
    _, out, _ = jingyin("score", "--json", "妈，😀\U000e0001")
    assert out.startswith('{"text": "妈，😀\\udb40\\udc01", "label": ')


def test_json_is_whole_where_the_output_can_hold_no_chinese():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([*JINGYIN, "score", "--json", CHAT], stdout=subprocess.PIPE, check=True, env=environment)
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["text"] == CHAT


def test_json_evidence_points_into_the_original(jingyin):
    _, out, _ = jingyin("score", "--json", "--explain", f"  {THREAT}")
    row = json.loads(out)
    assert row["evidence"]
    for span in row["evidence"]:
        assert list(span) == ["start", "end", "text", "weight"]
        assert row["text"][span["start"] : span["end"]] == span["text"]


def test_reasons_in_the_language_of_the_terminal(jingyin, monkeypatch, signed_bundle):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    ask = ("score", "--bundle", str(signed_bundle), "今天曝光你", "今天回家吃饭")
    flagged, reasons, passed = jingyin(*ask)[1].splitlines()
    assert (flagged.split()[0], passed.split()[0]) == ("block", "pass")
    assert reasons == "              原因：告知他人 99%"
    assert jingyin(*ask, "--lang", "en")[1].splitlines()[1] == "              reasons: tells others 99%"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    explained = ["              words: 曝光", "              reasons: tells others 99% (曝光)"]
    assert jingyin(*ask, "--explain")[1].splitlines()[1:3] == explained


def test_reasons_in_json(jingyin, signed_bundle):
    ask = ("score", "--json", "--bundle", str(signed_bundle), "今天曝光你", "今天回家吃饭")
    flagged, passed = (json.loads(line) for line in jingyin(*ask)[1].splitlines())
    assert flagged["reasons"] == [{"sign": "exposure", "confidence": pytest.approx(0.99330715)}]
    assert passed["reasons"] == []
    flagged = json.loads(jingyin(*ask, "--explain")[1].splitlines()[0])
    (reason,) = flagged["reasons"]
    assert reason["spans"] == [{"start": 2, "end": 4, "text": "曝光", "weight": 0.9999}]
    assert flagged["evidence"][0]["text"] == "曝光"


def test_a_language_that_signs_have_no_names_in(jingyin):
    assert jingyin("score", "--lang", "fr", CHAT) == (2, "", "jingyin: language 'fr' is unknown; known are zh, en\n")


def test_standard_input_line_by_line(jingyin):
    stdin = f"{CHAT}\r\n\n{THREAT}".encode()
    code, out, _ = jingyin("score", "-", "--json", stdin=stdin)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == [CHAT, "", THREAT]


def test_nothing_on_standard_input(jingyin):
    assert jingyin("score", "-") == (0, "", "")


def test_bytes_that_are_no_text_are_replaced(jingyin):
    _, out, _ = jingyin("score", "-", "--json", stdin=b"\xffhi\xed\xa0\x80\n")
    assert json.loads(out)["text"] == "\ufffdhi\ufffd\ufffd\ufffd"


def test_another_encoding_is_found_out_and_can_be_named(jingyin):
    stdin = f"hi\n{THREAT}\n".encode("gb18030")
    code, out, err = jingyin("score", "-", "--json", stdin=stdin)
    assert (code, len(out.splitlines())) == (2, 1)
    assert err.startswith("jingyin: line 2 of standard input isn't UTF-8 and looks like gb18030: use --encoding gb")
    code, out, err = jingyin("score", "-", "--json", "--encoding", "gb18030", stdin=stdin)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["hi", THREAT]
    assert jingyin("score", "-", "--encoding", "utf-8", stdin=stdin)[0] == 0
    code, _, err = jingyin("score", "-", "--encoding", "klingon", stdin=stdin)
    assert (code, err) == (2, "jingyin: encoding 'klingon' is unknown; name one such as utf-8 or gb18030\n")


def test_control_characters_do_not_reach_the_terminal(jingyin):
    nasty = "a\x1b[2Jb\x07c\x9b1md\u202ee\u2028f\udc80g"
    code, out, _ = jingyin("score", nasty)
    assert code == 0
    assert out.endswith(" a [2Jb c 1md e f�g\n")
    _, out, _ = jingyin("score", "--json", nasty)
    assert out.startswith(r'{"text": "a\u001b[2Jb\u0007c\u009b1md\u202ee\u2028f�g", ')
    assert json.loads(out)["text"] == nasty.replace("\udc80", "\ufffd")


def test_a_hundred_thousand_characters(jingyin):
    code, out, _ = jingyin("score", "--json", "天气不错，" * 20_000)
    assert (code, len(json.loads(out)["text"])) == (0, 100_000)


def test_a_wrong_bundle(jingyin, tmp_path):
    code, out, err = jingyin("score", "--bundle", str(tmp_path), THREAT)
    assert (code, out) == (1, "")
    assert err == (
        f"jingyin: {tmp_path} is not a bundle: it has no manifest.json; "
        "name a folder that `jingyin train` wrote (RUN/bundle)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "Error: Missing argument 'messages'."),
        (["score", "--jsn", THREAT], "Error: No such option: --jsn"),
        (["scor", THREAT], "Error: No such command 'scor'. Did you mean 'score'"),
        (["score", "--bundle"], "Error: Option '--bundle' requires an argument."),
        (
            ["score", "--bundle", "/nowhere", THREAT],
            "Error: Invalid value for '--bundle': path '/nowhere' does not exist.",
        ),
        (["relabel", "/nowhere.csv", "/tmp/out.csv"], "jingyin: input /nowhere.csv does not exist"),
        (["drift", "/nowhere", "/nowhere"], "Error: Invalid value for 'reference': path '/nowhere' does not exist."),
    ],
)
def test_a_wrong_call(jingyin, arguments, message):
    code, out, err = jingyin(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(message)
    assert "Traceback" not in err
    assert THREAT not in err


def test_no_call_at_all_says_what_to_type_first(jingyin):
    code, out, err = jingyin()
    assert (code, err) == (2, "")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["Score a message:", "Score an archive:", "All verbs:"]


def test_the_version(jingyin):
    bundle = read_bundle(default_path()).manifest.id
    assert jingyin("--version") == (0, f"jingyin {version('jingyin')}, bundle {bundle}\n", "")
    assert __version__ == version("jingyin")


@pytest.mark.parametrize("arguments", [[], ["corpus"], ["known"], ["policy"]])
def test_help_names_every_verb_with_a_whole_sentence(jingyin, arguments):
    code, out, _ = jingyin(*arguments, "--help")
    verbs = out[out.index("Commands:") :].splitlines()[1:]
    assert code == 0
    assert len(verbs) >= 2
    assert all(line.endswith((".", "numbers.")) and "..." not in line for line in verbs)


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("bad data"), 1), (ConfigError("bad call"), 2), (OSError(28, "No space left"), 1)]
)
def test_errors_are_a_sentence_without_message_or_traceback(jingyin, monkeypatch, error, code):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Scorer, "score", fail)
    assert jingyin("score", THREAT) == (code, "", f"jingyin: {error}\n")


def test_a_partial_install_of_training_says_which_packages_it_lacks():
    code = "import sys; sys.modules.update(jieba=None, accelerate=None); import jingyin.train.runs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "jingyin.model.errors.ConfigError: jingyin.train needs accelerate, jieba; install all with: pip install"
    )


def test_verbs_of_training_need_their_extra():
    code = "import sys; sys.modules['torch'] = None; from jingyin.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "none.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("jingyin: jingyin.train needs torch")
    assert done.stderr.endswith("pip install 'jingyin[train]' (in a clone: pip install -e '.[train]')\n")
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, "score" in done.stdout) == (0, True)


def test_verdicts_come_as_messages_do():
    with subprocess.Popen([*JINGYIN, "score", "-", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for text in (CHAT, THREAT):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text  # before the next one is written
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_sighup_while_the_service_starts_does_not_end_it(jingyin, monkeypatch):
    before, found = signal.getsignal(signal.SIGHUP), []
    monkeypatch.setattr(process, "run_server", lambda *_, **__: found.append(signal.getsignal(signal.SIGHUP)))
    try:
        assert jingyin("serve")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == [signal.SIG_IGN]


def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    lines = tmp_path / "lines"
    lines.write_text(f"{CHAT}\n" * 10, encoding="utf-8")
    with lines.open("rb") as stdin:
        done = subprocess.run([*JINGYIN, "score", "-"], stdin=stdin, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
