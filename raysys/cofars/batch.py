"""Batches of the selector: requests with their candidates and clicks."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysys.cofars.requests import RequestReader, Requests
from raysys.data.attribute_counts import Values, user_shares
from raysys.data.batch import Pointers


@dataclass(frozen=True)
class SelectorBatch:
    """R requests; candidates, candidate_mask, clicks [R, C]: item rows, bool, 0/1 or None."""

    requests: Requests
    candidates: Tensor
    candidate_mask: Tensor
    clicks: Tensor | None

    def to(self, device: torch.device | str) -> "SelectorBatch":
        """The batch on another device."""
        return SelectorBatch(
            self.requests.to(device),
            self.candidates.to(device),
            self.candidate_mask.to(device),
            None if self.clicks is None else self.clicks.to(device),
        )


@dataclass(frozen=True)
class UserPreferences:
    """What shares of single users are made of: values [2 + items, F] of attribute fields of the
    given widths; shares [1 + M, W] of all users by row of the table; strength of those."""

    values: Values
    widths: tuple[int, ...]
    shares: npt.NDArray[np.float32]
    strength: float


class SelectorCollator:
    """Makes selector batches of pointers.

    Args:
        reader: of the histories.
        own: where shares are compared by user.
    """

    def __init__(self, reader: RequestReader, own: UserPreferences | None = None) -> None:
        self.reader = reader
        self.own = own

    def __call__(self, pointers: Pointers) -> SelectorBatch:
        """Read the requests and their candidates."""
        reader, own = self.reader, self.own
        contexts = reader.contexts(pointers)
        requests = reader(pointers, contexts)
        if own is not None:
            shares = user_shares(
                reader.index,
                reader.histories,
                contexts,
                own.values,
                own.widths,
                own.shares[reader.table.rows(contexts.key)],
                own.strength,
            )
            requests = replace(requests, node_shares=torch.from_numpy(shares))
        candidates = torch.from_numpy(pointers.candidates)
        clicks = None if pointers.clicks is None else torch.from_numpy(pointers.clicks)
        return SelectorBatch(requests, candidates, candidates != 0, clicks)
