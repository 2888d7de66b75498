"""The process that forks become commands of: it has imported what a command imports, and done nothing else.

python server.py DESCRIPTOR: a socket to who started it, whose end is ours. A request is JSON with three descriptors
(stdin, stdout, stderr); the answer is the new process's id. What runs is what `python -m MODULE ARGUMENTS` runs, under
the same names, with the same arguments, environment, folder and streams, and it ends as an interpreter ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
import termios
from pathlib import Path

# What commands of ours import on their way, beside our own modules.
LIBRARIES = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers",
    "transformers.quantizers", "uvloop", "rich.console", "llguidance.torch", "aiohttp.web", "prometheus_client",
    "hivemind.dht.routing", "hivemind.p2p",
)  # fmt: skip
PACKAGES = ("blocks", "client", "dht", "peer", "routing")
CLONE_NEWNET = 0x40000000
MAX_REQUEST_BYTES = 1 << 20


def load() -> None:
    """Import what commands import, and leave nothing for the garbage collector to look at in each of them."""
    from shoal.blocks.lean import leave_out

    leave_out()  # as a command does first
    for package in PACKAGES:
        found = importlib.import_module(f"shoal.{package}")
        for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}."):
            if not module.name.startswith("shoal.blocks.kernels"):  # for GPUs alone
                importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has none but the thread that forks"
    gc.collect()
    gc.freeze()


def serve(asked: socket.socket) -> tuple[dict, list[int]]:
    """Fork for every request, and return in the forks alone: the request and its three descriptors."""
    asked.sendall(b"\n")
    while True:
        data, descriptors, _, _ = socket.recv_fds(asked, MAX_REQUEST_BYTES, 3)
        if not data:
            os._exit(0)
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            os.close(told)
            asked.close()
            pid = os.fork()
            if pid == 0:
                os.close(tell)
                return json.loads(data), descriptors
            os.write(tell, str(pid).encode())
            os._exit(0)
        for descriptor in (tell, *descriptors):
            os.close(descriptor)
        os.waitpid(between, 0)  # now its child is the asker's
        asked.sendall(os.read(told, 64))
        os.close(told)


def become(request: dict, descriptors: list[int]) -> None:
    """Be a new process in all that others can see of it."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    at_once = sys.stdout.write_through
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.detach()
    out, errors = (io.BufferedWriter(io.FileIO(number, "w")) for number in (1, 2))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)))
    sys.stdout = io.TextIOWrapper(out, line_buffering=os.isatty(1), write_through=at_once)
    sys.stderr = io.TextIOWrapper(errors, errors="backslashreplace", line_buffering=True, write_through=at_once)
    if request["namespace"]:
        enter(request["namespace"])
    if request["new_session"]:
        os.setsid()
    if request["terminal"]:
        take_terminal()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    show(request["argv"], request["env"])
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # the standard library's numbers are drawn anew in every fork, torch's are always the same


def take_terminal() -> None:
    """What `popen.own_terminal` does before an interpreter starts, and what this one then does about signals."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def enter(namespace: str) -> None:
    """Move to a network namespace, as scripts/netlab/enter.py does."""
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None).setns(descriptor, CLONE_NEWNET):
        raise OSError(f"cannot enter {namespace}")
    os.close(descriptor)


def show(argv: list[str], env: dict[str, str]) -> None:
    """Have /proc tell these arguments and this environment, where they fit: tests look for processes by them."""
    bounds = [int(number) for number in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:49]]
    words = [argv, [f"{name}={value}" for name, value in env.items()]]
    for start, end, told in zip(bounds[::2], bounds[1::2], words, strict=True):
        text = b"".join(os.fsencode(word) + b"\0" for word in told)[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    load()
    request, descriptors = serve(socket.socket(fileno=int(sys.argv[1])))
    become(request, descriptors)
    sys.argv = ["", *request["argv"][3:]]
    sys.modules.pop(request["argv"][2], None)  # it runs as __main__
    runpy.run_module(request["argv"][2], run_name="__main__", alter_sys=True)
