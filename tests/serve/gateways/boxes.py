"""Kannel's bearerbox and smsbox, as processes."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

_CONFIG = """
group = core
admin-port = {admin}
admin-password = secret
smsbox-port = {smsbox}
log-file = "{folder}/bearerbox.log"
box-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
log-file = "{folder}/smsbox.log"
http-request-retry = 0

group = smsc
SMSC

group = sendsms-user
username = user
password = secret
max-messages = 10
"""


@contextmanager
def kannel(folder: Path, smsc: str, more: str, /, **ports: int) -> Iterator[str]:
    """Run both boxes with an SMSC, and with `more` behind the configuration of the user; yield the URL to send by."""
    config = folder / "kannel.conf"
    config.write_text((_CONFIG.replace("SMSC", smsc.strip()) + more).format(folder=folder, **ports))
    base = f"http://127.0.0.1:{ports['sendsms']}/cgi-bin/sendsms?"
    boxes = []
    try:
        for box, url in (("bearerbox", f"http://127.0.0.1:{ports['admin']}/status"), ("smsbox", base)):
            call = [box, "-v", "4", str(config)]
            boxes.append(subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            poll(lambda url=url: _answers(url), box)
        yield base
    finally:
        for box in reversed(boxes):
            box.terminate()
            box.wait(20)


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=5).close()
    except OSError as error:
        return hasattr(error, "code")
    return True


def poll(ready: Callable[[], Any], what: str) -> Any:
    for _ in range(200):
        try:
            if found := ready():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no {what} in 10 s")
