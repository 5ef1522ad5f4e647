"""FSDP2: parameters, gradients and optimiser state cut over the workers; checkpoints stay whole.

Every worker holds a slice of each parameter (a DTensor) and gathers a block's parameters only
while it computes with them. What is saved are whole tensors, so that a run may go on with
another number of workers, or unsharded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from raysys.training.world import World


def shard(model: nn.Module, world: World, precision: str) -> None:
    """Cut `model` over all workers, in place; they must hold equal values.

    The elements of each `ModuleList` (the blocks of a transformer) are units that are gathered
    one at a time; what is outside them is one more unit. Gradients are summed, not averaged:
    the loop divides by the weight of the global batch.

    Every worker must call the model equally often, and go backwards as often.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    blocks = [block for m in model.modules() if isinstance(m, nn.ModuleList) for block in m]
    # Inner blocks first: a unit takes what no unit inside it has taken.
    for unit in [*reversed(blocks), model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no other reduction.
            module.set_force_sum_reduction_for_comms(True)


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The tensors with every slice put together; collective where there are slices.

    keep: false on workers that only take part: they get those that were never cut.
    """
    out = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            out[name] = tensor
            continue
        full = tensor.detach().full_tensor()
        if keep:
            # One by one to the host: a device need not hold the whole model.
            out[name] = full.cpu()
    return out


def sliced_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """This worker's slice of `tensor` where `pattern` is cut; `tensor` itself elsewhere."""
    if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
        return tensor
    full = tensor.to(pattern.device)
    return distribute_tensor(full, pattern.device_mesh, pattern.placements, src_data_rank=None)
