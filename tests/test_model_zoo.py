"""The listing of the zoo."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.backbones import BACKBONES, build_backbone
from model.published import LAYOUTS
from model.published.checkpoints import SOURCES, format_checkpoints, list_checkpoints
from model.zoo import multiply_adds

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("name", "published"), [("resnet18", 1.81), ("resnet50", 4.09), ("efficientnet_b0", 0.39)])
def test_multiply_adds_are_the_published_ones(name, published):
    """At 224 x 224 and stride 2, without the classifier of 1000 classes (2 M at most)."""
    with torch.device("meta"):
        net = build_backbone(name, last_stride=2).eval()
    assert multiply_adds(net, (224, 224)) / 1e9 == pytest.approx(published, rel=0.015)


def test_published_weights_name_a_known_layout_and_source_and_an_address_each():
    rows = list_checkpoints()
    assert {row.layout for row in rows} <= set(LAYOUTS)
    assert {row.source for row in rows} == set(SOURCES)
    assert all(row.url.startswith("https://") for row in rows)
    files = [row.url for row in rows if row.source != "SOLIDER"]  # one file there is for two sets
    assert len(set(files)) == len(files)
    assert not any("Duke" in row.trained_on for row in rows)


def test_published_figures_are_percentages_with_their_recipe_and_said_not_to_be_ours():
    for row in list_checkpoints():
        assert (row.mAP == "") == (row.rank1 == "")
        assert not row.mAP or (0 < float(row.mAP) < float(row.rank1) < 100 and row.recipe)
    assert "not measured here" in format_checkpoints().splitlines()[0]
    assert "withdrawn" in format_checkpoints().splitlines()[-1]


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
    # The document has the printed tables.
    for table in run.stdout.strip().split("\n\n"):
        assert table in (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
