"""The commands of tools/ in processes of their own that need not import torch again.

`run_tool` is `subprocess.run([sys.executable, tool, *words])` at a twentieth of the price: the first call starts a
server, this file as a script, which imports what tools import and then forks a process for each line of its input,
{"words": [tool, word ...], "cwd": folder, "env": {name: value}, "seconds": limit, "out": file, "err": file}, and
answers with the exit code. The server itself never computes: a process with threads at work must not be forked.
"""
import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_tool(tool, *words, cwd=ROOT, env=None, seconds=100):
    """A finished process: its exit code (negative: killed by that signal), stdout and stderr.

    tool: a name of tools/, such as "train", or the path of a script.
    env: what is put into its environment.
    seconds: it is killed by SIGALRM when it takes longer.
    """
    path = ROOT / "tools" / f"{tool}.py" if "/" not in str(tool) else Path(tool)
    return _server().run([str(path), *map(str, words)], cwd, env or {}, seconds)


@functools.cache
def _server():
    server = _ToolServer()
    atexit.register(server.close)
    return server


class _ToolServer:
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="tools")
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)

    def run(self, words, cwd, env, seconds):
        out, err = (Path(self._folder.name) / name for name in ("stdout", "stderr"))
        request = {"words": words, "cwd": str(cwd), "env": {name: str(value) for name, value in env.items()},
                   "seconds": seconds, "out": str(out), "err": str(err)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text("utf-8"), err.read_text("utf-8"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()
        self._folder.cleanup()


def _run(request):
    """What the forked process does."""
    os.setsid()  # a group of its own, for signals to all of it
    signal.alarm(request["seconds"])
    for number, name in enumerate((os.devnull, request["out"], request["err"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8", closefd=False, buffering=1)
                                         for number, mode in enumerate("rww"))
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.path.remove(str(ROOT))  # a tool puts it there itself
    sys.argv = request["words"]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # to take all of torch apart again costs as much as to import it


def import_for_tools():
    """Import what the commands import late; no module of ours is left out."""
    import matplotlib.figure  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import processor

    for module in pkgutil.walk_packages(processor.__path__, "processor."):
        importlib.import_module(module.name)
    torch.set_num_threads(1)


def _serve():
    sys.path[0] = str(ROOT)
    import_for_tools()
    gc.freeze()  # a collection in a forked process would copy the memory of all these modules
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve()
