"""Stage 3, semantic features: what the tuned model would answer, and what it thinks, as numbers (§2.4)."""  # noqa: E501

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from raysys.errors import ConfigError
from raysys.hkfr.prompts import Ids, Prompts
from raysys.hkfr.samples import Samples
from raysys.hkfr.scoring import Decoding, Scorer

Floats = npt.NDArray[np.float32]
Count = Annotated[int, Field(ge=1)]
HIDDEN, COLD = "hkfr.hidden", "hkfr.cold"


class FeatureOptions(BaseModel):
    """What is exported of each user and day.

    tasks: of each the distribution over all names of its vocabulary, as `hkfr.TASK`; values: as
    logarithms (logp) or as they are (p). top: the likeliest M alone; what is left is spread evenly
    over the others. scores_width: project the distribution to so many numbers; None: all names.
    hidden: `hkfr.hidden`, the last hidden state of the first task's prompt in so many numbers; 0:
    none. projection: how, fitted once on at most fit_texts texts of training users. len_norm,
    prior_correct: see `Decoding`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = ("category",)
    values: Literal["logp", "p"] = "logp"
    top: Count | None = None
    scores_width: Count | None = None
    hidden: Annotated[int, Field(ge=0)] = 64
    projection: Literal["pca", "random"] = "pca"
    fit_texts: Count = 5000
    len_norm: Literal["none", "mean"] = "none"
    prior_correct: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> "FeatureOptions":
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks: one is there twice")
        return self

    def widths(self) -> dict[str, int]:
        """The features that are projected, and to how many numbers."""
        found = {HIDDEN: self.hidden} if self.hidden else {}
        if self.scores_width is not None:
            found |= {f"hkfr.{task}": self.scores_width for task in self.tasks}
        return found


@dataclass(frozen=True)
class Question:
    """A task as it is asked of everyone; names: all candidates."""

    task: str
    instruction: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples, task: str) -> "Question":
        """As most training samples of the task put it, of equals the first by alphabet.

        Raises:
            ConfigError: no candidates, or no training sample of the task.
        """
        names = samples.vocabulary.get(task, ())
        times = Counter(sample.instruction for sample in samples.of("train", task=task))
        if not names or not times:
            known = ", ".join(sorted(name for name, some in samples.vocabulary.items() if some))
            lacks = "training sample" if names else "candidate in vocabulary.json"
            raise ConfigError(
                f"tasks={task}: {samples.path} has no {lacks}; there are candidates of {known}"
            )
        return cls(task, usual_wording(times), names)


def usual_wording(times: Counter[str]) -> str:
    """The commonest instruction, of equals the first by alphabet."""
    return min(times, key=lambda text: (-times[text], text))


class FeatureReader:
    """Turns knowledge into numbers.

    Args:
        scorer: of the tuned model.
        prompts: with its tokenizer.
        questions: one for each task of the options.
    """

    def __init__(
        self,
        scorer: Scorer,
        prompts: Prompts,
        questions: Sequence[Question],
        options: FeatureOptions,
    ) -> None:
        self.scorer = scorer
        self.prompts = prompts
        self.questions = questions
        self.options = options
        self._how = Decoding(len_norm=options.len_norm, prior_correct=options.prior_correct)
        self._names = [[prompts.name(name) for name in q.names] for q in questions]

    def __call__(self, texts: Sequence[str]) -> dict[str, Floats]:
        """By feature [N, D], not yet projected."""
        found: dict[str, Floats] = {}
        for place, (question, names) in enumerate(zip(self.questions, self._names, strict=True)):
            scores, states = self._answers(texts, question, names)
            found[f"hkfr.{question.task}"] = self._distribution(scores)
            if place == 0 and self.options.hidden:
                found[HIDDEN] = states.numpy()
        return found

    def _answers(
        self, texts: Sequence[str], question: Question, names: list[Ids]
    ) -> tuple[Tensor, Tensor]:
        room = max(map(len, names)) + 1
        asked = [self.prompts.prompt(text, question.instruction, room) for text in texts]
        scores, states = self.scorer.with_states(asked, names)
        bare = [self.prompts.prompt("", question.instruction, room)] * len(asked)
        return self.scorer.adjusted(scores, names, self._how, bare), states

    def _distribution(self, scores: Tensor) -> Floats:
        logp = scores.double().log_softmax(-1)
        count = logp.shape[1]
        if self.options.top is not None and self.options.top < count:
            best = logp.topk(self.options.top, dim=1)
            left = (1 - best.values.exp().sum(1, keepdim=True)).clamp(min=1e-12)
            rest = (left / (count - self.options.top)).log()
            logp = rest.expand_as(logp).scatter(1, best.indices, best.values)
        found: Floats = (logp if self.options.values == "logp" else logp.exp()).float().numpy()
        return found
