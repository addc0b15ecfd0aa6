"""A proxy between ESMEs and an SMSC that speaks SMPP 3.4: `python -m jingyin.serve.gateways.smpp`. See ../smpp.md.

    proxy.py    listens, and ends without loss;  session.py  one ESME with its connection to the SMSC
    pdu.py      frames, headers, and the message in a PDU;  parts.py  joins the parts of long messages
    judge.py    asks jingyin over HTTP;  report.py  metrics and log

What is passed on is passed byte for byte: the proxy makes no PDU but refusals, and unbind when it ends.
"""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

_missing = [name for name in ("aiohttp", "prometheus_client", "smpp34") if not find_spec(name)]
if _missing:
    raise ConfigError(f"the SMPP proxy needs {', '.join(_missing)}; run: pip install 'jingyin[smpp]'")
