"""Published figures of public data sets: orientation beside our own, never our results.

They are from other splits, preprocessing or hardware; whoever is far below them has a fault.
"""

from pydantic import BaseModel, ConfigDict

_METRICS = ("gauc_mean@impression", "mrr@impression", "ndcg@5@impression", "ndcg@10@impression")


class Anchor(BaseModel):
    """A published result. where: the part of the data set; values: by our metrics' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    where: str
    source: str
    values: dict[str, float]


_MIND = """
NPA | large test | MINER paper | .6592 .3207 .3472 .4037
NAML | large test | MIND paper | .6686 .3249 .3524 .4091
LSTUR | large test | MIND paper | .6773 .3277 .3559 .4134
NRMS | large test | MIND paper, 10 runs, half the users | .6776 .3305 .3594 .4163
MINER (BERT) | large test | MINER paper | .7151 .3618 .3972 .4534
MiniLM cosine, untrained | small dev | course study | .6353 .3084 .3371 .3960
NRMS GloVe | small dev | course study | .6667 .3220 .3557 .4184
GBDT, 7 features | small dev | course study | .6747 .3295 .3630 .4217
NAML | small dev | NewsReX card, ± .0024 | .6661
CAUM | small dev | NewsReX card, ± .0053 | .6656
DIGAT | small dev | NewsReX card, ± .0021 | .6760
CROWN | small dev | NewsReX card, ± .0030 | .6778
CNE-SUE | small dev | NNR, 10 runs | .6812 .3268 .3634 .4258
CROWN | small dev | its authors | .6823 .3354 .3697 .4293
MINER | small dev | MINER paper | .6961 .3397 .3762 .4390
"""
_EBNERD = """
NRMS | hidden test | Kruse et al. 2024 | .6103 .3975 .4445 .5124
clicks popularity | hidden test | Kruse et al. 2024 | .5970 .3774 .4236 .4965
random | hidden test | Kruse et al. 2024 | .4998 .3156 .3489 .4338
"""


def _table(text: str) -> tuple[Anchor, ...]:
    rows = (line.split(" | ") for line in text.strip().splitlines())
    return tuple(
        Anchor(
            model=model,
            where=where,
            source=source,
            values=dict(zip(_METRICS, map(float, values.split()), strict=False)),
        )
        for model, where, source, values in rows
    )


ANCHORS: dict[str, tuple[Anchor, ...]] = {"mind": _table(_MIND), "ebnerd": _table(_EBNERD)}


def anchors_of(dataset: str) -> tuple[Anchor, ...]:
    """The published figures for a data card's `dataset`; none for most."""
    return ANCHORS.get(dataset, ())
