"""Ports for programs that can't choose one by themselves."""

import random
import socket
from itertools import islice
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(number: int) -> list[int]:
    """Return ports that nothing uses, below those from which the kernel gives connections and port 0 one.

    So nothing takes a port before the program that is told of it does.
    """
    below = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    candidates = random.sample(range(10_000, max(below, 20_000)), 200)
    return list(islice(filter(_is_free, candidates), number))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
