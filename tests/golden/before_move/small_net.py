"""A net of two convolutions, and a way to run a tool with it: python small_net.py tools/train.py WORD ..."""
import runpy
import sys
from pathlib import Path

from torch import nn

NAME = "small_net"


def add_to(backbones):
    """Put the net into model.backbones.BACKBONES."""
    from model.backbones import Backbone

    class SmallNet(Backbone):
        feat_dim = 8

        def __init__(self, last_stride=1):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8)
            self.layer1 = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

        def forward(self, x):
            return self.layer1(self.bn1(self.conv1(x)))

    backbones[NAME] = SmallNet


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from model.backbones import BACKBONES

    add_to(BACKBONES)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
