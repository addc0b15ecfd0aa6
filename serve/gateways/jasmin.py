"""Interceptor script for Jasmin SMS Gateway: asks jingyin about each message. See jasmin.md.

Jasmin gives the script `routable` and evaluates it with separate globals and locals, so that a function could not see
the script's own names: hence no functions here. An exception would refuse the message: hence the wide except.
"""

import json
import os
from base64 import b64encode
from urllib.request import Request, urlopen

try:
    payload, header, pdu = b"", b"", routable.pdu  # type: ignore[name-defined]  # noqa: F821  Jasmin's
    while pdu is not None:  # Jasmin hangs the parts of a long message one behind the other
        part = pdu.params.get("short_message") or pdu.params.get("message_payload") or b""
        features = getattr(pdu.params.get("esm_class"), "gsmFeatures", None) or ()
        has_header = part and any(feature.name == "UDHI_INDICATOR_SET" for feature in features)
        length = part[0] + 1 if has_header else 0
        length = length if length <= len(part) else 0  # a header that says more than there is hides nothing
        header, payload = part[:length], payload + part[length:]
        pdu = getattr(pdu, "nextPdu", None)
    is_whole = hasattr(routable.pdu, "nextPdu")  # type: ignore[name-defined]  # noqa: F821
    scheme = routable.pdu.params.get("data_coding")  # type: ignore[name-defined]  # noqa: F821
    scheme = getattr(scheme, "schemeData", scheme)  # over HTTP the number itself, over SMPP an object with a name
    codings = {
        1: "ascii", 2: "latin1", 3: "latin1", 4: "latin1", 8: "ucs2", 15: "gbk",
        "IA5_ASCII": "ascii", "LATIN_1": "latin1", "OCTET_UNSPECIFIED": "latin1", "UCS2": "ucs2",
    }  # fmt: skip
    question = {
        "payload": b64encode(payload).decode(),
        "udh": "" if is_whole else b64encode(header).decode(),
        "coding": codings.get(getattr(scheme, "name", scheme), "gsm7"),
    }
    headers = {"Content-Type": "application/json"}
    if os.environ.get("JINGYIN_KEY"):
        headers["Authorization"] = "Bearer " + os.environ["JINGYIN_KEY"]
    url = os.environ.get("JINGYIN_URL", "http://127.0.0.1:8080") + "/v1/score"
    with urlopen(
        Request(url, json.dumps(question).encode(), headers), timeout=float(os.environ.get("JINGYIN_SECONDS", "0.2"))
    ) as answer:
        action = json.load(answer)["action"]
except Exception:  # down, slow or refusing: a filter must not lose mail
    action = "pass"
if action == "block":
    smpp_status = 0x45  # ESME_RSUBMITFAIL
    http_status = 403
