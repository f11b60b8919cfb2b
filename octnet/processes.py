"""The training processes of a run: one or many, this file alone knows the difference."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among the `world` of them, and its device. Collective calls: all processes make them, in one order."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; on the CPU, so that no GPU is waited for."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(int(flag))))

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model to train: gradients are averaged over the processes."""
        if self.world == 1:
            return model
        # channels_last kernels of 1×1 have two valid strides; which one DDP's copy has makes no difference
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def accumulate(self, model: nn.Module, last: bool) -> Any:
        """A context for one backward pass: only the last of a step averages gradients."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's batch-norm statistics: those that are evaluated and saved."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def first_before_others(self, f: Callable[[], Any]) -> Any:
        """f(), by the first process before the others (it may download)."""
        result = f() if self.first else None
        self.any(False)
        return result if self.first else f()


@contextmanager
def join(gpu: bool, many: bool) -> Iterator[Processes]:
    """This process's place among those that TorchElastic started, if there are `many`, until the end of the block."""
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")) if many else (0, 1, 0)
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield Processes(rank, world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()
