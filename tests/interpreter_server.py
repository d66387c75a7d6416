"""Starts Python processes in milliseconds: each is a fork of one process that has imported the large packages.

`python interpreter_server.py FOLDER LISTENER` listens on the Unix socket FOLDER/socket, whose file descriptor is
LISTENER, until its standard input ends. Whoever starts it makes the socket, so that a client can connect at once and
waits until the packages are imported. One server is enough for all workers of a test suite.

A client connects, sends the command, working folder and environment as JSON along with the file descriptors of the
output, and receives the process id, then the status as `os.waitstatus_to_exitcode` gives it. A command is what follows
`python`: a script, `-m` and a module, or `-c` and code, each with arguments. It is run as a new interpreter would run
it (in a process of its own, with signals and an exit status), except that `torch`, `transformers` and the like, and the
modules of this package, are imported already and have read their environment variables. The Hub's client is offline,
unless the environment names a Hub (HF_ENDPOINT): then its variables are read anew. For the process, `sys.executable` is
FOLDER/bin/python, a client of the same server, so that launchers such as torchrun and scripts that start others are
fast too; servers of `multiprocessing` are forks of the process.

A test of the start of an interpreter (what is imported, environment variables of packages) starts a new one instead.
"""

import contextlib
import gc
import importlib
import itertools
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 2**17  # what a Unix socket takes at once


class StartedProcess:
    """A process of the server, with the part of the interface of `subprocess.Popen` that tests need.

    Args:
        connection: Connection to the server, over which the request has been sent.
        outputs: Files of standard output and standard error.
        command: Command line, for messages.
    """

    def __init__(self, connection: socket.socket, outputs: Sequence[Any], command: Sequence[str]) -> None:
        self._lines, self._outputs, self.args = connection.makefile(), outputs, command
        self._connection = connection
        self.returncode: int | None = None
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the status, or None while the process runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.returncode = int(self._lines.readline())
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for the end; return standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the process is killed.
        """
        if self.returncode is None and not select.select([self._connection], [], [], timeout)[0]:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.poll()
        for file in self._outputs:
            file.seek(0)
        stdout, stderr = (file.read().decode(errors="replace") for file in self._outputs)
        return stdout, stderr


class InterpreterServer:
    """A client of a running server.

    Args:
        folder: Folder that the server was started with.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def start(
        self, command: Sequence[object], folder: Path | None = None, environment: dict[str, str] | None = None
    ) -> StartedProcess:
        """Start a process; default: in this working folder and environment.

        Its standard input is empty.
        """
        words = [str(word) for word in command]
        outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  read after the end
        connection = request(self.folder, words, folder or Path.cwd(), environment, [file.fileno() for file in outputs])
        return StartedProcess(connection, outputs, words)

    def run(self, command: Sequence[object], timeout: float = 600, **where: Any) -> subprocess.CompletedProcess:
        """Run a process to its end, with the arguments of `start`."""
        process = self.start(command, **where)
        stdout, stderr = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def request(
    server: str, command: Sequence[str], folder: Path, environment: dict[str, str] | None, outputs: Sequence[int]
) -> socket.socket:
    """Ask a server for a process; return the connection, over which its id and its status come."""
    content = {"command": command, "folder": str(folder)}
    content["environment"] = dict(os.environ if environment is None else environment)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(server, "socket"))
    socket.send_fds(connection, [json.dumps(content).encode()], outputs)
    return connection


