"""DIN's two widest computations on a CPU, block by block.

Their intermediate values are far larger than the caches: written as plain torch operations, each
one is a walk through fresh memory, and the page faults of that memory cost more than the
arithmetic. Here a block stays in the cache until it is done with, the backward pass computes
again what the forward pass did not keep, and sums run over blocks in a fixed order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

# Floats of a block's temporary: half a megabyte, so that a few of them fit into a core's L2.
_BLOCK = 2**17


def blocks_pay(x: Tensor) -> bool:
    """False on GPUs, whose memory is made otherwise, and where a compiler fuses the operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def pair_linear(
    keys: Tensor, offset: Tensor, query: Tensor, linear: Tensor, cross: Tensor
) -> Tensor:
    """out[b, l, c, h] = offset[b, c, h] + Σ_d keys[b, l, d] · M[b, c, h, d] where
    M[b, c, h, d] = linear[h, d] + query[b, c, d] · cross[h, d].

    keys [B, L, D], offset [B, C, H], query [B, C, D], linear and cross [H, D] → [B, L, C, H].
    """
    if blocks_pay(keys):
        out: Tensor = _PairLinear.apply(keys, offset, query, linear, cross)  # type: ignore[no-untyped-call]
        return out
    matrix = torch.addcmul(linear, query.unsqueeze(2), cross).flatten(1, 2)
    flat = torch.baddbmm(offset.flatten(1).unsqueeze(1), keys, matrix.transpose(1, 2))
    return flat.view(*flat.shape[:2], *offset.shape[1:])


def dice(x: Tensor, alpha: Tensor, mean: Tensor, var: Tensor, eps: float, own: bool) -> Tensor:
    """x · (α + (1 − α) · σ((x − mean) / √(var + eps))), on a CPU.

    x [N, H]; alpha, mean, var [H]. `own`: mean and (biased) variance are those of x, so that
    the gradient of x goes through them too.
    """
    out: Tensor = _Dice.apply(x, alpha, mean, var, eps, own)  # type: ignore[no-untyped-call]
    return out


def mean_var(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [H] of the columns of x [N, H]; no gradient."""
    x = x.detach()
    count, step = len(x), max(1, _BLOCK // x.shape[1])
    mean = x.mean(0)
    square = torch.zeros_like(mean)
    for block in torch.split(x, step):
        centred = block - mean
        square += _column_sums(centred.mul_(centred))
    return mean, square / count


def _column_sums(x: Tensor) -> Tensor:
    """[H] of [N, H]: as a matrix product, which is faster than `sum`."""
    return torch.mv(x.t(), x.new_ones(len(x)))


class _PairLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, offset: Tensor, query: Tensor, linear: Tensor, cross: Tensor
    ) -> Tensor:
        ctx.save_for_backward(keys, query, linear, cross)
        requests, candidates, units = offset.shape
        out = keys.new_empty(requests, keys.shape[1], candidates, units)
        flat = out.flatten(2)
        step = max(1, _BLOCK // (candidates * cross.numel()))
        for begin in range(0, requests, step):
            part = slice(begin, begin + step)
            # One matrix per request: the keys' own linear layer rides along for nothing.
            matrix = torch.addcmul(linear, query[part].unsqueeze(2), cross).flatten(1, 2)
            torch.baddbmm(
                offset[part].flatten(1).unsqueeze(1),
                keys[part],
                matrix.transpose(1, 2),
                out=flat[part],
            )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        keys, query, linear, cross = ctx.saved_tensors
        grad = grads[0].flatten(2)
        requests, candidates, width = query.shape
        units = len(linear)
        grad_keys, grad_query = torch.empty_like(keys), torch.empty_like(query)
        grad_linear, grad_cross = torch.zeros_like(linear), torch.zeros_like(cross)
        step = max(1, _BLOCK // (candidates * cross.numel()))
        for begin in range(0, requests, step):
            part = slice(begin, begin + step)
            q = query[part].unsqueeze(2)
            matrix = torch.addcmul(linear, q, cross).flatten(1, 2)
            torch.bmm(grad[part], matrix, out=grad_keys[part])
            by_matrix = torch.bmm(grad[part].transpose(1, 2), keys[part], out=matrix)
            by_matrix = by_matrix.view(-1, candidates, units, width)
            grad_linear += _column_sums(by_matrix.view(-1, units * width)).view_as(linear)
            torch.sum(by_matrix * cross, 2, out=grad_query[part])
            by_cross = by_matrix.mul_(q).view(-1, units * width)
            grad_cross += _column_sums(by_cross).view_as(cross)
        grad_offset = grad.sum(1).unflatten(1, (candidates, units))
        return grad_keys, grad_offset, grad_query, grad_linear, grad_cross


class _Dice(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, mean: Tensor, var: Tensor, eps: float, own: bool
    ) -> Tensor:
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, alpha, mean, scale)
        ctx.own = own
        out = torch.empty_like(x)
        shift, rest = -mean * scale, 1 - alpha
        step = max(1, _BLOCK // x.shape[1])
        for block, done in zip(torch.split(x, step), torch.split(out, step), strict=True):
            gate = torch.addcmul(shift, block, scale).sigmoid_()
            torch.mul(block, torch.addcmul(alpha, gate, rest, out=gate), out=done)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, alpha, mean, scale = ctx.saved_tensors
        shift, rest = -mean * scale, 1 - alpha
        out = torch.empty_like(x)
        by_alpha, by_shift, by_scale = (torch.zeros_like(alpha) for _ in range(3))
        step = max(1, _BLOCK // x.shape[1])
        pieces = zip(
            torch.split(x, step), torch.split(grads[0], step), torch.split(out, step), strict=True
        )
        for block, grad, done in pieces:
            gate = torch.addcmul(shift, block, scale).sigmoid_()
            product = grad * block
            off = 1 - gate
            by_alpha += _column_sums(product * off)
            # From here on `product` is the gradient before the sigmoid.
            product.mul_(off.mul_(gate)).mul_(rest)
            torch.mul(grad, torch.addcmul(alpha, gate, rest, out=gate), out=done)
            done.addcmul_(product, scale)
            by_shift += _column_sums(product)
            by_scale += _column_sums(product.mul_(block))
        if ctx.own:
            # Through the statistics: constants of each column, once all blocks are summed.
            by_z = (by_scale - mean * by_shift) * scale
            slope = -(scale**2) * by_z / len(x)
            level = -scale * by_shift / len(x) - mean * slope
            for block, done in zip(torch.split(x, step), torch.split(out, step), strict=True):
                done.addcmul_(block, slope).add_(level)
        return out, by_alpha, None, None, None, None
