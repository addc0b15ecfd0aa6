"""The PROXY protocol, versions 1 and 2: who connected to the load balancer in front of a filter."""

import asyncio
import re
from ipaddress import ip_address

from jingyin.serve.gateways.codec import FrameError

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LINE = re.compile(rb"PROXY (?:UNKNOWN(?: .*)?|TCP[46] ([0-9a-fA-F.:]+) [0-9a-fA-F.:]+ \d+ \d+)\r\n")
_MAX_LINE = 107
_WIDTHS = {0x11: 4, 0x21: 16}


async def read_source(reader: asyncio.StreamReader) -> str:
    """Read the header of a connection; return the client's address, "" for one of the balancer itself.

    Raises FrameError if there is none, IncompleteReadError at the end of the stream.
    """
    start = await reader.readexactly(len(_SIGNATURE))
    if start == _SIGNATURE:
        command, family, *length = await reader.readexactly(4)
        addresses = await reader.readexactly(int.from_bytes(length))
        width = _WIDTHS.get(family, 0)
        if command not in (0x20, 0x21) or len(addresses) < 2 * width:
            raise _fault()
        return str(ip_address(addresses[:width])) if command == 0x21 and width else ""
    while not start.endswith(b"\r\n") and len(start) < _MAX_LINE and start.startswith(b"PROXY "):
        start += await reader.readexactly(1)
    if not (match := _LINE.fullmatch(start)):
        raise _fault()
    try:
        return str(ip_address(match[1].decode())) if match[1] else ""
    except ValueError:
        raise _fault() from None


def _fault() -> FrameError:
    return FrameError("the connection does not begin with a PROXY header; let the load balancer send it")
