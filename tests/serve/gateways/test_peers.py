"""Independent clients through the proxy, and tshark on the frames of the dialects."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serve.gateways.dialects import CMPP2, CMPP3, PHONE, SMPP, Dialect
from tests.serve.gateways.fakes import GREETING, THREAT, World, played

pytestmark = pytest.mark.external

# Each prints a line for each message: whether it was taken.
CMPPY = """
from cmppy import Cmppy
from cmppy.request import SubmitReq
for text in {texts!r}:
    submit = SubmitReq("901234", text, dest_terminal_id=["{phone}"])
    answer = Cmppy("127.0.0.1", {port}, "901234", "secret7").request(submit)
    print("said", answer.result == 0)
"""
PYCMPP = """
import logging, struct, threading
from pycmpp.cmpp import Cmpp
client = Cmpp("127.0.0.1", {port}, "901234", "secret7", "10690001", client_heartbeat=False)
client.connect()
client.auth()
def answer():
    head = client.so.recv(12, 256)
    return client.so.recv(struct.unpack(">I", head[:4])[0] - 12, 256)
assert answer()[0] == 0
for text in {texts!r}:
    client.submit(text, ["{phone}"])
    for _ in range(1 if len(text) < 70 else (len(text) + 63) // 64):
        print("said", answer()[8] == 0)
"""
SMPPLIB = """
import logging, smpplib.client, smpplib.consts
logging.disable()
client = smpplib.client.Client("127.0.0.1", {port}, allow_unknown_opt_params=True)
client.connect()
client.bind_transceiver(system_id="901234", password="secret7")
statuses = []
client.set_message_sent_handler(lambda pdu: statuses.append(pdu.status))
client.set_error_pdu_handler(lambda pdu: statuses.append(pdu.status))
for text in {texts!r}:
    encoded = text.encode("utf-16-be")
    client.send_message(source_addr="10690001", destination_addr="{phone}", short_message=encoded, data_coding=8)
    client.read_once()
    print("said", statuses[-1] == 0)
client.unbind()
client.disconnect()
"""
SMPP34 = """
import asyncio, smpp34
async def main():
    smsc = await smpp34.Client(host="127.0.0.1", port={port}, system_id="901234", password="secret7").connect()
    for text in {texts!r}:
        answer = await smsc.submit_sm("{phone}", text.encode("utf-16-be"), source_addr="10690001", data_coding=8)
        print("said", answer.is_success)
    await smsc.unbind()
asyncio.run(main())
"""


@played(hold=5)
@pytest.mark.parametrize(
    ("package", "dialect", "program"),
    [("cmppy", CMPP3, CMPPY), ("pycmpp", CMPP2, PYCMPP), ("smpplib", SMPP, SMPPLIB), ("smpp34", SMPP, SMPP34)],
)
async def test_a_client(world: World, package: str, dialect: Dialect, program: str) -> None:
    """A threat is refused, whole and in parts, and the rest goes on."""
    pytest.importorskip(package)
    texts, taken = [GREETING, THREAT, GREETING], [True, False, True]
    if package == "pycmpp":
        texts, taken = [*texts, "早" * 60 + THREAT + "早" * 60], [*taken, False, False]
    code = program.format(port=world.port, texts=texts, phone=PHONE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await asyncio.wait_for(process.communicate(), 40)
    said = [line.endswith("True") for line in out.decode().splitlines() if line.startswith("said")]
    assert said == taken, error.decode()
    sent = b"".join(world.gateway.received)
    assert sent.count(GREETING.encode("utf-16-be")) == 2
    assert "死".encode("utf-16-be") not in sent
    assert {each["sender"] for each in world.scoring.asked} & {"10690001", "1064899103013", ""}


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed (Debian package tshark)")
@pytest.mark.parametrize(("dialect", "port", "name"), [(CMPP3, 7890, "cmpp"), (SMPP, 2775, "smpp")])
def test_tshark_reads_frames_and_refusals(dialect: Dialect, port: int, name: str, tmp_path: Path) -> None:
    codec = dialect.codec()
    codec.frame(dialect.login())
    submit = dialect.submit(GREETING, 2, to=(PHONE, "13800000001"))
    refusal = codec.refuse(codec.frame(submit), dialect.blocked)
    frames = [dialect.login(), submit, dialect.deliver(GREETING, 3), refusal, codec.close()]
    hexadecimal = "".join(f"0000 {frame.hex(' ')}\n\n" for frame in frames)
    pcap = str(tmp_path / "x.pcap")
    text2pcap = ["text2pcap", "-q", "-T", f"{port},{port}", "-", pcap]
    subprocess.run(text2pcap, input=hexadecimal, text=True, check=True, capture_output=True)
    tshark = ["tshark", "-r", pcap, "-d", f"tcp.port=={port},{name}", "-V"]
    read = subprocess.run(tshark, capture_output=True, text=True, check=True).stdout
    assert "Malformed" not in read
    assert "Expert Info (Error" not in read
    assert read.count(PHONE) >= 2
    assert "13800000001" in read
