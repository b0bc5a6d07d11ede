"""Starting several processes that belong together, with torchrun or by hand."""
import contextlib
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

from tools.campaigns.tool_server import start_tool


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def torchrun_command(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
            "--master_port", str(free_port())]


def processes_under_torchrun(folder, processes, script):
    """Run a script, which is given the folder's name, in so many processes."""
    (folder / "script.py").write_text(script)
    command = [*torchrun_command(processes), str(folder / "script.py"), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)


def start_together(processes, tool, *words, **how):
    """What torchrun starts, without torchrun, which ends all processes when one dies; `how` as start_tool."""
    port, running = free_port(), []
    for rank in range(processes):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running.append(start_tool(tool, *words, env=env, **how))
    return running


def run_together(processes, tool, *words, **how):
    """Exit codes of all, what they wrote to stdout, and to stderr; none is left behind."""
    running = start_together(processes, tool, *words, **how)
    try:
        codes = [process.wait(timeout=90) for process in running]
    finally:
        for process in running:
            process.kill()
    return codes, [process.stdout() for process in running], [process.stderr() for process in running]


def processes_by_hand(folder, processes, script):
    """Exit codes, what they wrote to stderr, and the seconds that all took."""
    (folder / "script.py").write_text(script)
    begun = time.monotonic()
    codes, _, errors = run_together(processes, folder / "script.py", folder)
    return codes, errors, time.monotonic() - begun


def members_of(group):
    """The living processes of a group (Linux)."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(stat.parent.name))
    return members


def wait_for(condition, seconds):
    """Return as soon as condition() is true; fail if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came of waiting for {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def longest_file(size):
    """Within: no file of this process can be longer than so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
