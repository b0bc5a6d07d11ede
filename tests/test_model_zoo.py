"""The listing of the zoo."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.backbones import BACKBONES, build_backbone
from model.zoo import multiply_adds

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("name", "published"), [("resnet18", 1.81), ("resnet50", 4.09), ("efficientnet_b0", 0.39)])
def test_multiply_adds_are_the_published_ones(name, published):
    """At 224 x 224 and stride 2, without the classifier of 1000 classes (2 M at most)."""
    with torch.device("meta"):
        net = build_backbone(name, last_stride=2).eval()
    assert multiply_adds(net, (224, 224)) / 1e9 == pytest.approx(published, rel=0.015)


@pytest.mark.slow
def test_the_tool_prints_every_model_with_its_figures():
    run = subprocess.run([sys.executable, "tools/train.py", "--list-models"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    header, *rows = run.stdout.splitlines()
    assert header.split()[0] == "MODEL.NAME"
    assert [row.split()[0] for row in rows[: len(BACKBONES)]] == list(BACKBONES)
    (resnet50,) = [row.split() for row in rows if row.startswith("resnet50 ")]
    assert resnet50[1:4] == ["23.5", "4.05", "2048"]
    assert resnet50[4].startswith("https://download.pytorch.org/")
    # The document has the printed table.
    assert run.stdout.strip() in (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
