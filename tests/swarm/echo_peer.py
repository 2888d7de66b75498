"""A peer process for the tests: echoes every stream, and prints its address and its daemon's process id."""

import asyncio
import signal
import sys

from shoal.dht.host import HostConfig, open_host
from shoal.peer.transport import P2PTransport


async def main() -> None:
    # As the commands do. Left to asyncio.run, a signal that the kernel gives to a thread that waits for a child wakes
    # the loop only with its next event.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)
    async with open_host(HostConfig()) as host, asyncio.TaskGroup() as tasks:
        transport = P2PTransport(host)

        async def echo(stream):
            while data := await stream.read():
                stream.write(data)
                await stream.drain()

        tasks.create_task(transport.serve(echo))
        await transport.serving.wait()
        print(host.maddrs[0], host.p2p._child.pid, flush=True)


if sys.argv[1:] == ["uvloop"]:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
