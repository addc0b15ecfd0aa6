"""Interceptor script for Jasmin SMS Gateway: asks jingyin about each message. See docs/gateway.md.

Jasmin gives the script `routable` and evaluates it with separate globals and locals, so that a function could not see
the script's own names: hence no functions here. An exception would refuse the message: hence the wide except.
"""

import json
import os
from base64 import b64encode
from urllib.request import Request, urlopen

action = os.environ.get("JINGYIN_ON_FAILURE", "pass")  # down, slow or refusing
found: list[str] = []
try:
    coding = routable.pdu.params.get("data_coding")  # type: ignore[name-defined]  # noqa: F821  Jasmin's
    coding = getattr(coding, "schemeData", coding)  # over HTTP the number itself, over SMPP an object with a name
    if not isinstance(coding, int):
        numbers = {
            "IA5_ASCII": 1, "OCTET_UNSPECIFIED": 2, "LATIN_1": 3, "OCTET_UNSPECIFIED_COMMON": 4, "UCS2": 8,
            "PICTOGRAM": 9, "DATA_8BIT": 0xF4, "JIS": 5, "ISO_2022_JP": 10, "EXTENDED_KANJI_JIS": 13, "KS_C_5601": 14,
        }  # fmt: skip
        coding = numbers.get(getattr(getattr(coding, "msgCoding", coding), "name", ""), 0)
    seconds = float(os.environ.get("JINGYIN_SECONDS", "1"))
    question: dict[str, object] = {"data_coding": coding, "reasons": False, "deadline_ms": round(seconds * 2000 / 3)}
    for name, parameter in (("sender", "source_addr"), ("receiver", "destination_addr")):
        number = routable.pdu.params.get(parameter) or b""  # type: ignore[name-defined]  # noqa: F821
        question[name] = (number.decode("latin-1") if isinstance(number, bytes) else str(number))[:256]
    questions = []
    for fields in (("short_message", "message_payload"), ("message_payload", "short_message")):
        payload, header, pdu = b"", b"", routable.pdu  # type: ignore[name-defined]  # noqa: F821
        while pdu is not None:  # Jasmin chains the parts of a long message
            part = pdu.params.get(fields[0]) or pdu.params.get(fields[1]) or b""  # if both exist, the SMSC chooses
            features = getattr(pdu.params.get("esm_class"), "gsmFeatures", None) or ()
            has_header = part and any(feature.name == "UDHI_INDICATOR_SET" for feature in features)
            length = part[0] + 1 if has_header else 0
            length = length if length <= len(part) else 0  # a header longer than the part hides nothing
            header, payload = part[:length], payload + part[length:]
            pdu = getattr(pdu, "nextPdu", None)
        is_whole = hasattr(routable.pdu, "nextPdu")  # type: ignore[name-defined]  # noqa: F821
        asked = {
            **question,
            "payload": b64encode(payload).decode(),
            "udh": "" if is_whole else b64encode(header).decode(),
        }
        if asked not in questions:
            questions.append(asked)
    pdu = routable.pdu  # type: ignore[name-defined]  # noqa: F821
    while pdu is not None:  # parameters that the client named by number: Jasmin sends them too
        for tag, *_, value in getattr(pdu, "custom_tlvs", None) or ():
            raw = value if isinstance(value, bytes) else str(value).encode(errors="replace")
            if tag == 0x0424 and (pdu.params.get("short_message") or pdu.params.get("message_payload")):
                found.append("block")  # a second text beside the first, of which the SMSC chooses one
            contents = [raw]
            if len(raw) % 2 == 0 and all(byte in b"0123456789abcdefABCDEF" for byte in raw):
                contents.append(bytes.fromhex(raw.decode()))  # octets come as text or in hex
            for content in contents:  # no comprehension, which would not see the names
                asked = {**question, "payload": b64encode(content).decode(), "udh": ""}
                questions.append(asked)
        pdu = getattr(pdu, "nextPdu", None)
    headers = {"Content-Type": "application/json"}
    if os.environ.get("JINGYIN_KEY"):
        headers["Authorization"] = "Bearer " + os.environ["JINGYIN_KEY"]
    url = os.environ.get("JINGYIN_URL", "http://127.0.0.1:8080") + "/v1/score"
    for asked in questions:
        with urlopen(Request(url, json.dumps(asked).encode(), headers), timeout=seconds) as answer:
            verdict = json.load(answer)
            risk = verdict.get("risk", 0.0)  # as in client.py
            risky = risk is None or risk >= 0.1
            late = verdict.get("reason") == "deadline" and (verdict["action"] == "review" or risky)
            edits = verdict.get("edits", {})
            found.append(verdict["action"])
            if late or "unread" in edits or ("cut" in edits and risky):
                found.append("unread")
except Exception:  # a filter must not lose messages by its own fault
    found.append(action)
refused = "review" in found and os.environ.get("JINGYIN_REVIEW") == "refuse"
refused = refused or ("unread" in found and os.environ.get("JINGYIN_UNREAD") != "forward")
action = "block" if "block" in found else "refuse" if refused else "pass"
if action == "block" and not os.environ.get("JINGYIN_DRY_RUN"):
    smpp_status = 0x45  # ESME_RSUBMITFAIL
    http_status = 403
elif action == "refuse" and not os.environ.get("JINGYIN_DRY_RUN"):
    smpp_status = 0x58  # ESME_RTHROTTLED: the client may send it again
    http_status = 503
