"""Exponential moving average of a model's weights and running statistics."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after every step, for parameters and float buffers.

    The decay grows as (1 + steps) / (10 + steps) up to its value, so that the first weights are soon forgotten;
    integer buffers are copied.

    Args:
        model: on its device; its weights at this moment are the first average.
        decay: in 0..1, such as 0.999.
    Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, sec. 2; the growing decay is
    that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self._weights = model.state_dict()  # shares memory with the model
        self._average = {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats = [name for name, tensor in self._weights.items() if tensor.is_floating_point()]
        average = [self._average[name] for name in floats]
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, [self._weights[name] for name in floats], alpha=1 - decay)
        for name in self._weights.keys() - set(floats):
            self._average[name].copy_(self._weights[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the model has the average; afterwards its own weights again, to the bit."""
        own = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, source: dict[str, Tensor]) -> None:
        for name, tensor in self._weights.items():
            tensor.copy_(source[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
