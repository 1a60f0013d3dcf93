"""
Brings a TCP port of a lab to the machine's loopback: lab-forward.py PORT NETNS_FILE ADDRESS:PORT READY_FILE

It listens on 127.0.0.1:PORT before it enters the lab's network namespace, so nothing but loopback is exposed and no
route between the two networks is needed. READY_FILE is written when it listens.
"""
import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000


async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def serve(listener, address, port):
    async def on_connection(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        for one in (writer, far_writer):
            one.close()

    server = await asyncio.start_server(on_connection, sock=listener)
    await server.serve_forever()


def main():
    port, netns, target, ready = sys.argv[1:]
    address, _, target_port = target.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen(128)
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(netns, os.O_RDONLY)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the lab's network")
    with open(ready, "w", encoding="ascii") as file:
        file.write(target + "\n")
    asyncio.run(serve(listener, address, int(target_port)))


main()
