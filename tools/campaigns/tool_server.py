"""The commands of tools/, and other scripts, in processes of their own that need not import torch again.

`run_tool` is `subprocess.run([sys.executable, tool, *words])` and `start_tool` `subprocess.Popen` at a twentieth of the
price: the first call starts a server, this file as a script, which imports what tools import and then forks a process
when it is asked to. The server itself never computes, because a process with threads at work must not be forked.

It reads a line of JSON and answers with one: {"words": [script, word ...], "cwd": folder, "env": {name: value},
"seconds": limit, "out": file, "err": file} and start_tool's limits with the new process' pid, a pid with its exit
code, null while it runs, and {"import": [module ...]} when it has imported what there is of them.
"""
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import json
import os
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_SECONDS = 100  # a process that takes longer is killed


def run_tool(tool, *words, **how):
    """A finished process: its exit code (negative: killed by that signal), stdout and stderr. See start_tool."""
    running = start_tool(tool, *words, **how)
    return subprocess.CompletedProcess(running.words, running.wait(), running.stdout(), running.stderr())


def start_tool(tool, *words, cwd=ROOT, env=None, seconds=_SECONDS, limits=None):
    """A process that has begun.

    tool: a name of tools/, such as "train", or the path of a script.
    env: what is put into its environment.
    seconds: it is killed by SIGALRM when it takes longer.
    limits: {"memory": bytes of data it may hold, "is_root": False = it may no longer read and write what it may not}.
    """
    path = Path(tool) if "/" in str(tool) else ROOT / "tools" / f"{tool}.py"
    return _server().start([str(path), *map(str, words)], cwd, env or {}, seconds, limits or {})


def import_in_server(*modules):
    """Let all processes that begin from now on find these modules imported, if they are installed."""
    _server().ask({"import": modules})


def run_logged_by_server(command, log, cwd):
    """utils.process.run_logged for the stages of a pipeline, which are [interpreter, tool, word ...]."""
    done = run_tool(Path(cwd) / command[1], *command[2:], cwd=cwd)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    return done.returncode


def run_logged_by_fork(command, log, cwd):
    """The same in a process that this one has forked itself; a signal, and a log without room, as with run_logged."""
    from utils.process import HeldSignals, die_with_parent

    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb", buffering=0) as kept, HeldSignals() as held:
        parent, (reader, writer) = os.getpid(), os.pipe()
        child = os.fork()
        if not child:
            try:
                die_with_parent(parent)
                for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL),
                                        (signal.SIGHUP, signal.SIG_DFL)):
                    signal.signal(number, handler)
                os.close(reader)
                _run({"words": [str(Path(cwd) / command[1]), *command[2:]], "cwd": cwd, "env": {},
                      "seconds": _SECONDS, "out": f"/dev/fd/{writer}", "err": f"/dev/fd/{writer}", "leads": False})
            finally:
                os._exit(1)  # this copy of the pipeline goes no further, whatever is raised
        os.close(writer)
        try:
            held.release()
            _pass_on(reader, kept)
        except BaseException:
            os.kill(child, signal.SIGTERM)
            _pass_on(reader, kept)
            raise
        finally:
            os.close(reader)
            status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _pass_on(reader, kept):
    while piece := os.read(reader, 1 << 16):
        kept.write(piece)
        sys.stderr.write(piece.decode("utf-8", "replace"))


class Running:
    """A forked process, like subprocess.Popen; it leads a group of its own."""

    def __init__(self, server, words, pid, files):
        self.words, self.pid, self.returncode, self._server, self._files = words, pid, None, server, files

    def poll(self):
        if self.returncode is None:
            self.returncode = self._server.ask(self.pid)
        return self.returncode

    def wait(self, timeout=2 * _SECONDS):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.words, timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:  # the server has not waited for it, so that the pid is still its own
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def stdout(self):
        return self._files[0].read_text("utf-8")

    def stderr(self):
        return self._files[1].read_text("utf-8")


class _Server:
    def __init__(self):
        self._folder, self._numbers = tempfile.TemporaryDirectory(prefix="tools"), itertools.count()
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)

    def start(self, words, cwd, env, seconds, limits):
        number = next(self._numbers)
        out, err = files = [Path(self._folder.name) / f"{number}.{name}" for name in ("out", "err")]
        pid = self.ask({"words": words, "cwd": str(cwd), "env": {name: str(value) for name, value in env.items()},
                        "seconds": seconds, "out": str(out), "err": str(err), **limits})
        return Running(self, words, pid, files)

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()
        self._folder.cleanup()


@functools.cache
def _server():
    server = _Server()
    atexit.register(server.close)
    return server


# ------------------------------------------------------------------ the server
def _serve():
    sys.path[0] = str(ROOT)
    _import_for_tools()
    gc.freeze()  # a collection in a forked process would copy the memory of all these modules
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif "import" in request:
            for module in request["import"]:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
            gc.freeze()
            answer = None
        else:
            answer = os.fork() or _run(request)
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _import_for_tools():
    """Import what commands import late; no module behind them is left out."""
    import matplotlib.figure  # noqa: F401
    import torch
    import torch._dynamo  # by the first optimiser
    import torch.utils.tensorboard

    import processor
    import tools.campaigns  # noqa: F401  by the scripts of tests/

    for module in pkgutil.walk_packages(processor.__path__, "processor."):
        with contextlib.suppress(ImportError):  # of packages that are not installed, as those of a service
            importlib.import_module(module.name)
    draw_no_curves(setattr)
    torch.set_num_threads(1)


def draw_no_curves(set_attribute):
    """Let trainings leave an empty training_curve.png: to draw it takes longer than to train for the epochs of a test.

    tests/test_processor_metrics_log.py has one that draws.
    """
    from processor import trainer
    from utils.files import write_text

    set_attribute(trainer, "draw_curves", lambda folder: write_text(folder / "training_curve.png", ""))


def _run(request):
    """What a forked process does, as a fresh interpreter would."""
    if request.get("leads", True):
        os.setsid()  # a group of its own, for signals to all of it
    signal.alarm(request["seconds"])
    for number, name in enumerate((os.devnull, request["out"], request["err"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False, buffering=1)
        for number, (mode, errors) in enumerate((("r", "strict"), ("w", "strict"), ("w", "backslashreplace"))))
    os.chdir(request["cwd"])
    if "memory" in request:
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
    if not request.get("is_root", True):
        _drop_powers()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # what the server imports may have asked for it, before TMPDIR was known
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):  # the last words
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # to take all of torch apart again costs as much as to import it


def _drop_powers():
    """Root without its capabilities (Linux): files without its permission are closed to it, as to anybody."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    _serve()
