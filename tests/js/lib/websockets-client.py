"""A client of the PyPI package `websockets` that comes back for ever; says where it came to and how it was closed."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(address):
    async for websocket in connect(address):
        try:
            print("home", await websocket.recv(), flush=True)
            await websocket.wait_closed()
        except ConnectionClosed:
            pass
        print("code", websocket.close_code, flush=True)


asyncio.run(main(sys.argv[1]))
