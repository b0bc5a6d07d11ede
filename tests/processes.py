"""Starting several processes that belong together, with torchrun or by hand."""
import os
import socket
import subprocess
import sys
import time


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


def start_by_hand(command, processes, folder):
    """The same without torchrun, which ends all processes when one dies; stderr goes to RANK.err in the folder."""
    port, running = str(free_port()), []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank),
               "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": port}
        with open(folder / f"{rank}.err", "w") as errors:
            running.append(subprocess.Popen([sys.executable, *command], stderr=errors, text=True, env=env))
    return running


def processes_by_hand(folder, processes, script):
    """Exit codes, what they wrote to stderr, and the seconds that all took."""
    (folder / "script.py").write_text(script)
    begun = time.monotonic()
    running = start_by_hand([str(folder / "script.py"), str(folder)], processes, folder)
    try:
        codes = [process.wait(timeout=90) for process in running]
    finally:
        for process in running:
            process.kill()
    errors = []
    for rank in range(processes):
        errors.append((folder / f"{rank}.err").read_text())
        (folder / f"{rank}.err").unlink()
    return codes, errors, time.monotonic() - begun
