"""Stage 2's metric: does the nearest text answer the question? Recall@k on later days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raysys.errors import MetricError
from raysys.larr.log import Int64Array, Part
from raysys.larr.pairs import Kind, PairSets, place_text
from raysys.larr.texts import SPECIAL_TOKENS, plain
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.training import World


@dataclass(frozen=True)
class Retrieval:
    """Q questions and a pool of P distinct texts.

    answer [Q]: place of each question's answer in the pool; asked [Q]: of the question itself,
    which is no answer to it, −1 if it is not there; new [Q]: the answer is a place that training
    has not seen.
    """

    queries: list[str]
    pool: list[str]
    answer: Int64Array
    asked: Int64Array
    new: npt.NDArray[np.bool_]


def retrieval(
    sets: PairSets, kind: Kind, part: Part, questions: int, pool: int
) -> Retrieval | None:
    """Questions from pairs of one kind of validation or test; None if there are fewer than two.

    questions: at most so many, drawn by the seed. pool: at most so many texts beside the
    answers: all places for pp and up, the other users' texts for uu.
    """
    pairs = sets.later(kind, part)
    rng = np.random.default_rng(sets.seed)
    if len(pairs) > questions:
        pairs = pairs.take(np.sort(rng.choice(len(pairs), questions, replace=False)))
    if len(pairs) < 2:
        return None
    log = sets.log
    index = range(len(pairs))
    queries = [pairs.anchor.text(log, i, training=False) for i in index]
    answers = [pairs.positive.text(log, i, training=False) for i in index]
    texts = dict.fromkeys(answers)
    if kind != "uu":
        rows = np.flatnonzero(log.places.poi)
        if len(rows) > pool:
            rows = np.sort(rng.choice(rows, pool, replace=False))
        style = pairs.positive.style
        texts |= dict.fromkeys(place_text(log.places, int(row), style) for row in rows)
    place = {text: i for i, text in enumerate(texts)}
    new = np.zeros(len(pairs), bool) if kind == "uu" else sets.unseen(pairs)
    answer = np.array([place[text] for text in answers])
    asked = np.array([place.get(text, -1) for text in queries])
    return Retrieval(queries, list(texts), answer, np.where(asked == answer, -1, asked), new)


def recalls(
    queries: npt.NDArray[np.float32],
    pool: npt.NDArray[np.float32],
    sought: Retrieval,
    cutoffs: Sequence[int],
) -> dict[str, float]:
    """`recall@K`, and `new/recall@K` over questions with a new answer, by cosine of vectors
    queries [Q, D] and pool [P, D] of length one.

    A text as near as the answer counts as nearer, so vectors that are all alike find nothing.

    Raises:
        MetricError: a vector that is not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(pool).all()):
        raise MetricError("recall: the encoder gave a vector that is not finite")
    ranks = np.empty(len(queries), np.int64)
    for begin in range(0, len(queries), 256):
        span = slice(begin, begin + 256)
        scores = queries[span] @ pool.T
        told = scores[np.arange(len(scores)), sought.answer[span]]
        itself = np.flatnonzero(sought.asked[span] >= 0)
        scores[itself, sought.asked[span][itself]] = -np.inf
        ranks[span] = (scores >= told[:, None]).sum(1)
    values = {f"recall@{k}": float((ranks <= k).mean()) for k in cutoffs}
    if sought.new.any():
        values |= {f"new/recall@{k}": float((ranks[sought.new] <= k).mean()) for k in cutoffs}
    return values


def frozen_recalls(
    spec: str,
    pooling: Literal["mean", "last"],
    max_tokens: int,
    retrievals: Mapping[Kind, Retrieval],
    cutoffs: Sequence[int],
    world: World,
) -> dict[str, float]:
    """The same metric for a model as it is, `KIND/recall@K`; every worker encodes a part.

    A model that does not know our special tokens reads the texts without them.
    """
    encoder = TextEncoder(
        EncoderSpec(backbone=spec, pooling=pooling, max_tokens=max_tokens), device=world.device
    )
    knows = all(token in encoder.tokens_of.tokenizer.get_vocab() for token in SPECIAL_TOKENS)

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        mine = [text if knows else plain(text) for text in texts[world.rows(len(texts))]]
        return world.gather(encoder(mine))

    values = {}
    for kind, sought in retrievals.items():
        found = recalls(encode(sought.queries), encode(sought.pool), sought, cutoffs)
        values |= {f"{kind}/{name}": value for name, value in found.items()}
    return values
