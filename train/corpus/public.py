"""Reads public corpora in their published formats, from a path that the user gives.

Their text never enters the repository. Each source is named with citation and licence, and mapped to the
labels of train/corpus/LABELS.md. Values that a source masks are filled with synthetic ones, the same for the same
text, so that its messages look like traffic and a mask reveals nothing.
"""

import csv
import gzip
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, cast

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.files import atomic_file
from jingyin.model.labels import LABELS
from jingyin.train.corpus.edits import edited
from jingyin.train.corpus.rows import Record
from jingyin.train.corpus.slots import fill_digits, fill_stars, fill_tags, fill_words, words

Raw = dict[str, str]
"""A message as published: `text`, and if it has them `label`, `family`, `voice`, `user`."""

# The label depends on these words, so a label given to a whole source can't be trusted for messages with them.
_DOUBTFUL = re.compile("欠费|欠款|还钱|催收|传票|起诉|通缉|拘捕|逮捕|涉嫌|弄死|砍死|打死|杀了|杀死|裸照|通讯录")

_SUFFIXES = (".jsonl", ".jsonl.gz")  # of JSON lines, which stand in for a source's own files
_LONGEST_LABEL = 20  # characters of a label that is not a message
_LONGEST = 400  # characters of a message; six SMS parts hold that many
_SENTENCE_END = re.compile("[。！？!?；;…]")


def _text_lines(path: Path) -> Iterator[str]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            yield line.decode("utf-8")


def _json_lines(path: Path) -> Iterator[Raw]:
    for number, line in enumerate(_text_lines(path), 1):
        try:
            row = json.loads(line.removeprefix("\ufeff"))
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON; write one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{path}:{number}: no 'text'; write one object with a text a line")
        yield {key: str(value) for key, value in row.items() if value is not None}


def _csv_rows(path: Path) -> Iterator[Raw]:
    """CSV with a header line that names at least `text`, in any case."""
    rows = csv.DictReader(line.removeprefix("\ufeff") for line in _text_lines(path))
    for row in rows:
        raw = {key.strip().lower(): value for key, value in row.items() if key and isinstance(value, str)}
        where, names = f"{path}:{rows.line_num}", rows.fieldnames or ()
        if "text" not in raw:
            raise InputError(f"{where}: no column 'text'; name the columns in the first line")
        if extra := row.get(None):
            raise InputError(
                f"{where}: {len(names) + len(extra)} cells, the first line has {len(names)}; put texts with commas or "
                "line breaks in quotes"
            )
        yield raw


def _nus(path: Path) -> Iterator[Raw]:
    """NUS SMS Corpus: XML, or the JSON made from it, with "$" for text content."""
    if path.suffix != ".json":
        for _, message in ElementTree.iterparse(path):
            if message.tag == "message":
                user = message.findtext("source/userProfile/userID") or ""
                yield {"text": message.findtext("text") or "", "user": user}
                message.clear()
        return
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["smsCorpus"]["message"]
        for message in messages:
            user = message["source"]["userProfile"]["userID"]["$"]
            yield {"text": str(message["text"].get("$") or ""), "user": str(user)}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the NUS SMS Corpus in JSON; get the file again") from error


