"""score(v) = Σ_t log p(name_v,t | prompt, name_v,<t) + log p(end | …), exact, for all candidates (§2.4).

A prompt is read once. The candidates' names hang below it as a trie of tokens, which is one more
pass over the cached keys and values: a node sees the prompt and its own ancestors, at the position
where it would stand if its name were written out.
"""  # noqa: E501

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raysys.errors import ConfigError
from raysys.hkfr.trie import Trie, tries

Tokens = Sequence[int]
_PROMPTS_AT_ONCE = 64


class Decoding(BaseModel):
    """How candidates are scored.

    decode: score_all, every one; trie_beam, only those whose beginnings are among the `width`
    likeliest of their length (at least twice the k that is wanted; the others score −inf).
    len_norm: mean divides a score by its number of tokens, the end included. prior_correct: α of
    score − α·log p(name | instruction without the knowledge).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode: Literal["score_all", "trie_beam"] = "score_all"
    width: Annotated[int, Field(ge=2)] = 20
    len_norm: Literal["none", "mean"] = "none"
    prior_correct: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Scorer:
    """Scores candidates with a causal language model.

    end, pad: token ids. nodes: of one trie; floats: logits held at once. Both bound memory and
    change no score.
    """

    model: nn.Module
    end: int
    pad: int
    nodes: int = 512
    floats: int = 2**26

    def __call__(
        self,
        prompts: Sequence[Tokens],
        names: Sequence[Tokens],
        how: Decoding = Decoding(),  # noqa: B008 - frozen
        bare: Sequence[Tokens] = (),
    ) -> Tensor:
        """Scores [N, V] as asked; bare: the prompts without knowledge, for `prior_correct`."""

        if how.decode == "trie_beam":
            found = self.trie_beam(prompts, names, how.width)
        else:
            found = self.score_all(prompts, names)
        return self.adjusted(found, names, how, bare)

    def adjusted(
        self, found: Tensor, names: Sequence[Tokens], how: Decoding, bare: Sequence[Tokens] = ()
    ) -> Tensor:
        """Plain scores [N, V] without their prior and their length, as far as `how` says."""
        if how.prior_correct:
            distinct = list(dict.fromkeys(map(tuple, bare)))
            row = {prompt: number for number, prompt in enumerate(distinct)}
            prior = self.score_all(distinct, names)
            found = found - how.prior_correct * prior[[row[tuple(prompt)] for prompt in bare]]
        if how.len_norm == "mean":
            found = found / torch.tensor([len(name) + 1.0 for name in names])
        return found

    @torch.no_grad()
    def score_all(self, prompts: Sequence[Tokens], names: Sequence[Tokens]) -> Tensor:
        """Log-probabilities [N, V] of V names after N prompts, float32 on the CPU.

        prompts, names: token ids without the end token. The distinct names are disjoint events, so
        that their probabilities sum to 1 at most; equal names have equal scores.

        Raises:
            ValueError: an empty prompt or name.
        """
        return self.with_states(prompts, names)[0]

    @torch.no_grad()
    def with_states(
        self, prompts: Sequence[Tokens], names: Sequence[Tokens]
    ) -> tuple[Tensor, Tensor]:
        """`score_all`, and the last hidden state of each prompt [N, D], float32 on the CPU."""
        out = torch.empty(len(prompts), len(names))
        states = torch.empty(len(prompts), int(self.model.config.hidden_size))
        parts = list(tries(names, self.nodes))
        most = max((len(trie) for _, trie in parts), default=1)
        for chosen, read in self._read(prompts, most):
            states[torch.from_numpy(chosen)] = read.states.cpu()
            for columns, trie in parts:
                scores = _whole_trie(read, trie, self.end)
                out[torch.from_numpy(chosen)[:, None], torch.from_numpy(columns)] = scores
        return out, states

    @torch.no_grad()
    def trie_beam(self, prompts: Sequence[Tokens], names: Sequence[Tokens], width: int) -> Tensor:
        """As `score_all`, following `width` beginnings of each length; what was lost scores −inf.

        Beginnings are compared by their raw log-probabilities, never renormalised. As wide as the
        trie it gives the scores of `score_all`.
        """
        trie = Trie.of(names)
        out = torch.empty(len(prompts), len(names))
        for chosen, read in self._read(prompts, min(width, len(trie))):
            out[torch.from_numpy(chosen)] = _beam(read, trie, self.end, width)
        return out

    def _read(
        self, prompts: Sequence[Tokens], nodes: int
    ) -> Iterator[tuple[np.ndarray, "ReadPrompts"]]:
        """Which prompts, and those prompts read; prompts of like length together."""
        vocabulary = int(self.model.config.vocab_size)
        size = max(1, min(_PROMPTS_AT_ONCE, self.floats // (vocabulary * nodes)))
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            yield chosen, ReadPrompts.of(self.model, [prompts[i] for i in chosen], self.pad)


@dataclass
class ReadPrompts:
    """B prompts that a model has read, and what it has read behind them.

    cache: keys and values; mask [B, T] True for the prompts' tokens; lengths [B]; logits [B, V] of
    what follows the prompts, made of states [B, D].
    """

    model: nn.Module
    cache: Any
    mask: Tensor
    lengths: Tensor
    logits: Tensor
    states: Tensor

    @classmethod
    def of(cls, model: nn.Module, prompts: Sequence[Tokens], pad: int) -> "ReadPrompts":
        """Read them, padded on the left."""
        if not all(prompts):
            raise ValueError("a prompt without a token")
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), pad, np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
        device = next(model.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        places = torch.arange(width, device=device)
        mask = places >= width - lengths[:, None]
        cache = DynamicCache()
        # What the LM head is given: `output_hidden_states` would keep those of all layers.
        given: list[Tensor] = []
        head = model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, -1]))
        try:
            logits = model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=mask.long(),
                position_ids=(places - (width - lengths[:, None])).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        finally:
            hook.remove()
        return cls(model, cache, mask, lengths, logits[:, -1].float(), given[0].float())

    def behind(self, tokens: Tensor, depths: Tensor, seen: Tensor) -> Tensor:
        """Logits [B, M, V] behind M more tokens of each prompt, which stay in the cache.

        tokens [B, M]; depths [M] places behind the prompt; seen [B, M, E + M]: which of the E
        tokens put there before, and of these M, each of the M attends to.
        """
        mask = torch.cat([self.mask[:, None].expand(-1, tokens.shape[1], -1), seen], -1)
        logits = self.model(
            input_ids=tokens,
            attention_mask=_additive(mask[:, None], self.model.dtype),
            position_ids=self.lengths[:, None] + depths,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits.float()

    def forget(self) -> None:
        """Leave the prompts alone in the cache."""
        self.cache.crop(self.mask.shape[1] - self.cache.get_seq_length())


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _whole_trie(read: ReadPrompts, trie: Trie, end: int) -> Tensor:
    """Scores [B, n] of the trie's names in one pass."""
    device, batch = read.mask.device, len(read.lengths)
    tokens, parents, depths, leaves = (
        torch.from_numpy(part).to(device)
        for part in (trie.tokens, trie.parents, trie.depths, trie.leaves)
    )
    ancestry = torch.from_numpy(trie.ancestry()).to(device)
    logits = read.behind(tokens.expand(batch, -1), depths, ancestry.expand(batch, -1, -1))
    read.forget()
    total = logits.logsumexp(-1)
    above = parents.clamp(min=0)
    edges = torch.where(
        parents < 0,
        read.logits.log_softmax(-1)[:, tokens],
        logits[:, above, tokens] - total[:, above],
    )
    # Along the way from the root: a sum over ancestors.
    paths = edges @ ancestry.T.to(edges.dtype)
    return (paths[:, leaves] + logits[:, leaves, end] - total[:, leaves]).cpu()


