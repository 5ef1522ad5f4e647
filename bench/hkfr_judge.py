"""From per-question hits to words: intervals over seeds and users, Holm, the verdicts of §5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.hkfr_arms import (
    BASE_LEVEL,
    FUSED,
    HEURISTICS,
    PLACEBOS,
    SEQUENCES,
    SUBJECT,
    UNFUSED,
    UNTUNED,
)
from raysys.metrics.blocks import Floats, Ints
from raysys.metrics.bootstrap import Interval, paired_bootstrap, sums_by_user
from raysys.metrics.routing import Hashes
from raysys.metrics.seeds import EFFECT, MIN_SEEDS, holm, paired_t, superiority

CLAIMED = "hr@10~full"
NOT_RUN = "not run"
Figures = dict[str, Any]
Values = Mapping[int, Floats]  # one metric of each of Q questions, by seed


@dataclass(frozen=True)
class Judge:
    """Compares arms over Q questions of U users.

    values: CLAIMED by arm and seed; an arm without chance has one seed, which stands for all.
    user [Q]: codes; users [U]: hashes of ids.
    """

    values: Mapping[str, Values]
    user: Ints
    users: Hashes
    replicates: int

    def mean(self, arm: str) -> float:
        """CLAIMED over seeds and questions."""
        return float(np.mean([found.mean() for found in self.values[arm].values()]))

    def best(self, arms: Sequence[str]) -> str:
        """The best on the test questions: the choice that favours the rival."""
        return max(arms, key=self.mean)

    def difference(self, a: str, b: str) -> tuple[Interval | None, Interval, int]:
        """a − b: interval over seeds (None with fewer than two), over users, number of seeds."""
        first, second = self._shared(self.values[a], self.values[b])
        seeds = None
        if len(first) > 1:
            means = ({s: float(v.mean()) for s, v in found.items()} for found in (first, second))
            seeds = paired_t(*means)
        delta = np.mean([first[seed] - second[seed] for seed in first], axis=0)
        sums = sums_by_user(self.user, len(self.users), delta, np.ones(len(delta)))
        users = paired_bootstrap(self.users, sums[:, 0], sums[:, 1], replicates=self.replicates)
        return seeds, users, len(first)

    def claims(self, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, list[Figures]]:
        """Whether a is better than b, for the pairs of each claim; all are one family of Holm's.

        p is the larger of both sources'.
        """
        found, p = {}, {}
        for claim, of in pairs.items():
            for a, b in of:
                seeds, users, count = self.difference(a, b)
                found[claim, a, b] = seeds, users, count
                p[f"{claim} {a} {b}"] = 1.0 if seeds is None else max(seeds.p, users.p)
        adjusted = holm(p)
        out: dict[str, list[Figures]] = {claim: [] for claim in pairs}
        for (claim, a, b), (seeds, users, count) in found.items():
            p_holm = adjusted[f"{claim} {a} {b}"]
            word = superiority(seeds, users, n_seeds=count, p_adjusted=p_holm)
            out[claim].append({"a": a, "b": b, **_told(seeds, users, count), "p_holm": p_holm,
                               "verdict": word})  # fmt: skip
        return out

    def placebos(self) -> dict[str, Figures]:
        """Each placebo beside the base level, the instruction without any knowledge."""
        out = {}
        for arm in PLACEBOS:
            seeds, users, count = self.difference(arm, BASE_LEVEL)
            low = min(users.low, users.low if seeds is None else seeds.low)
            above = low > 0 and users.delta >= EFFECT
            out[arm] = {**_told(seeds, users, count), "at_base_level": not above}
        return out

    @staticmethod
    def _shared(a: Values, b: Values) -> tuple[Values, Values]:
        if len(a) == 1 or len(b) == 1:
            seeds = list(b if len(a) == 1 else a)
            a, b = (
                dict.fromkeys(seeds, next(iter(v.values()))) if len(v) == 1 else v for v in (a, b)
            )
        shared = sorted(a.keys() & b.keys())
        return {seed: a[seed] for seed in shared}, {seed: b[seed] for seed in shared}


def claimed(judge: Judge, *, fused: bool) -> dict[str, list[Figures]]:
    """The comparisons of §5's "supported iff" that direct recommendation can make."""
    rivals = (UNTUNED, judge.best(HEURISTICS), judge.best(SEQUENCES))
    pairs = {"tuning": [(SUBJECT, other) for other in rivals]}
    if fused:
        pairs["fusion"] = [(FUSED, other) for other in (UNFUSED, SUBJECT)]
    return judge.claims(pairs)


def verdict(result: Figures) -> dict[str, str]:
    """The fixed words of §5, by claim."""
    found = result["data"]
    if "untestable" in found:
        why = f"not testable here: {found['untestable']}"
        return {"tuning": why, "fusion": why, "features": NOT_RUN}
    above = [arm for arm, row in found["placebos"].items() if not row["at_base_level"]]
    if above:
        return {"all": f"not to be trusted: {above[0]} is above the base level"}
    other = result.get("placebo", {}).get("claims", {})
    words = {name: _word(found, other, name) for name in ("tuning", "fusion")}
    return {**words, "features": NOT_RUN}


def _word(found: Figures, placebo: Mapping[str, list[Figures]], claim: str) -> str:
    rows = found["claims"].get(claim)
    if rows is None:
        return f"{NOT_RUN}: no fused knowledge was given"
    verdicts = {row["b"]: row["verdict"] for row in rows}
    if "no verdict" in verdicts.values():
        return f"no verdict: fewer than {MIN_SEEDS} seeds"
    lost = next((b for b in HEURISTICS if verdicts.get(b) == "contradicted"), None)
    if lost is not None:
        neural = [b for b in SEQUENCES if verdicts.get(b) == "supported"]
        beats = f", though it beats {neural[0]}" if neural else ""
        return f"refuted for practical use: {lost} is better{beats}"
    open_ = [b for b, word in verdicts.items() if word != "supported"]
    if open_:
        worse = verdicts[open_[0]] == "contradicted"
        shown = "is better" if worse else "is not shown to be worse"
        return f"not supported: {open_[0]} {shown}"
    rows = placebo.get(claim, ())
    if rows and all(row["verdict"] == "supported" for row in rows):
        return "not supported: it also wins where the law of joint behaviour is off"
    if found["planted"]:
        return "supported on planted data, which test the code and not the claim"
    return "supported"


def _told(seeds: Interval | None, users: Interval, count: int) -> Figures:
    return {
        "delta": users.delta,
        "n_seeds": count,
        "seeds": None if seeds is None else [seeds.low, seeds.high],
        "users": [users.low, users.high],
    }
