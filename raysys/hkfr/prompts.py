"""(K_u, instruction, answer) → tokens: x = [prompt ; answer ; end], what of it is to be predicted (§2.3).

A prompt is the knowledge and then the instruction, each line ended. Lines are tokenised one by one
and the answer alone, so that the cut between prompt and answer is where it is when candidates are
scored, and so that whole facts can be left out.
"""  # noqa: E501

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raysys.errors import ConfigError
from raysys.hkfr.samples import Sample
from raysys.llm.tokens import TextTokens

Ids = list[int]
_KEPT = 500_000  # pieces of text, a few hundred MB


class Prompts:
    """Token ids of prompts, answers and names.

    cut counts the prompts that lost facts. Knowledge is a head line and then facts, the oldest
    first: they go first where T tokens are too few, then the head; instruction and answer never.
    """

    def __init__(self, tokens: TextTokens) -> None:
        """tokens: the tokenizer; its `longest` is T, a prompt with its answer and the end."""
        self.tokens = tokens
        self.cut = 0
        self._ids: dict[str, Ids] = {}

    def prompt(self, knowledge: str, instruction: str, room: int = 1) -> Ids:
        """Ids of a prompt that leaves `room` tokens of T for the answer with its end.

        Raises:
            ConfigError: instruction and answer alone are too long.
        """
        asked = self._lines(instruction)
        left = self.tokens.longest - room - sum(map(len, asked))
        if left < 0:
            raise ConfigError(
                f"max_tokens={self.tokens.longest} is less than the instruction "
                f"{instruction[:60]!r} and its answer need ({self.tokens.longest - left}); raise it"
            )
        told = self._lines(knowledge)
        kept, total = list(told), sum(map(len, told))
        while total > left and len(kept) > 1:
            total -= len(kept.pop(1))
        if total > left:
            kept = []
        self.cut += len(kept) < len(told)
        return [token for line in [*kept, *asked] for token in line]

    def name(self, text: str) -> Ids:
        """Ids of an answer or of a candidate's name, without the end."""
        return self._of([text])[0]

    def sample(self, sample: Sample) -> tuple[Ids, int]:
        """Ids of prompt, answer and end, and how many of them are the prompt."""
        answer = self.name(sample.answer)
        prompt = self.prompt(sample.knowledge, sample.instruction, len(answer) + 1)
        return [*prompt, *answer, self.tokens.end], len(prompt)

    def _lines(self, text: str) -> list[Ids]:
        lines = text.rstrip("\n").split("\n") if text else []
        return self._of([line + "\n" for line in lines])

    def _of(self, pieces: Sequence[str]) -> list[Ids]:
        """Ids of each piece, kept: lines of knowledge and instructions come again and again."""
        if len(self._ids) > _KEPT:
            self._ids.clear()
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._ids]
        if new:
            found = self.tokens.tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            self._ids.update(zip(new, found, strict=True))
        return [self._ids[piece] for piece in pieces]


@dataclass(frozen=True)
class Encoded:
    """n samples as tokens. ids: of each, prompt, answer and end, int32; asked [n]: tokens of its
    prompt; loss: answer, only answer and end are predicted; full, all but the first token."""

    ids: list[npt.NDArray[np.int32]]
    asked: npt.NDArray[np.int64]
    loss: Literal["answer", "full"] = "answer"

    @classmethod
    def of(
        cls,
        samples: Iterable[Sample],
        prompts: Prompts,
        loss: Literal["answer", "full"] = "answer",
    ) -> "Encoded":
        """Tokenise samples.

        Raises:
            ConfigError: see `Prompts.prompt`.
        """
        pairs = [prompts.sample(sample) for sample in samples]
        ids = [np.array(tokens, np.int32) for tokens, _ in pairs]
        return cls(ids, np.array([asked for _, asked in pairs], np.int64), loss)

    @property
    def weights(self) -> "Weights":
        """What each token weighs as something to predict, text by text."""
        return Weights(self)


class Weights(Sequence[npt.NDArray[np.float32]]):
    """Made when asked for: a million samples have as many weights as tokens."""

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded.ids)

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:  # type: ignore[override]
        weights = np.ones(len(self._encoded.ids[index]), np.float32)
        weights[: self._encoded.asked[index] if self._encoded.loss == "answer" else 1] = 0
        return weights