def _fbs(path: Path) -> Iterator[Raw]:
    """FBS: a folder with one file a category, or one folder a category; words apart, one message a line."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    for file in [path] if path.is_file() else files:
        if file.suffix not in ("", ".txt"):
            continue
        category = file.parent.name if file.stem == "messages" else file.stem
        for line in _text_lines(file):
            yield {"text": line.replace(" ", ""), "label": category.replace("_", ":", 1)}


def _sms800k(path: Path) -> Iterator[Raw]:
    """800k set: [number TAB] 0 or 1 (spam) TAB text."""
    pattern = re.compile(r"(?:\d+\t)?([01])\t?\s*(.*)")
    for number, line in enumerate(_text_lines(path), 1):
        match = pattern.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{path}:{number}: not 'label TAB text' with a label of 0 or 1")
        yield {"text": match[2], "label": "spam" if match[1] == "1" else "ham"}


def _cold(path: Path) -> Iterator[Raw]:
    """COLD: train.csv, dev.csv and test.csv with TEXT, label (1 offensive), topic; or one of them."""
    for file in [path] if path.is_file() else sorted(path.glob("*.csv")):
        for raw in _csv_rows(file):
            yield {"text": raw["text"], "label": "offensive" if raw.get("label") == "1" else "not_offensive"}


@dataclass(frozen=True)
class Source:
    """A public corpus: what to cite, its licence, how it is read, and the label of all of its messages.

    `label` is None if each row has one of LABELS itself. Messages with doubtful words are left out, unless the source
    is `vetted`: people have read those of its messages that an earlier filter flagged, and found no threat.
    """

    title: str
    citation: str
    licence: str
    label: str | None = "ordinary"
    raws: Callable[[Path], Iterator[Raw]] = _json_lines
    fill: Callable[[str, Random], str] = lambda text, rng: text
    vetted: bool = False


SOURCES: dict[str, Source] = {
    "nus": Source(
        "NUS SMS Corpus (Chinese)",
        "Chen and Kan 2013, Creating a Live, Public Short Message Service Corpus: The NUS SMS Corpus, "
        "Language Resources and Evaluation 47(2)",
        "none stated; asks to be cited", raws=_nus, fill=fill_tags,
    ),
    "fbs": Source(
        "FBS SMS Dataset",
        "Zhang et al. 2020, Lies in the Air: Characterizing Fake-base-station Spam Ecosystem in China, CCS",
        "none stated; asks to be cited", raws=_fbs, fill=fill_words,
    ),
    "sms800k": Source(
        "800k SMS spam set", "labelled Chinese SMS of 2015, author unknown",
        "none stated", raws=_sms800k, fill=fill_digits,
    ),
    "cold": Source(
        "COLD", "Deng et al. 2022, COLD: A Benchmark for Chinese Offensive Language Detection, EMNLP",
        "Apache-2.0", raws=_cold,
    ),
    "mudou2014": Source(
        "SMS of 2013 and 2014", "GitHub shaonianruntu/Spam-Message-Classification", "none stated", fill=fill_digits,
    ),
    "a2p_fixtures": Source(
        "bank, bill and code SMS of 2023 to 2026 from test fixtures",
        "GitHub AutoAccountingOrg/AutoRule and LeeeSe/MessAuto", "GPL-3.0 and MIT", vetted=True,
    ),
    "beke": Source(
        "House-BEKE, chat of house buyers and agents", "contest of Beike 2020, GitHub CCChenhao997/House-BEKE",
        "MIT; contest terms", fill=fill_words, vetted=True,
    ),
    "atec": Source(
        "ATEC, questions to a payment service", "contest of Ant Financial 2018, GitHub liuaiting/ATEC",
        "Apache-2.0; contest terms", fill=fill_stars, vetted=True,
    ),
    "legal": Source(
        "questions to lawyers", "GitHub AndrewZhe/lawyer-llama and siatnlp/LegalQA",
        "Apache-2.0, academic; none stated", fill=fill_digits, vetted=True,
    ),
    "petitions": Source(
        "citizens' letters to a leader's board, and answers",
        "contest TipDM 2020, GitHub Introduction-to-AI-Course/ai_04",
        "MIT; contest terms", fill=fill_digits, vetted=True,
    ),
    "waimai": Source("waimai_10k, takeaway reviews", "GitHub SophonPlus/ChineseNlpCorpus", "none stated", vetted=True),
    "shopping": Source(
        "online_shopping_10_cats, shop reviews", "GitHub SophonPlus/ChineseNlpCorpus", "none stated", vetted=True,
    ),
    "hotels": Source("ChnSentiCorp, hotel reviews", "GitHub SophonPlus/ChineseNlpCorpus", "none stated", vetted=True),
    "weibo": Source("Weibo sentences with moods", "GitHub spianmo/MultiClassify_LSTM_ForChinese", "MIT", vetted=True),
    "cofacts": Source(
        "Cofacts, why users in Taiwan report a message", "GitHub cofacts/opendata",
        "CC BY-SA 4.0", fill=fill_digits, vetted=True,
    ),
    "hkcantonese": Source(
        "written Cantonese of Hong Kong: reviews, forum", "toastynews, openrice-senti and lihkg-cat-v2",
        "CC BY 4.0", vetted=True,
    ),
    "varied": Source("random messages of 58 further kinds", "docs/data.md lists them", "see docs/data.md", vetted=True),
    "suspicious": Source(
        "the messages of these kinds that the bundle before found riskiest", "docs/data.md",
        "see docs/data.md", vetted=True,
    ),
    "strange": Source("messages of 11 further kinds, kept out", "docs/data.md", "see docs/data.md", vetted=True),
    "jsonl": Source("your own JSON lines", "", "yours", label=None),
    "csv": Source("your own CSV", "", "yours", label=None, raws=_csv_rows),
}  # fmt: skip
"""Kind -> source: real traffic, public or the user's own, not hand-picked; other sources were written or generated.

All messages of a source with a single label are ordinary in the sense of the guide.

A source without its own reader is read from JSON lines, each with a `text`.
"""

OWN, CASES, MINED, QUOTED = "own", "cases", "mined", "quoted"
USERS = (OWN, CASES)
"""Kinds of the user's own labelled messages: from files, and decided in the review queue."""
KINDS = {
    **SOURCES,
    OWN: Source("your own labelled messages", "", "yours", label=None),
    CASES: Source("cases that your analysts decided", "", "yours", label=None),
    MINED: Source("your own messages of low risk, drawn by jingyin mine", "", "yours", label=None),
    QUOTED: Source("real messages that news, judgments, lenders and victims quote", "", "not published", label=None),
}
"""The kinds that a corpus recipe may name: SOURCES, the user's own messages, and quoted ones, which were picked."""


