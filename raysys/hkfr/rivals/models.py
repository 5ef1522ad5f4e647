"""The sequence models of §5, over one and the same input, each with its own way to a state.

They are trained on the same answers, the next order's; what is said of items in the papers is here
said of events.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from raysys.hkfr.rivals.blocks import Block, KindBlock, visible
from raysys.hkfr.rivals.sequences import (
    SequenceBatch,
    SequenceModel,
    Sequences,
    newest,
    token_answers,
)


class GRU4Rec(SequenceModel):
    """A GRU's last hidden state (Hidasi et al., ICLR 2016)."""

    def __init__(
        self, log_popularity: Tensor, sizes: Sequences, width: int, dropout: float
    ) -> None:
        super().__init__(log_popularity, sizes, width, dropout)
        self.gru = nn.GRU(width, width, batch_first=True)

    def state(self, batch: SequenceBatch) -> Tensor:
        """See `SequenceModel`."""
        states, _ = self.gru(self.events(*batch[:4]))
        return newest(states, batch.mask)


class SASRec(SequenceModel):
    """Causal self-attention; the state of the newest event (Kang and McAuley, ICDM 2018)."""

    causal = True

    def __init__(
        self,
        log_popularity: Tensor,
        sizes: Sequences,
        width: int,
        dropout: float,
        *,
        heads: int = 2,
        layers: int = 2,
    ) -> None:
        super().__init__(log_popularity, sizes, width, dropout)
        self.blocks = nn.ModuleList(self.block(sizes, width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def block(self, sizes: Sequences, width: int, heads: int, dropout: float) -> Block:
        """One layer."""
        return Block(width, heads, dropout)

    def states(self, x: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
        """Embedded events [B, L, D], kind and mask [B, L] → [B, L, D]."""
        seen = visible(mask, causal=self.causal)
        for block in self.blocks:
            x = block(x, kind, seen)
        return self.norm(x)

    def state(self, batch: SequenceBatch) -> Tensor:
        """See `SequenceModel`."""
        x = self.events(*batch[:4])
        return newest(self.states(x, batch.kind, batch.mask), batch.mask)


class MBSTR(SASRec):
    """The heart of MB-STR (Yuan et al., SIGIR 2022): attention whose projections are those of the
    event's own behaviour, with a bias for each pair of behaviours."""

    def block(self, sizes: Sequences, width: int, heads: int, dropout: float) -> Block:
        """See `SASRec`."""
        return KindBlock(width, heads, dropout, sizes.kinds)


class BERT4Rec(SASRec):
    """Attention both ways; the state of a mask behind the newest event (Sun et al., CIKM 2019).

    In training a share of the events is masked too and must be told (the Cloze task).
    """

    causal = False
    share = 0.2

    def state(self, batch: SequenceBatch) -> Tensor:
        """See `SequenceModel`."""
        return self._told(batch)[0]

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The answers' loss, plus the mean loss of the masked events, once per question."""
        loss, count = super().loss(batch)
        masked = batch.mask & (torch.rand(batch.mask.shape, device=loss.device) < self.share)
        answers = token_answers(batch.token, masked)
        told = answers >= 0
        if told.any():
            hidden = batch._replace(token=batch.token.masked_fill(masked, self.events.mask_token))
            logits = self.logits(self._told(hidden)[1][told])
            loss = loss + count * cross_entropy(logits, answers[told])
        return loss, count

    def _told(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """The state of the mask behind the newest event [B, D], and those of the events."""
        length = batch.mask.sum(1, keepdim=True)
        token, kind, age = (pad(part, (0, 1)) for part in batch[:3])
        token = token.scatter(1, length, self.events.mask_token)
        mask = pad(batch.mask, (0, 1)).scatter(1, length, True)
        states = self.states(self.events(token, kind, age, mask), kind, mask)
        return newest(states, mask), states[:, :-1]


class Caser(SequenceModel):
    """Convolutions over the newest events, and the user (Tang and Wang, WSDM 2018).

    recent: how many events are seen. Filters span 1 to 4 events across, and all events along one
    dimension.
    """

    def __init__(
        self,
        log_popularity: Tensor,
        sizes: Sequences,
        width: int,
        dropout: float,
        *,
        recent: int = 20,
        filters: int = 16,
        spans: tuple[int, ...] = (1, 2, 3, 4),
    ) -> None:
        super().__init__(log_popularity, sizes, width, dropout)
        self.recent = recent
        self.across = nn.ModuleList(nn.Conv1d(width, filters, span) for span in spans)
        self.along = nn.Linear(recent, 4, bias=False)
        self.mix = nn.Sequential(
            nn.Linear(filters * len(spans) + 4 * width, width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.user = nn.Embedding(sizes.users, width, padding_idx=0)
        self.out = nn.Linear(2 * width, width)

    def state(self, batch: SequenceBatch) -> Tensor:
        """See `SequenceModel`."""
        x = self.events(*batch[:4])
        # Column 0 the newest event, zeros behind the oldest.
        place = batch.mask.sum(1, keepdim=True) - 1 - torch.arange(self.recent, device=x.device)
        rows = place.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        x = (x.gather(1, rows) * (place >= 0)[..., None]).transpose(1, 2)  # [B, D, recent]
        across = [torch.relu(conv(x)).amax(-1) for conv in self.across]
        mixed = self.mix(torch.cat([*across, self.along(x).flatten(1)], -1))
        return self.out(torch.cat([mixed, self.user(batch.user)], -1))
