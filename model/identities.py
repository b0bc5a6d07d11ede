"""Fine-tuning with other identities: rows of classifiers and class centres follow the identity's name."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.checkpoint import identity_names

logger = logging.getLogger(__name__)


@torch.no_grad()
def transfer_identities(
    modules: Mapping[str, nn.Module], checkpoint: Mapping, pid_names: Sequence[str], path: object
) -> int:
    """Copy the rows of all identities that a checkpoint knows by name; the others keep what they have.

    A table of identities is a tensor of a classifier or of class centres with one row for each identity.

    Args:
        modules: {key in the checkpoint: module}: "model" for the classifiers, "criterion" for the class centres.
        checkpoint: as the trainer wrote it; `pid_names` are its identities in class order. Averaged weights ("ema")
            come before those of the last step, as everywhere.
        pid_names: the identities of this training, in class order.
        path: the file of the checkpoint, for messages.
    Returns:
        The number of identities that the checkpoint knows.
    """
    old_rows = {name: row for row, name in enumerate(identity_names(checkpoint, path))}
    if not old_rows:
        logger.warning("%s names no identities: classifiers and class centres start anew", path)
        return 0
    pairs = [(row, old_rows[name]) for row, name in enumerate(pid_names) if name in old_rows]
    new, old = (torch.tensor(rows, dtype=torch.long) for rows in (zip(*pairs, strict=True) if pairs else ((), ())))
    tables = []
    for part, module in modules.items():
        saved = [checkpoint.get(name) for name in ((part, "ema") if part == "model" else (part,))]
        state = {key: value for some in saved if isinstance(some, Mapping) for key, value in some.items()}
        source = {str(key).removeprefix("module."): value for key, value in state.items()}
        for key, target in module.state_dict().items():
            is_table = "classifier" in key or key.endswith("centers")
            if is_table and _fits(target, source.get(key), len(pid_names), len(old_rows)):
                target[new.to(target.device)] = source[key][old].to(target)
                tables.append(key)
    logger.info("%s: %d of %d identities are known by name, %d start anew, %d of the file's are gone (%s)", path,
                len(pairs), len(pid_names), len(pid_names) - len(pairs), len(old_rows) - len(pairs),
                ", ".join(tables) or "no table fits")
    if not pairs:
        logger.warning("%s knows none of the identities: its first is %r, here it is %r", path, next(iter(old_rows)),
                       pid_names[0])
    return len(pairs)


def _fits(here: Tensor, there: object, num_here: int, num_there: int) -> bool:
    return isinstance(there, Tensor) and (here.shape, there.shape) == (
        (num_here, *there.shape[1:]), (num_there, *here.shape[1:]))
