"""The group of workers that train one model: who we are, and the few collectives we need."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raysys.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Rank of this process, number of workers, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls, device: str = "auto") -> "World":
        """The initialised torch.distributed group, or a world of one.

        Raises:
            ConfigError: `device` is cuda and there is no GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("train.device=cuda, but torch sees no GPU; use device=cpu or auto")
        where = torch.device("cpu")
        if device != "cpu" and torch.cuda.is_available():
            where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), where)
        return cls(0, 1, where)

    @property
    def leads(self) -> bool:
        """True on the one worker that writes files."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This worker's contiguous share of `count` rows; shares differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, part: np.ndarray) -> np.ndarray:
        """Parts [n_rank, ...] of all workers, concatenated in rank order, on every worker."""
        if self.size == 1:
            return part
        tensor = torch.from_numpy(np.ascontiguousarray(part))
        return torch.cat(self.gather_ragged(tensor)).numpy()

    def share(self, value: Any) -> Any:
        """Rank 0's `value` on every worker (any picklable object; sent, never stored)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with rank 0's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def gather_rows(self, row: Tensor) -> Tensor:
        """Equal-length CPU tensors [n] of all workers as [world, n]."""
        if self.size == 1:
            return row[None]
        out = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(out, row)
        return torch.stack(out)

    def gather_with_gradient(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows [n_rank, D] of all workers as [sum of counts, D], in rank order.

        counts: rows of each worker, the same list on every one. Gradients flow back to whoever
        gave a row, summed over the workers.
        """
        if self.size == 1:
            return rows
        return _Gather.apply(rows, tuple(counts), self.rank)

    def gather_ragged(self, tensor: Tensor) -> list[Tensor]:
        """Tensors [n_rank, ...] of all workers, in rank order; lengths may differ."""
        counts = self.gather_rows(torch.tensor([len(tensor)])).flatten().tolist()
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts, strict=True)]


class _Gather(torch.autograd.Function):
    """All-gather forwards; backwards the sum of what every worker wants of our rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
        ctx.begin, ctx.count = sum(counts[:rank]), counts[rank]
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.count], None, None
