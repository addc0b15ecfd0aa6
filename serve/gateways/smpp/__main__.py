"""The command: listens for ESMEs until SIGTERM. The key, if jingyin wants one, comes from JINGYIN_KEY."""

import argparse
import asyncio
import os
import signal
import sys

from prometheus_client import start_http_server

from jingyin.model.errors import ConfigError
from jingyin.serve.gateways.smpp.judge import Judge
from jingyin.serve.gateways.smpp.parts import Joiner
from jingyin.serve.gateways.smpp.pdu import SUBMIT_FAILED
from jingyin.serve.gateways.smpp.proxy import Proxy
from jingyin.serve.gateways.smpp.report import REGISTRY, log
from jingyin.serve.gateways.smpp.session import Terms


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise argparse.ArgumentTypeError("HOST:PORT is wanted, say 10.0.0.5:2775")
    return host.strip("[]"), int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jingyin.serve.gateways.smpp", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address for ESMEs")
    parser.add_argument("--port", type=int, default=2775)
    parser.add_argument("--smsc", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--jingyin", default="http://127.0.0.1:8080")
    parser.add_argument("--seconds", type=float, default=0.2, help="longest wait for a verdict")
    parser.add_argument("--on-failure", choices=("pass", "block"), default="pass", help="for a message without one")
    parser.add_argument("--hold", type=float, default=0.5, help="longest wait, in seconds, for the other parts")
    parser.add_argument("--block-status", type=lambda text: int(text, 0), default=SUBMIT_FAILED, help="say 0x45")
    parser.add_argument("--metrics", type=_address, metavar="HOST:PORT", help="serve Prometheus metrics there")
    return parser


async def _run(given: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    key = os.environ.get("JINGYIN_KEY", "")
    judge = Judge(given.jingyin, key=key, seconds=given.seconds, on_failure=given.on_failure)
    try:
        host, port = given.smsc
        proxy = Proxy(Terms(host, port, given.block_status, given.hold, judge, Joiner(judge, given.hold)))
        log("serving", host=given.host, port=await proxy.listen(given.host, given.port))
        await stop.wait()
        await proxy.drain()
    finally:
        await judge.close()
    log("ended")


def main() -> None:
    """Run the proxy; exits 2 with one sentence if it can't listen."""
    given = _parser().parse_args()
    try:
        if given.metrics:
            host, port = given.metrics
            start_http_server(port, host, REGISTRY)
        asyncio.run(_run(given))
    except (ConfigError, OSError) as error:
        print(f"jingyin: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
