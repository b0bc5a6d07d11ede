"""tools/campaign.py inputs: a short run finds nothing, and what is planted is found."""
import json
import pickle
import random

import numpy as np
import pytest

from tools.campaigns.inputs.mutate import mutate
from tools.campaigns.inputs.raw import Payload
from tools.campaigns.inputs.values import means_of
from tools.campaigns.tool_server import run_tool
from utils.files import read_json

PLANTED = """
import ctypes, pickle, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from tools.campaigns.inputs import trial

def eats(begin):
    begin()
    return np.ones(90_000_000).sum()  # 700 MB

def runs(begin):
    begin()
    raise KeyError("a")

def dies(begin):
    ctypes.string_at(0)

def hangs(begin):
    begin()
    while True: pass

def refuses(begin):
    begin()
    raise ValueError("refused")

trial.MOST_MEMORY = 3 * 2**28
def reads(begin):
    begin()  # so that its memory is counted from here
    return [1, "a"]

cases = [reads, runs, refuses, dies, eats, reads]
for some, seconds in ((cases, 50), ([hangs], 1)):
    for outcome in trial.try_cases(some, Path(sys.argv[1]), seconds):
        print(outcome.fault or outcome.error or outcome.value[:8])
"""


def test_a_short_run_over_what_takes_no_model_finds_nothing(tmp_path):
    done = run_tool("campaign", "inputs", "--quick", "--seconds", 150, "--output", tmp_path, seconds=190)
    report = read_json(tmp_path / "inputs" / "findings.json")
    assert (done.returncode, report["findings"]) == (0, []), done.stderr
    assert sum(report["tried"].values()) == len(report["tried"]) == 13


def test_tracebacks_deaths_hangs_and_memory_are_noticed_and_the_next_case_goes_on(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(root=str(run_tool.__globals__["ROOT"])))
    done = run_tool(script, tmp_path, seconds=190)
    first, *others, last, hung = done.stdout.split()
    assert [*others, hung] == ["traceback", "refused", "crash", "memory", "hang"], done.stderr
    assert first == last


def test_the_payload_of_a_pickle_makes_the_canary(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("data", [b"abc", json.dumps({"a": [1, {"b": 2}]}).encode(), b"MODEL:\n  NAME: x\n",
                                  pickle.dumps(np.eye(3))])
def test_damage_is_a_function_of_the_draw_and_changes_the_file(tmp_path, data):
    made = [[mutate(data, random.Random(seed), means_of(tmp_path / "canary", [b"other"])) for seed in range(60)]
            for _ in range(2)]
    assert made[0] == made[1]
    assert len({changed for changed, _ in made[0]}) > 20
    assert sum(changed == data for changed, _ in made[0]) < 15
    assert not (tmp_path / "canary").exists()