def read(kind: str, path: Path) -> Iterator[Record]:
    """Yield the records of the source `kind` at `path`: its published files, or JSON lines converted from them.

    Behind a message of which rows/edits.jsonl makes a threat follows that threat. Messages for which the source's label
    is doubtful are left out. Raises InputError with the file, for an unknown label also with the number of the message.
    """
    source, raws = KINDS[kind], read_raw(kind, path)
    for number, raw in enumerate(raws, 1):
        text = " ".join(raw["text"].split()).encode("utf-8", "ignore").decode("utf-8")
        label, where = source.label or raw.get("label", ""), f"{path}:{number}"
        if label not in LABELS:
            unknown = unknown_label(label, any(later.get("label") == label for later in raws))
            raise InputError(f"{where}: {unknown}; every row needs one of {', '.join(LABELS)}")
        if not text or (source.label and not source.vetted and _DOUBTFUL.search(text)):
            continue
        text = text if kind in USERS else cut(text)
        record = Record(
            text=source.fill(text, Random(text)),
            label=label,
            family=raw.get("family") or (raw.get("label") if source.label else "") or kind,
            voice=raw.get("voice") or "public",
            source=kind,
            group=f"{kind}:{raw['user']}" if raw.get("user") else "",
            where=where,
        )
        yield from edited(record, raw["text"], fingerprint(raw["text"])) if source.label else (record,)


HIDDEN_LABEL = "unknown label (not shown, because it may be a message)"


def unknown_label(label: str, recurs: bool) -> str:
    """Say that a label is unknown, quoting it only if it is short and `recurs`: columns may be swapped."""
    quotable = not label or (recurs and len(label) <= _LONGEST_LABEL)
    return f"unknown label {label!r}" if quotable else HIDDEN_LABEL


def read_raw(kind: str, path: Path) -> Iterator[Raw]:
    """Yield each message of the source `kind` at `path` as the source gives it, including masks.

    Raises InputError with the file, and for an invalid line also with its number.
    """
    source = KINDS[kind]
    try:
        yield from _json_lines(path) if path.name.endswith(_SUFFIXES) else source.raws(path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read ({error}); check the path and the file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it, say with iconv") from error
    except (csv.Error, ElementTree.ParseError) as error:
        raise InputError(f"{path} is not a {source.title} file ({error}); get it again, unpacked") from error


def cut(text: str) -> str:
    """Return a message of up to _LONGEST characters unchanged, of a longer one the first sentences that fit."""
    if len(text) <= _LONGEST:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, _LONGEST)]
    return text[: ends[-1] if ends else _LONGEST]


PUBLIC = tuple(kind for kind, source in SOURCES.items() if source.label)
"""Kinds of public corpora."""


def convert(kind: str, source: Path, out: Path, only: str | None = None) -> int:
    """Write messages of the public corpus `kind` at `source` to `out`, one JSON object per line; return their number.

    Masks stay as published: they are filled anew when a corpus is built. Empty messages are left out, and with `only`
    those with another of the source's own labels. The same source gives the same bytes, compressed or not; a file at
    `out` is replaced by a complete one or not at all. Raises ConfigError for an unknown kind or suffix, InputError with
    file and line for an invalid source.
    """
    if kind not in PUBLIC:
        raise ConfigError(f"unknown kind {kind!r}; known: {', '.join(PUBLIC)}")
    if not out.name.endswith(_SUFFIXES):
        raise ConfigError(f"{out} must end in {' or '.join(_SUFFIXES)}, which marks JSON lines")
    count = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        file: IO[bytes] = held.enter_context(atomic_file(out))
        if out.suffix == ".gz":
            file = held.enter_context(cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)))
        for raw in read_raw(kind, source):
            if raw["text"].strip() and only in (None, raw.get("label")):
                line = json.dumps({key: value for key, value in raw.items() if value}, ensure_ascii=False)
                file.write((line + "\n").encode("utf-8", "ignore"))
                count += 1
        if not count:
            wanted = f" that it labels {only!r}" if only else ""
            raise InputError(f"{source} holds no message of kind {kind}{wanted}; check path and kind")
    return count


def is_excluded(text: str) -> bool:
    """Whether a public message isn't ordinary although its corpus is labelled so: tables/excluded.txt, by hash.

    Each was read: fake judicial notices with a demand among the spam, real menaces among the comments (train/LOG.md).
    """
    return fingerprint(text) in words("excluded")


def fingerprint(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text without white space."""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]
