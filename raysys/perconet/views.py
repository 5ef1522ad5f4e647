"""The cross-view loss: a title and its own abstract against those of all other news (§2.2)."""

import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raysys.data.contexts import FIRST
from raysys.training import World


def text_groups(items: pa.Table) -> npt.NDArray[np.int64]:
    """[2 + N]: catalogue rows of the same title and abstract share a number, that of the first.

    Texts are compared in NFKC, without case and with single spaces.
    """
    seen: dict[tuple[str, str], int] = {}
    rows = zip(items["title"].to_pylist(), items["abstract"].to_pylist(), strict=True)
    groups = [
        seen.setdefault((_plain(title), _plain(abstract)), row)
        for row, (title, abstract) in enumerate(rows, FIRST)
    ]
    return np.array([*range(FIRST), *groups], np.int64)


def _plain(text: str | None) -> str:
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


def cross_view(
    world: World, first: Tensor, second: Tensor, group: Tensor, temperature: float
) -> tuple[Tensor, int]:
    """This worker's part of |U|·L_cl, and |U|: the news of all workers, each text once.

        L_cl = −1/(2|U|) Σ_n [log softmax_row(S)_nn + log softmax_col(S)_nn],  S = Z Z'ᵀ/τ

    A text that several workers have belongs to the first of them; its copies are neither
    positives nor negatives. Every worker has to call this equally often, be it with no news.

    Args:
        first, second: Z, Z' [n, w] of this worker's news, of length 1.
        group: [n] int64, equal for equal texts, see `text_groups`.
        temperature: τ.
    """
    counts = world.gather_rows(torch.tensor([len(group)])).flatten().tolist()
    names = group
    if world.size > 1:
        names = torch.cat(world.gather_ragged(group))
    kept = _firsts(names)
    keys = [world.gather_with_gradient(z, counts)[kept] for z in (first, second)]
    begin = sum(counts[: world.rank])
    own = (kept >= begin) & (kept < begin + len(group))
    target = torch.nonzero(own).flatten()
    mine = kept[own] - begin
    # Also without news of its own a worker hands gradients back to the others.
    total = sum((z.sum() * 0.0 for z in (first, second, *keys)), first.new_zeros(()))
    if not len(mine):
        return total, len(kept)
    rows = (first[mine] / temperature) @ keys[1].T
    # Alone, a worker owns all columns too.
    columns = rows.T if world.size == 1 else (second[mine] / temperature) @ keys[0].T
    for logits in (rows, columns):
        total = total + cross_entropy(logits, target, reduction="sum") / 2
    return total, len(kept)


def _firsts(names: Tensor) -> Tensor:
    """Where each distinct value of names [n] comes first, ascending."""
    order = names.argsort(stable=True)
    sorted_ = names[order]
    first = torch.ones_like(sorted_, dtype=torch.bool)
    first[1:] = sorted_[1:] != sorted_[:-1]
    return order[first].sort().values
