"""The names of all candidates as a trie of tokens: what they share is computed once (§2.4)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trie:
    """M nodes below a root, parents before children.

    tokens [M]; parents [M], −1 for the root; depths [M], 0 below the root; leaves: of each of n
    names the node of its last token [n].
    """

    tokens: Ints
    parents: Ints
    depths: Ints
    leaves: Ints

    @classmethod
    def of(cls, names: Sequence[Sequence[int]]) -> "Trie":
        """names: token ids of each, without the end token; equal ones share a leaf.

        Raises:
            ValueError: a name without a token.
        """
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        node_of: dict[tuple[int, int], int] = {}
        leaves = []
        for name in names:
            if not name:
                raise ValueError(f"candidate {len(leaves)} has no token")
            node = -1
            for depth, token in enumerate(name):
                child = node_of.setdefault((node, token), len(tokens))
                if child == len(tokens):
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depth)
                node = child
            leaves.append(node)
        return cls(*(np.array(part, np.int64) for part in (tokens, parents, depths, leaves)))

    def __len__(self) -> int:
        """M."""
        return len(self.tokens)

    def ancestry(self) -> npt.NDArray[np.bool_]:
        """[M, M] whether column j is row i itself or lies on its way from the root."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def tries(names: Sequence[Sequence[int]], most: int) -> Iterator[tuple[Ints, Trie]]:
    """Which names [n], and their trie, of at most `most` nodes unless one name alone is longer.

    Names that begin alike stay together, because what they share is then computed once.
    """
    order = sorted(range(len(names)), key=lambda i: tuple(names[i]))
    begin = count = 0
    for place, index in enumerate(order):
        before: Sequence[int] = names[order[place - 1]] if place > begin else ()
        new = len(names[index]) - _shared(before, names[index])
        if place > begin and count + new > most:
            yield _part(names, order[begin:place])
            begin, count, new = place, 0, len(names[index])
        count += new
    if begin < len(order):
        yield _part(names, order[begin:])


def _part(names: Sequence[Sequence[int]], chosen: list[int]) -> tuple[Ints, Trie]:
    return np.array(chosen, np.int64), Trie.of([names[i] for i in chosen])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two names begin with alike."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
