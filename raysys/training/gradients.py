"""Gradients of the global batch: summed over workers, divided by its weight, clipped."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raysys.errors import ConfigError
from raysys.training.world import World


def embedding_tables(model: nn.Module) -> dict[nn.Parameter, bool]:
    """Weights of all embeddings, and whether each was built with `sparse=True`."""
    return {
        cast(nn.Parameter, module.weight): module.sparse
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }


def sparse_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Weights of embeddings built with `sparse=True`: only rows in use have a gradient."""
    return {table for table, sparse in embedding_tables(model).items() if sparse}


class GradientExchange:
    """One all-reduce per step for all dense gradients and a few numbers.

    The buffer's layout never changes, so for a given world size the order of additions, and
    with it every bit of the sum, is the same before and after a resumption. (DDP rebuilds its
    buckets after the first step and so does not give that for three workers or more; nor can
    it divide by a weight known only after the forward pass, or carry our flags along.)
    Gradients of sparse embeddings travel as the rows that are not zero.
    """

    def __init__(self, model: nn.Module, world: World, numbers: int) -> None:
        """Lay out the buffer for the trainable parameters of `model` and `numbers` scalars.

        Raises:
            ConfigError: a trainable parameter is not float32.
        """
        self.world = world
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in trainable.items():
            if parameter.dtype != torch.float32:
                raise ConfigError(
                    f"parameter {name} is {parameter.dtype}: trainable parameters must be "
                    "float32 (precision=bf16 computes in bfloat16 by autocast)"
                )
        rows = sparse_parameters(model)
        self.dense = [p for p in trainable.values() if p not in rows]
        self.sparse = [p for p in trainable.values() if p in rows]
        size = sum(p.numel() for p in self.dense) if world.size > 1 else 0
        self.buffer = torch.zeros(size + numbers, dtype=torch.float32, device=world.device)
        self.numbers = self.buffer[size:]
        self.views: list[Tensor] = []
        if world.size > 1:
            parts = torch.split(self.buffer[:size], [p.numel() for p in self.dense])
            self.views = [v.view_as(p) for v, p in zip(parts, self.dense, strict=True)]

    def sum(self) -> list[float]:
        """Sum gradients and `self.numbers` over the workers; gives the summed numbers.

        A dense parameter that no row used gets a zero gradient, on one worker as on many.
        """
        if self.world.size == 1:
            for parameter in self.dense:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        else:
            for parameter, view in zip(self.dense, self.views, strict=True):
                if parameter.grad is None:
                    view.zero_()
                else:
                    view.copy_(parameter.grad)
                parameter.grad = view
            dist.all_reduce(self.buffer)
        if self.sparse:
            self._sum_sparse()
        return self.numbers.tolist()

    def scale(self, factor: float, clip_norm: float | None) -> float:
        """Multiply by `factor`, then clip to the norm if one is given.

        Gives the norm before clipping; it is finite only if every gradient is.
        """
        grads = [p.grad for p in self.dense if p.grad is not None]
        grads += [p.grad._values() for p in self.sparse if p.grad is not None]
        norms = torch._foreach_norm(grads)
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) * factor
        if clip_norm is not None:
            factor *= min(1.0, clip_norm / (norm + 1e-6))
        torch._foreach_mul_(grads, factor)
        return norm

    def _sum_sparse(self) -> None:
        for parameter in self.sparse:
            grad = parameter.grad
            if grad is None:
                grad = torch.zeros_like(parameter, layout=torch.sparse_coo)
            grad = grad.coalesce()
            # Rows may be looked up and then masked or not chosen. How many are depends on how the
            # batch was cut, so they do not count: a row is used if its gradient is not zero.
            used = grad.values().any(1)
            indices, values = grad.indices()[0][used], grad.values()[used]
            if self.world.size > 1:
                indices = torch.cat(self.world.gather_ragged(indices))
                values = torch.cat(self.world.gather_ragged(values))
            parameter.grad = torch.sparse_coo_tensor(
                indices[None],
                values,
                parameter.shape,
                check_invariants=False,
                is_coalesced=self.world.size == 1,
            ).coalesce()


class ShardedExchange:
    """`GradientExchange` of a model cut by `raysys.training.sharding`.

    Its gradients were summed on their way back, slice by slice; here go only the numbers.
    """

    def __init__(self, model: nn.Module, world: World, numbers: int) -> None:
        """As `GradientExchange`.

        Raises:
            ConfigError: the model has embeddings built with `sparse=True`.
        """
        if sparse_parameters(model):
            raise ConfigError("train.parallel=fsdp does not go with sparse embeddings")
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.numbers = torch.zeros(numbers, dtype=torch.float32, device=world.device)

    def sum(self) -> list[float]:
        """Sum `self.numbers` over the workers."""
        for parameter in self.trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(self.numbers)
        return self.numbers.tolist()

    def scale(self, factor: float, clip_norm: float | None) -> float:
        """As `GradientExchange.scale`; the norm is that of the whole gradient."""
        grads = [cast(DTensor, p.grad).to_local() for p in self.trainable]
        norms = [torch.linalg.vector_norm(grad) for grad in grads if grad.numel()]
        square = torch.stack([self.numbers.new_zeros(()), *norms]).square().sum()
        dist.all_reduce(square)
        norm = float(square.sqrt()) * factor
        if clip_norm is not None:
            factor *= min(1.0, clip_norm / (norm + 1e-6))
        torch._foreach_mul_(grads, factor)
        return norm