def _beam(read: ReadPrompts, trie: Trie, end: int, width: int) -> Tensor:
    """Scores [B, n], −inf for names that fell out of the beam."""
    device, batch = read.mask.device, len(read.lengths)
    tokens, parents, leaves = (
        torch.from_numpy(part).to(device) for part in (trie.tokens, trie.parents, trie.leaves)
    )
    ancestry = torch.from_numpy(trie.ancestry()).to(device)
    paths = torch.full((batch, len(trie)), -torch.inf, device=device)
    ends = torch.full((batch, len(trie)), -torch.inf, device=device)
    level = torch.from_numpy(np.flatnonzero(trie.depths == 0)).to(device)
    paths[:, level] = read.logits.log_softmax(-1)[:, tokens[level]]
    slots = torch.zeros((batch, 0), dtype=torch.int64, device=device)  # nodes in the cache
    rows = torch.arange(batch, device=device)[:, None]
    for depth in range(int(trie.depths.max()) + 1):
        best = paths[:, level].topk(min(width, len(level)), dim=1).indices
        kept = level[best]  # [B, W]
        slots = torch.cat([slots, kept], 1)
        place = torch.full((1,), depth, device=device)
        seen = ancestry[kept[:, :, None], slots[:, None, :]]
        found = read.behind(tokens[kept], place, seen).log_softmax(-1)
        ends[rows, kept] = paths[rows, kept] + found[:, :, end]
        level = torch.from_numpy(np.flatnonzero(trie.depths == depth + 1)).to(device)
        slot = torch.full((batch, len(trie)), -1, device=device)
        slot[rows, kept] = torch.arange(kept.shape[1], device=device)
        above = slot[:, parents[level]]
        step = found[rows, above.clamp(min=0), tokens[level]]
        paths[:, level] = torch.where(above < 0, -torch.inf, paths[:, parents[level]] + step)
    return ends[:, leaves].cpu()


