"""What LARR's two stages that tune a language model have in common: texts of places and users."""

from typing import Literal

from pydantic import Field

from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.larr.corpus import training_texts
from raysys.larr.log import Log
from raysys.larr.texts import SPECIAL_TOKENS, TextConfig
from raysys.recipes import llm
from raysys.recipes.llm import Base, LlmRecipe
from raysys.training import Session


class StageRecipe(LlmRecipe):
    """Config of a stage.

    holdout: share of places that no stage trains on; give both stages the same, and the seed.
    """

    text: TextConfig = TextConfig()
    holdout: float = Field(default=0.1, ge=0, lt=1)
    holdout_seed: int = Field(default=0, ge=0)

    @property
    def told(self) -> str:
        """For the card of the run."""
        return (
            "Stage of LARR, a reconstruction (Wan et al., RecSys 2024); no published figures "
            f"compared. Held out: {self.holdout:g} of the places."
        )


def open_log(config: StageRecipe) -> Log:
    """The data set as the stages see it.

    Raises:
        DataError: damaged, or nothing to learn from.
    """
    data: Prepared = prepare(Dataset(config.data))
    return Log.of(data, config.text, config.holdout, config.holdout_seed)


def ready(config: StageRecipe) -> Prepared:
    """Check data and options together.

    Raises:
        RaysysError: nothing can be learned from these data with these options.
    """
    log = open_log(config)
    training_texts(log)
    llm.refuse_too_long(config)
    return log.data


def open_base(
    config: StageRecipe, session: Session, log: Log, kind: Literal["causal", "body"]
) -> Base:
    """See `raysys.recipes.llm.open_base`: with the marks of the texts."""

    def texts() -> list[str]:
        # The vocabulary is learned from training days alone, too.
        begin, end = log.train_spans
        return training_texts(log) + [
            log.user_text(user, int(begin[user]), int(end[user]), "user", training=True)
            for user in range(min(len(begin), 1000))
        ]

    return llm.open_base(config, session, kind, SPECIAL_TOKENS, texts)
