"""The processes that share a piece of work: alone, or several under torchrun."""
from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.process import LostWorker, Stopped

# Others may wait while a process does something long, such as extracting features; a lost one is noticed at once.
_LOST = ("peer", "connect", "closed", "reset", "timed out", "timeout", "aborted", "remote process")
_TIMEOUT = datetime.timedelta(hours=12)
_JOINING = datetime.timedelta(minutes=30)  # in which all processes have to come; torchrun begins them at once
SILENCE = 600.0  # seconds after which a process that gives no sign of life is given up


class Pulse:
    """Tells which of the processes are there, whatever their work is at, and ends this one when another is not.

    A thread of each counts a number up in the group's store (torchrun keeps it, or process 0) and reads the others'.
    A process that was killed, stopped or cut off counts no more; one that works for hours does. If a number stays for
    `silence` seconds, this process ends with a line that names the other, and exit code 2: its own work waits in a
    library, which cannot be interrupted. A process that was stopped itself does not count that time.
    """

    _ENDED, _FAILED = 1 << 40, 1 << 50  # added to a number at the end: well, or because of others; by an own error
    _PATIENCE = 1.5                     # seconds in which a process that is there counts, on a busy machine too
    _groups = itertools.count()         # of this process, one after another in the same store

    def __init__(self, rank: int, size: int, silence: float) -> None:
        self.rank, self.size, self.silence = rank, size, silence
        self.period = min(max(0.5, size * size / 2000), silence / 8)  # the store answers some thousand times a second
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False,
                                    timeout=datetime.timedelta(minutes=5))
        run = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._key = f"pulse/{'/'.join(run)}/{next(self._groups)}"
        self._store.set(f"{self._key}/at/{rank}", _own_address(host, port))
        self._places = [self._store.get(f"{self._key}/at/{other}").decode() for other in range(size)]
        self._numbers, self._heard = [0] * size, [time.monotonic()] * size
        self._is_broken = False  # whoever keeps the store has ended
        self._end = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    def close(self, failed: bool = False) -> None:
        """Stop counting and watching; failed: by an error of this process, which ends the others, too."""
        self._end.set()
        self._threads[0].join(self.period * 4)  # it may wait for a store that cannot be reached
        farewell = threading.Thread(target=self._count, args=(self._FAILED if failed else self._ENDED,), daemon=True)
        if not self._threads[0].is_alive() and not self._is_broken:
            farewell.start()
            farewell.join(self.period * 4)

    def name_lost(self, hint: str = "") -> str:
        """Which processes are gone, in words, as far as it can be told; it takes some seconds.

        Args:
            hint: what a library said; an address in it tells processes of several machines apart.
        """
        # What a lost one counted just before its end is read first: it would seem to be there.
        enough, own = time.monotonic() + max(self._PATIENCE, 3 * self.period), self._numbers[self.rank]
        self._sleep_until(lambda: self._numbers[self.rank] >= own + 2 or time.monotonic() > enough)
        asked = time.monotonic()
        self._sleep_until(lambda: time.monotonic() >= asked + max(self._PATIENCE, 3 * self.period))
        failed = [other for other in range(self.size) if self._numbers[other] >= self._FAILED]
        gone = failed or [other for other in range(self.size) if other != self.rank and self._heard[other] < asked
                          and self._numbers[other] < self._ENDED]
        at_place = [other for other in gone if f"[{self._places[other]}]" in hint]
        return self._describe(at_place or gone)

    def _sleep_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over() and not self._is_broken:
            time.sleep(self.period / 4)

    def _describe(self, lost: list[int]) -> str:
        """process 1 (10.0.0.2)"""
        return " or ".join(f"process {other} ({self._places[other]})" for other in lost) or "another process"

    def _beat(self) -> None:
        while not self._end.wait(self.period):
            self._count(1)

    def _count(self, step: int) -> None:
        for other in range(self.size):
            try:
                number = self._store.add(f"{self._key}/{other}", step if other == self.rank else 0)
            except RuntimeError:  # its keeper has ended; a collective call will tell what that means
                self._is_broken = True
                self._end.set()
                return
            if number != self._numbers[other]:
                self._numbers[other], self._heard[other] = number, time.monotonic()

    def _watch(self) -> None:
        step, woke = self.silence / 40, time.monotonic()
        while not self._end.wait(step):
            slept, woke = time.monotonic() - woke, time.monotonic()
            if slept > 4 * step:  # this process was stopped
                self._heard = [heard + slept for heard in self._heard]
            silent = [other for other in range(self.size) if other != self.rank
                      and self._numbers[other] < self._ENDED and woke - self._heard[other] > self.silence]
            if silent:
                self._give_up(silent)

    def _give_up(self, silent: list[int]) -> None:
        message = (f"error: process {self.rank} of {self.size}: nothing was heard of {self._describe(silent)} for "
                   f"{self.silence:g} s (SOLVER.DIST_TIMEOUT), so this one stops; it was stopped, or the network is "
                   "down. What was saved is kept; start again with --resume")
        logging.getLogger("traceback").debug("%s", message)
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        os._exit(2)


def _own_address(host: str, port: int) -> str:
    """This machine's address on the way to another; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)
        return way.getsockname()[0]


class Workers:
    """`rank` of `size` processes. Collective calls must be made by all of them in the same order.

    Raises (every collective call):
        LostWorker: another process has died or gone away.
    """

    def __init__(self, rank: int = 0, size: int = 1, pulse: Pulse | None = None):
        self.rank, self.size, self._pulse = rank, size, pulse
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
            reason = str(error).splitlines()[0]
            lost = "another process" if self._pulse is None else self._pulse.name_lost(reason)
            raise LostWorker(
                f"process {self.rank} of {self.size}: {lost} is gone, so this one stops, too; nothing was "
                f"written. Look for the first error above, then start again ({reason})") from error


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
def worker_group(silence: float = SILENCE) -> Iterator[Workers]:
    """The processes that torchrun started, or this one alone.

    silence: seconds without a sign of life of another process after which this one ends.

    CPU tensors travel through gloo, CUDA tensors through NCCL; each process takes the CUDA device of its local rank.
    A model that is wrapped for the group is to be closed within (`Training.close`), so that the group ends here.
    Raises:
        LostWorker: another process has not come, or died before all were together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    pulse = _join(silence)
    workers = Workers(pulse.rank, pulse.size, pulse)  # it must outlive the group, see `exchange`
    failed = True
    try:
        yield workers
        failed = False
    except (LostWorker, Stopped, KeyboardInterrupt, SystemExit):
        failed = False
        raise
    finally:
        pulse.close(failed)
        dist.destroy_process_group()


def _join(silence: float) -> Pulse:
    """Come together with the other processes."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_JOINING))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.PrefixStore("group", store),
                                rank=rank, world_size=size, timeout=_TIMEOUT)
        store.set_timeout(_TIMEOUT)  # NCCL asks it at the first exchange, for which another may be late
        return Pulse(rank, size, silence)
    except RuntimeError as error:  # torch's, of a process that has not come, or of a store that is not there any more
        if dist.is_initialized():
            dist.destroy_process_group()
        reason = str(error).strip().splitlines()[0]
        raise LostWorker(f"process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: the processes did not come "
                         "together, so this one stops, too; nothing was written. Look for the first error above, then "
                         f"start again ({reason})") from error


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
