"""Stands in for an SMSC while compose.yaml is tried: takes every message and prints how long it was."""

import asyncio

import smpp34


async def main() -> None:
    """Serve until stopped."""
    server = smpp34.Server(host="0.0.0.0", port=2775, system_id="smsc")
    await server.start()
    count = 0
    while True:
        event = await server.next()
        if isinstance(event, smpp34.SubmitSmEvent):
            count += 1
            event.accept(message_id=str(count))
            print(f"delivered message {count} of {len(event.short_message)} bytes", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
