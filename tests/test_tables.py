"""The names of a builder's table and the choices of the config key that picks from it are the same."""
import re

import pytest

from configs import ConfigError, load_cfg
from loss.make_loss import METRIC_LOSSES, SAMPLERS
from model.classifiers import CLASSIFIERS
from model.heads import GATES
from model.pooling import POOLINGS
from solver.make_optimizer import SCHEDULERS

TABLES = {
    "DATALOADER.SAMPLER": SAMPLERS,
    "MODEL.ID_LOSS_TYPE": CLASSIFIERS,
    "MODEL.METRIC_LOSS_TYPE": METRIC_LOSSES,
    "MODEL.PCB_GATE": GATES,
    "MODEL.POOLING_METHOD": POOLINGS,
    "SOLVER.LR_SCHEDULER": SCHEDULERS,
}


@pytest.mark.parametrize("key", TABLES)
def test_a_key_takes_the_names_of_its_table_and_no_other(key):
    with pytest.raises(ConfigError, match=re.escape(f"{key}: expected {' | '.join(TABLES[key])}, got nothing-such")):
        load_cfg(None, [key, "nothing-such"])