@contextlib.contextmanager
def running_server() -> Iterator[InterpreterServer]:
    """Start a server for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        write_clients(Path(folder, "bin"))
        listener.bind(os.path.join(folder, "socket"))
        listener.listen(64)
        command = [sys.executable, __file__, folder, str(listener.fileno())]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=offline, pass_fds=[listener.fileno()]) as server:
            listener.close()  # the server's alone, so that no client waits for one that has failed
            yield InterpreterServer(folder)
            server.stdin.close()
            server.terminate()  # it may be importing still


def write_clients(folder: Path) -> None:
    """Write the programs that take the place of the interpreter and of `accelerate` beside it."""
    folder.mkdir()
    for name, module in (("python", ""), ("accelerate", "-m accelerate.commands.accelerate_cli")):
        program = f'exec {sys.executable} -IS {__file__} --client {folder.parent} {module} "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def stand_in(server: str, command: Sequence[str]) -> None:
    """Run a command in a process of the server, pass signals on to it, and end as it ends."""
    lines = request(server, command, Path.cwd(), None, [1, 2]).makefile()
    child = int(lines.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: os.kill(child, received))
    status = int(lines.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


# What the scripts of this package import when they run, and with it the rest of the package.
OUR_MODULES = (
    *("evaluation.loading", "evaluation.suite", "features.extraction", "hub.publish", "hub.space", "hub.staging"),
    *("study.jobs", "study.report", "training.dry_run", "training.output", "training.phases", "training.validation"),
)


def import_packages() -> None:
    """Import what takes seconds and what scripts need in most cases."""
    import accelerate.commands.accelerate_cli  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401
    import PIL.Image
    import scipy.io
    import scipy.optimize  # noqa: F401
    import sklearn.linear_model
    import sklearn.manifold  # noqa: F401
    import torch.distributed.run
    import torch.utils.data
    import torch.utils.tensorboard
    import torchaudio  # noqa: F401
    import torchvision  # noqa: F401
    import transformers
    from transformers import AutoModel, AutoProcessor, BertConfig, BertModel, ViTModel  # noqa: F401

    for name in OUR_MODULES:
        importlib.import_module(f"xmodal_hf.{name}")
    PIL.Image.init()
    # The first checkpoint that a process writes takes a second more: here, once for all.
    transformers.utils.logging.disable_progress_bar()
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        BertModel(config).save_pretrained(folder)
    transformers.utils.logging.enable_progress_bar()
    # The processes share the memory of what has been imported: a collection of garbage would copy all of it.
    gc.collect()
    gc.freeze()


def serve(folder: str, listener: socket.socket) -> Callable[[], Any] | None:
    """Fork a process for each request.

    Args:
        folder: Folder of the socket.
        listener: Socket on which clients connect.

    Returns:
        In each process that was asked for: what it runs. In the server, at the end of its standard input: None.
    """
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 1)
        reap()
        if sys.stdin in ready:
            return None
        if listener in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return start(connection, os.path.join(folder, "bin", "python"))
            connection.close()


def reap() -> None:
    """Collect the processes that have ended, and with them their processor times."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start(connection: socket.socket, executable: str) -> Callable[[], Any]:
    """Fork the process that a client asks for; this one waits for it and reports its end, and never returns."""
    message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
    child = os.fork()
    if child:
        report(connection, child)
        os._exit(0)
    connection.close()
    content = json.loads(message)
    for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *descriptors]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(content["folder"])
    os.environ.clear()
    os.environ.update(content["environment"])
    if "HF_ENDPOINT" in os.environ:
        read_hub_variables()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return lambda: run(content["command"], executable)


def read_hub_variables() -> None:
    """Have the clients of the Hub take address, caches and mode from the environment, as at the start of Python."""
    import datasets.config
    import huggingface_hub
    import transformers.utils.hub

    importlib.reload(huggingface_hub.constants)
    importlib.reload(datasets.config)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    transformers.utils.hub._hf_api = None  # keeps the address at which it was made


def report(connection: socket.socket, child: int) -> None:
    """Send the id of a process and, when it has ended, its status."""
    with contextlib.suppress(BrokenPipeError):  # the client is gone
        connection.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{status}\n".encode())


def fork_interpreter(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Take the place of `multiprocessing.util.spawnv_passfds`, which starts an interpreter: fork this process instead.

    Args:
        path: Path of the interpreter.
        arguments: Its command line, with `-c` and code.
        passed: File descriptors that stay open.

    Returns:
        Id of the new process.
    """
    child = os.fork()
    if child == 0:
        kept = [*sorted({0, 1, 2, *map(int, passed)}), os.sysconf("SC_OPEN_MAX")]
        for number, following in itertools.pairwise(kept):
            os.closerange(number + 1, following)
        option = arguments.index("-c")
        sys.argv = [arguments[option], *arguments[option + 2 :]]
        with contextlib.suppress(SystemExit):
            exec(arguments[option + 1], {"__name__": "__main__"})
        os._exit(0)
    return child


def run(command: list[str], executable: str) -> None:
    """Run a command as the main module."""
    sys.executable = executable
    multiprocessing.util.spawnv_passfds = fork_interpreter
    first, *arguments = (word for number, word in enumerate(command) if number or word != "-u")  # -u: of torchrun
    if first in ("-c", "-m"):
        (what, *arguments), sys.path[0] = arguments, os.getcwd()
    sys.argv = [first, *arguments]
    if first == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


def main(arguments: list[str]) -> None:
    """Serve, or stand in for an interpreter."""
    if arguments[0] == "--client":
        stand_in(arguments[1], arguments[2:])
    import_packages()
    program = serve(arguments[0], socket.socket(fileno=int(arguments[1])))
    if program is not None:
        program()


if __name__ == "__main__":
    main(sys.argv[1:])
