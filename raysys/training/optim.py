"""Optimisers of a model: fused AdamW or SGD, and lazy Adam for embedding rows."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from raysys.errors import ConfigError, ResumeError
from raysys.training.config import TrainConfig
from raysys.training.gradients import embedding_tables
from raysys.training.sharding import sliced_like


class RowAdam(Optimizer):
    """Adam that touches only the rows with a gradient; a table's cost is that of its batch.

    Moments of a row that is not looked up stand still (as in `torch.optim.SparseAdam`, which
    this equals to rounding, in fewer passes over memory). Takes coalesced sparse
    gradients [E, D].
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.int64)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                count = int(state["step"])
                rows, values = parameter.grad._indices()[0], parameter.grad._values()
                mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - first)
                square = state["exp_avg_sq"].index_select(0, rows)
                square.mul_(second).addcmul_(values, values, value=1 - second)
                state["exp_avg"].index_copy_(0, rows, mean)
                state["exp_avg_sq"].index_copy_(0, rows, square)
                # Same arithmetic as Adam: step size and denominator carry the bias corrections.
                size = group["lr"] / (1 - first**count)
                root = square.sqrt_().div_((1 - second**count) ** 0.5).add_(group["eps"])
                parameter.index_add_(0, rows, mean.div_(root), alpha=-size)


class Optimizers:
    """The optimisers of one model as one thing, with a state made of named tensors.

    Weight decay is decoupled with every optimiser: p ← (1 − lr·decay)·p before its update.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        """Args:
        model: its trainable parameters are updated.
        config: optimiser and rates.

        Raises:
            ConfigError: momentum for embeddings built with `sparse=True`.
        """
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        tables = embedding_tables(model)
        dense = [p for p in self.names if not tables.get(p)]
        decayed = [p for p in dense if p.ndim >= 2 and p not in tables]
        sparse = [p for p in self.names if tables.get(p)]
        # torch's SGD couples its weight decay to the gradient, so we do that part ourselves.
        self.decay = config.weight_decay if config.optimizer == "sgd" else 0.0
        self.decayed = decayed
        self.all: list[Optimizer] = []
        if config.optimizer == "adamw":
            groups = [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": [p for p in dense if p.ndim < 2 or p in tables], "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            if groups:
                self.all.append(
                    torch.optim.AdamW(
                        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
                    )
                )
            if sparse:
                self.all.append(RowAdam(sparse, config.lr, config.betas, config.eps))
        else:
            if dense:
                # torch's fused SGD does not know slices of parameters; its fused Adam does.
                fused = not any(isinstance(p, DTensor) for p in dense)
                self.all.append(
                    torch.optim.SGD(dense, lr=config.lr, momentum=config.momentum, fused=fused)
                )
            if sparse and config.momentum:
                raise ConfigError(
                    "train.momentum does not go with sparse embeddings, whose unused rows stand "
                    "still; leave it at 0, or use train.optimizer=adamw"
                )
            if sparse:
                self.all.append(torch.optim.SGD(sparse, lr=config.lr))

    def step(self, lr: float) -> None:
        """One update of every parameter at rate `lr`."""
        if self.decay and self.decayed:
            with torch.no_grad():
                torch._foreach_mul_(self.decayed, 1.0 - lr * self.decay)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def zero_grad(self) -> None:
        for parameter in self.names:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts, keyed `parameter name|state name`."""
        return {
            f"{self.names[parameter]}|{key}": value
            for optimizer in self.all
            for parameter, entries in optimizer.state.items()
            for key, value in entries.items()
            if value is not None
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            ResumeError: a tensor belongs to no parameter of this model.
        """
        parameters = {name: p for p, name in self.names.items()}
        owners = {p: o for o in self.all for g in o.param_groups for p in g["params"]}
        for optimizer in self.all:
            optimizer.state.clear()
        for full_name, tensor in tensors.items():
            name, key = full_name.rsplit("|", 1)
            if name not in parameters:
                raise ResumeError(f"the checkpoint has optimiser state of {name}, the model not")
            parameter = parameters[name]
            owner = owners[parameter]
            entries: dict[str, Any] = owner.state[parameter]
            counts_on_host = isinstance(owner, RowAdam) and key == "step"
            device = "cpu" if counts_on_host else parameter.device
            entries[key] = sliced_like(parameter, tensor.to(device, copy=True))
