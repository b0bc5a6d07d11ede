"""Exponential moving average of a model's weights and running statistics."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after every step, for parameters and float buffers.

    The decay grows as (1 + steps) / (10 + steps) up to its value, so that the first weights are soon forgotten;
    integer buffers are copied. Nothing here waits for the device.

    Args:
        model: on its device; its weights at this moment are the first average.
        decay: in 0..1, such as 0.999.
    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, sec. 2; the growing decay is
    that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._weights = model.state_dict()  # shares memory with the model
        self._average = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        self._floats = [name for name, tensor in self._weights.items() if tensor.is_floating_point()]
        self._others = [name for name, tensor in self._weights.items() if not tensor.is_floating_point()]
        self.steps = torch.zeros((), dtype=torch.int64, device=next(iter(self._weights.values())).device)

    @torch.no_grad()
    def update(self, taken: Tensor | bool = True) -> None:
        """Take in the weights as they are now.

        Args:
            taken: whether the step was taken (0-d bool on the device); False leaves the average as it is.
        """
        self.steps += taken
        share = (9 / (10 + self.steps)).clamp(min=1 - self.decay) * taken  # 1 - decay, without its rounding
        average = [self._average[name] for name in self._floats]
        change = torch._foreach_sub([self._weights[name] for name in self._floats], average)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(average, change)
        if self._others:
            torch._foreach_copy_([self._average[name] for name in self._others],
                                 [self._weights[name] for name in self._others])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the model has the average; afterwards the weights that it learned again, to the bit."""
        learned = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        self._load(self._average)
        try:
            yield
        finally:
            self._load(learned)

    @torch.no_grad()
    def _load(self, source: dict[str, Tensor]) -> None:
        for name, tensor in self._weights.items():
            tensor.copy_(source[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the names that they have in the model."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], steps: Tensor | int) -> None:
        self.steps.copy_(torch.as_tensor(steps))
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
