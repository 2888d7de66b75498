"""Runs `shoal` commands and Python code in forks of itself, which have imported what they need already.

A command's start is 5 s of imports; the pages have dozens of commands. What runs is the command itself, `main(argv)`.

python guide_forks.py SOCKET: answers requests (JSON with three descriptors: stdin, stdout, stderr) with two lines: the
process id, and the exit status when it has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.forks.server import load

PR_SET_PDEATHSIG = 1


def serve(path: str) -> None:
    """Until killed: one fork for each request, which waits for another one that does the work."""
    load()
    import openai  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    os._exit(answer(connection))


def answer(connection: socket.socket) -> int:
    """Fork for one request, and tell its asker how it ends (in a file too, if the request names one)."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    request = json.loads(data)
    pid = os.fork()
    if pid == 0:
        connection.close()
        become(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if request["status_file"]:
        told = Path(request["status_file"])
        whole = told.with_suffix(".whole")  # others look for the file, and read it as soon as it is there
        whole.write_text(str(status))
        whole.replace(told)
    try:
        connection.sendall(f"{status}\n".encode())
    except BrokenPipeError:
        return 0  # it was started to go on without its asker
    return 0


def become(request: dict, descriptors: list[int]) -> None:
    """Be the process that was asked for."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    status = 1
    try:
        if request["argv"] is None:
            run_blocks()
            status = 0
        else:
            from shoal.client.cli.main import main

            status = main(request["argv"])
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        end(status)


def run_blocks() -> None:
    """Python code from stdin, one JSON object a line, all in one name space; a NUL byte ends each one's output."""
    space: dict = {"__name__": "__main__"}
    for line in sys.stdin:
        asked = json.loads(line)
        space.update(asked["names"])
        exec(compile(asked["code"], asked["place"], "exec"), space)
        sys.stderr.flush()
        print("\0", flush=True)


def end(status: int) -> None:
    """Leave as an interpreter does: threads, exit functions, buffers."""
    import atexit
    import threading

    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
