"""A fake SMSC to try compose.yaml: accepts every message and prints the length of its PDU."""

import asyncio
import struct

HEADER = struct.Struct(">4I")
SUBMIT_SM, RESPONSE = 4, 0x80000000


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of one ESME with success."""
    count = 0
    try:
        while True:
            length, command, _, sequence = HEADER.unpack(await reader.readexactly(HEADER.size))
            await reader.readexactly(length - HEADER.size)
            if command & RESPONSE:
                continue
            count += command == SUBMIT_SM
            body = b"%d\0" % count if command < 0x10 else b""
            writer.write(HEADER.pack(HEADER.size + len(body), command | RESPONSE, 0, sequence) + body)
            if command == SUBMIT_SM:
                print(f"delivered message {count} in a PDU of {length} bytes", flush=True)  # noqa: T201
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    """Serve until stopped."""
    async with await asyncio.start_server(serve, "0.0.0.0", 2775) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