def ranked(scores: Tensor, k: int, real: Tensor | None = None) -> Tensor:
    """The k best candidates [N, k] of scores [N, V], best first, of equals the first.

    real [N, V]: False for padding, which never comes before a candidate.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    if real is not None:
        # Sorted once more, not filled with −inf: a candidate that a beam has lost scores that, too.
        last = real.gather(1, order).int().argsort(dim=-1, descending=True, stable=True)
        order = order.gather(1, last)
    return order[:, :k]


@torch.no_grad()
def scores_by_cache(scorer: Scorer) -> None:
    """Refuse a model that scores otherwise with its cache than in full passes.

    Raises:
        ConfigError: its attention takes no mask of ours (flash attention, sliding windows).
    """
    rng = np.random.default_rng(0)
    vocabulary = int(scorer.model.config.vocab_size)
    prompts = [rng.integers(0, vocabulary, n).tolist() for n in (9, 4)]
    name = rng.integers(0, vocabulary, 3).tolist()
    names = [name, name[:1], rng.integers(0, vocabulary, 2).tolist()]
    training = scorer.model.training
    scorer.model.eval()
    whole = torch.tensor([[in_full(scorer, p, n) for n in names] for p in prompts])
    cached = scorer.score_all(prompts, names)
    scorer.model.train(training)
    if not torch.allclose(cached, whole, rtol=1e-2, atol=1e-2):
        raise ConfigError(
            f"{type(scorer.model).__name__}: candidates scored behind a cached prompt differ from "
            "those scored in full; choose a decoder with eager or sdpa attention"
        )


@torch.no_grad()
def in_full(scorer: Scorer, prompt: Tokens, name: Tokens) -> float:
    """The score of one name by one pass over prompt and name, nothing cached."""
    device = next(scorer.model.parameters()).device
    ids = torch.tensor([[*prompt, *name]], device=device)
    answer = scorer.model(input_ids=ids, use_cache=False, logits_to_keep=len(name) + 1)
    logits = answer.logits[0].float()
    wanted = torch.tensor([*name, scorer.end], device=device)
    return float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
