"""The processes that share a piece of work: alone, or several under torchrun."""
from __future__ import annotations

import contextlib
import datetime
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.process import LostWorker

# Others may wait while a process does something long, such as extracting features; a lost one is noticed at once.
_LOST = ("peer", "connect", "closed", "reset", "timed out", "timeout", "aborted", "remote process")
_TIMEOUT = datetime.timedelta(hours=12)


class Workers:
    """`rank` of `size` processes. Collective calls must be made by all of them in the same order.

    Raises (every collective call):
        LostWorker: another process has died or gone away.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._lent: dict[int, Tensor] = {}

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes files."""
        return self.rank == 0

    def device(self, device: torch.device | str) -> str:
        """`device`, or the CUDA device of this process if several processes share the work on CUDA."""
        shared = self.size > 1 and torch.device(device).type == "cuda"
        return f"cuda:{torch.cuda.current_device()}" if shared else str(device)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Let every process have the source's values in `tensor`, in place."""
        if self.size > 1:
            contiguous = tensor.contiguous()
            with self.exchange(contiguous):
                dist.broadcast(contiguous, source)
            if contiguous is not tensor:
                tensor.copy_(contiguous)

    def broadcast_rows(self, tensors: tuple[Tensor, ...] | None, source: int) -> tuple[Tensor, ...]:
        """The source's tensors [n, ...], whose lengths and types the others do not know; None elsewhere."""
        if self.size == 1:
            assert tensors is not None
            return tensors
        kinds = self.gather_objects([(tuple(t.shape), t.dtype, t.device.type) for t in tensors or ()])[source]
        if self.rank != source:
            tensors = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in kinds)
        for tensor in tensors:
            self.broadcast(tensor, source)
        return tensors

    def gather(self, tensor: Tensor, target: int) -> list[Tensor]:
        """A tensor of the same shape from each process, at the target; [] elsewhere."""
        if self.size == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == target else []
        with self.exchange(tensor, *gathered):
            dist.gather(tensor, gathered or None, target)
        return gathered

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of the same shape from each process, everywhere, without gradients."""
        if self.size == 1:
            return [tensor]
        contiguous = tensor.contiguous()
        gathered = [torch.empty_like(contiguous) for _ in range(self.size)]
        with self.exchange(contiguous, *gathered):
            dist.all_gather(gathered, contiguous)
        return gathered

    def gather_objects(self, item: Any) -> list[Any]:
        """A picklable object from each process, everywhere. Only of this run's processes, never from a file."""
        if self.size == 1:
            return [item]
        data = torch.frombuffer(bytearray(pickle.dumps(item)), dtype=torch.uint8)
        lengths = [int(length) for length in self.all_gather(torch.tensor(len(data)))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        return [pickle.loads(row[:length].numpy().tobytes())
                for row, length in zip(self.all_gather(padded), lengths, strict=True)]

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process. CPU tensors travel: no CUDA device is waited for."""
        if self.size == 1:
            return list(flags)
        merged = torch.tensor(flags, dtype=torch.uint8)
        with self.exchange(merged):
            dist.all_reduce(merged, dist.ReduceOp.MAX)
        return [bool(flag) for flag in merged]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, in place, on whatever device."""
        if self.size > 1:
            with self.exchange(tensor):
                dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """[B, ...] of each process, stacked in the order of ranks: [size * B, ...], with gradients.

        Every process must compute the same from the result. The gradient is made for a mean over the processes, as
        DistributedDataParallel takes it: its rows of this process, times the number of processes.
        """
        return tensor if self.size == 1 else _GatherRows.apply(tensor, self)

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    @contextlib.contextmanager
    def exchange(self, *tensors: Tensor) -> Iterator[None]:
        """Within: tensors are exchanged, and what torch raises because another process is gone becomes a LostWorker.

        The tensors are kept for as long as gloo's threads have them. These let go of a tensor at some time after its
        exchange, for which they need Python's lock if nobody else has it; but the end of the process group waits for
        these threads with that lock held (torch 2.4: by the group itself, 2.11: by DistributedDataParallel), forever.
        """
        self._lent = {key: tensor for key, tensor in self._lent.items() if tensor._use_count() > 1}
        self._lent |= {id(tensor): tensor for tensor in tensors}
        try:
            yield
        except LostWorker:
            raise
        except RuntimeError as error:
            if self.size == 1 or not any(word in str(error).lower() for word in _LOST):
                raise
            raise LostWorker(
                f"process {self.rank} of {self.size}: another process is gone, so this one stops, too; nothing was "
                f"written. Look for the first error above, then start again ({str(error).splitlines()[0]})") from error


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, workers: Workers) -> Tensor:
        ctx.workers = workers
        return torch.cat(workers.all_gather(tensor))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.chunk(ctx.workers.size)[ctx.workers.rank] * ctx.workers.size, None


ALONE = Workers()


@contextlib.contextmanager
def worker_group() -> Iterator[Workers]:
    """The processes that torchrun started, or this one alone.

    CPU tensors travel through gloo, CUDA tensors through NCCL; each process takes the CUDA device of its local rank.
    A model that is wrapped for the group is to be closed within (`Training.close`), so that the group ends here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    workers = Workers(dist.get_rank(), dist.get_world_size())  # it must outlive the group, see `exchange`
    try:
        yield workers
    finally:
        dist.destroy_process_group()


class Replicas(nn.DataParallel):
    """A module copied to several devices of this process for each batch.

    torch's DataParallel passes autocast on to its threads without the type: bfloat16 would become float16 there.

    Args:
        module: on the first device.
        devices: all of them.
        autocast: makes the context of a replica's forward pass.
    """

    def __init__(self, module: nn.Module, devices: list[torch.device],
                 autocast: Callable[[], contextlib.AbstractContextManager]):
        super().__init__(module, device_ids=devices)
        self._autocast = autocast

    def parallel_apply(self, replicas: list[nn.Module], inputs: Any, kwargs: Any) -> list[Any]:
        return super().parallel_apply([self._in_autocast(replica) for replica in replicas], inputs, kwargs)

    def _in_autocast(self, replica: nn.Module) -> Callable:
        def forward(*inputs: Any, **kwargs: Any) -> Any:
            with self._autocast():
                return replica(*inputs, **kwargs)
        return forward
