"""The filters' HTTP client: where an answer ends."""

import asyncio

import pytest

from jingyin.serve.gateways.client import Http


def ask(answer: bytes) -> tuple[int, bytes]:
    """Ask a server that sends this answer and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run() -> tuple[int, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(10):
            return await Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}").request("GET", "/")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"HTTP/1.0 202 OK\r\n\r\n0: Accepted", (202, b"0: Accepted")),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.0 202 OK\r\n\r\n", (202, b"")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", (200, b"{}")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}", (200, b"{}")),
    ],
)
def test_an_answer_ends_where_it_says_or_with_the_connection(answer: bytes, wanted: tuple[int, bytes]) -> None:
    assert ask(answer) == wanted


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)  # fmt: skip
def test_an_answer_cut_short_is_none(answer: bytes) -> None:
    with pytest.raises(ConnectionResetError):
        ask(answer)
