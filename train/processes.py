"""Processes that ``torchrun`` started share a batch; torch shares the machine's threads. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from cgd_deploy.errors import InputError
from cgd_deploy.hardware.cpu import available_threads
from cgd_deploy.pictures.images import ImageList


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the count of processes; a single process communicates with none."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, length: int) -> slice:
        """The part of ``length`` things for this process; raises InputError if the parts would differ in length."""
        if length % self.count:
            raise InputError(
                f"a batch of {length} pictures cannot be shared among {self.count} processes; "
                "choose classes and pictures per batch whose product the processes divide."
            )
        share = length // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def share(self, images: ImageList) -> ImageList:
        """Every ``count``-th picture, from number ``rank`` on."""
        return images.subset(range(self.rank, len(images), self.count))

    def gather(self, part: Tensor) -> Tensor:
        """[n, ...] of every process -> [count * n, ...] in every process, differentiable; see ``average_gradients``."""
        return part if self.count == 1 else _Gather.apply(part, self)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Average gradients over processes: the gradients of the whole batch if the loss was computed on ``gather``."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for waiting in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
            waiting.wait()
        torch._foreach_div_(gradients, self.count)

    def collect(self, thing: Any) -> list[Any]:
        """The ``thing`` of every process, by rank."""
        if self.count == 1:
            return [thing]
        things = [None] * self.count
        distributed.all_gather_object(things, thing)
        return things


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, processes: Processes) -> Tensor:
        ctx.processes, ctx.length = processes, len(part)
        parts = [torch.empty_like(part) for _ in range(processes.count)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every process has the same gradient of the whole batch. Multiply, because averaging divides by count.
        start = ctx.processes.rank * ctx.length
        return gradients[0][start : start + ctx.length] * ctx.processes.count, None


def share_threads(threads: int | None = None) -> None:
    """Let torch use ``threads``; None: torch's own choice, but at most the CPU quota, which torch does not see."""
    if threads or available_threads() < torch.get_num_threads():
        torch.set_num_threads(threads or available_threads())


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this process alone; they use NCCL on GPUs and gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
