"""Sends a threat and a greeting through a running Jasmin with jingyin's interceptor script, and says what arrived.

    redis-server &  rabbitmq-server &                      Debian's packages
    pip install jasmin "setuptools<80"                     in an environment of its own; needs pkg_resources
    mkdir -p R/etc/jasmin/resource R/etc/jasmin/store R/var/log/jasmin, and copy
      txamqp/specs/standard/amqp0-9-1.stripped.xml to R/etc/jasmin/resource/amqp0-9-1.xml
    jingyin serve &
    ROOT_PATH=R interceptord.py &  ROOT_PATH=R jasmind.py --enable-interceptor-client &
    python tests/serve/gateways/jasmin_run.py

It plays the SMSC, sets Jasmin up over jCli, and sends over Jasmin's HTTP API.
"""

import socket
import struct
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

SCRIPT = Path(__file__).parents[3] / "serve/gateways/jasmin.py"
THREAT = "有人出钱让我们呼死你，转300元就停，不给就一直打到你关机"
GREETING = "妈，今晚回家吃饭，七点到"
LONG = "。".join([THREAT] * 4)

received: list[bytes] = []


def smsc(listener: socket.socket) -> None:
    """Answer every SMPP request with success and keep what submit_sm carries."""
    connection, _ = listener.accept()
    data = b""
    while piece := connection.recv(65_536):
        data += piece
        while len(data) >= 4 and len(data) >= (length := struct.unpack(">I", data[:4])[0]):
            pdu, data = data[:length], data[length:]
            _, command, _, number = struct.unpack(">4I", pdu[:16])
            if command == 4:
                received.append(pdu)
            body = b"smsc\0" if command in (1, 2, 9) else f"{len(received)}\0".encode() if command == 4 else b""
            if command < 0x80000000:
                connection.sendall(struct.pack(">4I", 16 + len(body), command | 0x80000000, 0, number) + body)


def jcli(*lines: str) -> str:
    with socket.create_connection(("127.0.0.1", 8990)) as connection:
        connection.settimeout(1)
        said = ""
        for line in ("jcliadmin", "jclipwd", *lines):
            try:
                while True:
                    said += connection.recv(65_536).decode(errors="replace")
                    if said.endswith((": ", " > ", "> ")):
                        break
            except TimeoutError:
                pass
            connection.sendall(line.encode() + b"\r\n")
            time.sleep(0.1)
        time.sleep(0.5)
        return said


def send(text: str) -> str:
    fields = {
        "username": "foo",
        "password": "bar",
        "to": "200",
        "coding": 8,
        "hex-content": text.encode("utf-16-be").hex(),
    }
    try:
        with urlopen("http://127.0.0.1:1401/send?" + urlencode(fields), timeout=20) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except HTTPError as error:
        return f"{error.code} {error.read().decode()}"


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=smsc, args=(listener,), daemon=True).start()
    port = listener.getsockname()[1]
    said = jcli(
        "group -a", "gid g", "ok", "user -a", "username foo", "password bar", "uid foo", "gid g", "ok",
        "smppccm -a", f"cid c{port}", "host 127.0.0.1", f"port {port}", "username u", "password p",
        "submit_throughput 0", "ok",
        f"smppccm -1 c{port}",
        "mtrouter -a", "type defaultroute", f"connector smppc(c{port})", "rate 0", "ok",
        "mtinterceptor -a", "type defaultinterceptor", f"script python3({SCRIPT})", "ok", "quit",
    )  # fmt: skip
    print("set up:", said.count("Successfully"), "of 7")
    time.sleep(3)
    for name, text in (("greeting", GREETING), ("threat", THREAT), ("long threat", LONG)):
        print(f"{name:12}", send(text))
    time.sleep(2)
    print(
        "the SMSC got",
        len(received),
        "message(s); the greeting among them:",
        any(GREETING.encode("utf-16-be") in pdu for pdu in received),
    )
    print("the threat among them:", any("呼死你".encode("utf-16-be") in pdu for pdu in received))


if __name__ == "__main__":
    main()
