"""A server that has the libraries loaded already and forks a process for each command of a block, whose start is then short.

    python -m tests.docs.fork_server SOCKET

A client sends the arguments of python, its directory and environment, with its standard streams; the answers are the process id,
and the exit code when the process ends. Ranks that torchrun or Lightning start by ``sys.executable`` come here too.
"""

import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

SOCKET, RANK = "PRELOADED_SOCKET", "PRELOADED_RANK"  # variables: the server's address, and the program that starts a rank
MOST_BYTES = 1 << 20  # of a command with its environment


def ask(arguments: list[str]) -> int:
    """Runs python with these arguments in a process that the server forks; its exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        server.connect(os.environ[SOCKET])
        socket.send_fds(server, [json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
        pid = int(server.recv(100))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        return int(server.recv(100))


def serve(path: Path) -> NoReturn:
    """Answers clients until it is killed."""
    import diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3
    import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401
    import torch.distributed.run

    from hybridiff.cli.config import parse  # noqa: F401
    from hybridiff.runner import job, run, summary  # noqa: F401

    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"{path}.new")
        server.listen(16)
        os.rename(f"{path}.new", path)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of those that wait for the commands
        while True:
            client, _ = server.accept()
            if not os.fork():
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(client)
            client.close()


def answer(client: socket.socket) -> NoReturn:
    """Forks the command and reports to the client its process id and exit code."""
    message, streams, _, _ = socket.recv_fds(client, MOST_BYTES, 3)
    pid = os.fork()
    if not pid:
        client.close()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        execute(*json.loads(message))
    for stream in streams:
        os.close(stream)
    client.send(str(pid).encode())
    client.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def execute(arguments: list[str], directory: str, environment: dict[str, str]) -> NoReturn:
    """What the interpreter does with its arguments; ends the process."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment[RANK]
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(":")
    code: Any = 0
    try:
        interpret([argument for argument in arguments if argument != "-u"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def interpret(arguments: list[str]) -> None:
    """Runs a module, text or a path, as ``__main__``."""
    kind, *rest = arguments
    if kind == "-m":
        sys.argv, sys.path[0] = ["-m", *rest[1:]], os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [kind, *rest], str(Path(kind).parent.absolute())
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
