"""What a study has found, as one nested mapping of figures and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.fair.judge import Claim, Judged, Parts, differences, judge, part, values
from bench.fair.study import Study
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError, MetricError
from raysys.metrics import gap_share
from raysys.metrics.baselines import GBDT, baseline_metrics, compute_baselines, oracle_scores
from raysys.metrics.blocks import Floats
from raysys.metrics.compare import System
from raysys.metrics.seeds import EFFECT
from raysys.recipes.evaluate import group_key
from raysys.recipes.split_scorer import chosen_impressions

Scores = dict[str, Floats]
_LONGEST = 10_000  # events that a searching arm may see


@dataclass(frozen=True)
class Subject:
    """What a study is about: the arm, the arm that gains are counted from, and its placebos.

    metrics: that claims are about, by default those of `metrics_of`, the first gauc the headline;
    shown: those of the table of arms, by default these, a weighted one and calibration.
    """

    name: str
    over: str
    placebos: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


def metrics_of(data: Prepared) -> tuple[str, str]:
    """What claims are about: pooled AUC, and the mean AUC over the groups of the data card."""
    return "auc", f"gauc_mean@{group_key(data)}"


def results(
    study: Study,
    data: Prepared,
    subject: Subject,
    claims: Sequence[Claim],
    parts: Parts,
    scores: Mapping[str, Scores],
    replicates: int,
) -> tuple[dict[str, Any], list[Judged]]:
    """Figures of a finished study, and its claims judged.

    data: of the first fold. parts: rows [N] of the test by fold and slice. scores: by fold, see
    `cheap`.

    Raises:
        ConfigError: an arm is called like a baseline.
    """
    name = subject.name
    metrics = subject.metrics or metrics_of(data)
    headline = next(metric for metric in metrics if metric.startswith("gauc_mean"))
    own = study.systems[name]
    tested = own.rows[0]
    first = next(iter(tested.values()))
    shown = [*subject.shown]
    if not shown:
        shown = [*metrics, headline.replace("mean", "weighted"), "logloss"]
        if 0 < int(first.order.sum()) < len(first):
            shown.append("auc_ctcvr")
    judged = judge(claims, study.systems, parts, effect=EFFECT, replicates=replicates)
    others = {other: s for other, s in study.systems.items() if other != name}
    rules = list(next(iter(scores.values())))
    both = sorted({*rules} & study.systems.keys())
    if both:
        raise ConfigError(f"{both[0]} is the name of an arm and of a baseline; rename the arm")
    others |= {rule: constant(rule, scores, own) for rule in rules}
    minus = differences(own, others, shown[:3], replicates=replicates)
    cheap_ones = [baseline_metrics(rows, scores[fold], metrics) for fold, rows in tested.items()]
    found = {
        "data_card_id": data.dataset.manifest.data_card_id,
        "headline": headline,
        "planted": "oracle" in rules,
        "folds": len(tested),
        "trained_on_rows": study.rows,
        "test": {
            "rows": sum(len(rows) for rows in tested.values()),
            "users": len({user for rows in tested.values() for user in rows.user.values.tolist()}),
        },
        "core_hours": round(sum(study.seconds.values()) / 3600, 2),
        "arms": {
            arm: {
                **{m: v.model_dump() for m, v in values(system, shown).items()},
                "tuned_to": study.chosen[arm],
                "core_minutes": round(study.seconds[arm] / 60, 1),
            }
            for arm, system in study.systems.items()
        },
        f"{name}_minus": {
            arm: {
                m: {
                    "delta": row.delta,
                    "seeds": None if row.seeds is None else [row.seeds.low, row.seeds.high],
                    "users": [row.users.low, row.users.high],
                }
                for m, row in rows.items()
            }
            for arm, rows in minus.items()
        },
        "claims": [told(row) for row in judged],
        "placebo_gains": gains(study.systems, subject, metrics),
        "slices": sliced(study.systems, parts, headline),
        "baselines": {
            rule: {m: float(np.mean([fold[rule][m].value for fold in cheap_ones])) for m in metrics}
            for rule in rules
        },
        **_gap_closed(study, scores, headline, replicates),
    }
    return found, judged


def constant(name: str, scores: Mapping[str, Scores], like: System) -> System:
    """A baseline as an arm that is the same with every seed of `like`; scores: by fold."""
    return System(
        name,
        {
            seed: {fold: rows.with_scores(scores[fold][name]) for fold, rows in folds.items()}
            for seed, folds in like.rows.items()
        },
    )


def told(row: Judged) -> dict[str, Any]:
    """A claim with its figures and its word."""
    claim = row.claim
    where = f" on {claim.slice}" if claim.slice else ""
    return {
        "claim": f"{claim.a} {claim.kind} than {claim.b} in {claim.metric}{where}",
        "a": row.a,
        "b": row.b,
        "delta": row.delta,
        "n_seeds": row.n_seeds,
        "seeds": None if row.seeds is None else [row.seeds.low, row.seeds.high],
        "users": None if row.users is None else [row.users.low, row.users.high],
        "p_holm": row.p_holm,
        "verdict": row.verdict,
        "reason": row.reason,
    }


def gains(
    systems: dict[str, System], subject: Subject, metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Gains of each placebo beside the subject's; whether they are under half of it, in all
    metrics. Those that were not run are left out."""
    if subject.over not in systems:
        return {}
    placebos = [arm for arm in subject.placebos if arm in systems]
    wanted = (subject.name, subject.over, *placebos)
    means = {arm: {m: v.mean for m, v in values(systems[arm], metrics).items()} for arm in wanted}
    gain = {arm: {m: means[arm][m] - means[subject.over][m] for m in metrics} for arm in wanted}
    own = gain[subject.name]
    return {
        arm: {
            "over": subject.over,
            "gain": gain[arm],
            "of": own,
            "below_half": all(gain[arm][m] < own[m] / 2 for m in metrics),
        }
        for arm in placebos
    }


def sliced(systems: dict[str, System], parts: Parts, metric: str) -> dict[str, Any]:
    """The metric of every arm on every slice that holds clicks and other rows, in one group of
    each fold at least."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(name for slices in parts.values() for name in slices):
        cut = {arm: part(system, name, parts) for arm, system in systems.items()}
        rows = list(next(iter(cut.values())).rows[0].values())
        if not all(0 < int(fold.click.sum()) < len(fold) for fold in rows):
            continue
        try:
            means = {arm: values(system, [metric])[metric].mean for arm, system in cut.items()}
        except MetricError:
            continue
        out[name] = {"rows": sum(len(fold) for fold in rows), metric: means}
    return out


def supported(claims: Sequence[dict[str, Any]]) -> bool:
    """Whether any claim of a placebo world is shown."""
    return any(row["verdict"] == "supported" for row in claims)


def failed_leak(found: Mapping[str, Any]) -> str | None:
    """The first leak test that failed."""
    tests = found["leak_tests"].items()
    return next((name for name, finding in tests if finding["passed"] is False), None)


def open_claim(found: Mapping[str, Any]) -> str | None:
    """Words for the first claim that could not be judged."""
    row = next((row for row in found["claims"] if row["verdict"] == "no verdict"), None)
    if row is None:
        return None
    reason = row["reason"] or "too few seeds"
    return f"no verdict: not to be judged here is that {row['claim']} ({reason})"


def beside_baselines(found: Mapping[str, Any], name: str) -> str:
    """The subject beside the trees and the best of the other cheap rules, in the headline."""
    metric = found["headline"]
    rules = {rule: v[metric] for rule, v in found["baselines"].items() if rule != "oracle"}
    trees = max(GBDT, key=lambda rule: rules.get(rule, 0.0))
    best = max((rule for rule in rules if rule not in GBDT), key=lambda rule: rules[rule])
    told = []
    for rule in (trees, best):
        if rule in rules:
            row = found[f"{name}_minus"][rule][metric]
            low, high = row["users"]
            side = "above" if low > 0 else "below" if high < 0 else "neither above nor below"
            told.append(f"{side} {rule} ({row['delta']:+.4f} [{low:+.4f}, {high:+.4f}])")
    return f"{metric} is {' and '.join(told)}"


def seen_of(data: Prepared, users: int, window: int | None) -> tuple[int, float]:
    """(events that searching arms see, share of the scored test requests that have more).

    window: None for as many as the longest history has, 10,000 at most.
    """
    chosen = chosen_impressions(data, "test", users)
    lengths = data.impressions.end[chosen] - data.impressions.start[chosen]
    seen = window or int(min(_LONGEST, lengths.max(initial=1)))
    return seen, float((lengths > seen).mean())


def cut_short(found: Mapping[str, Any]) -> str:
    """Words about requests with more events than searching arms saw; none if there are none."""
    if not found["beyond_window"]:
        return ""
    return (
        f"; {found['beyond_window']:.0%} of the requests have more events than the "
        f"{found['window']} that searching arms saw"
    )


def cheap(data: Prepared, users: int, vectors: npt.NDArray[np.float32] | None = None) -> Scores:
    """Scores [N] of the cheap baselines and, on planted worlds, of the oracle, on the test rows.

    vectors: [2 + items, D] frozen text vectors, for the baselines that read them.
    """
    log = data.impressions
    every = log.of("test")
    chosen = chosen_impressions(data, "test", users)
    rows = np.isin(np.repeat(every, np.diff(log.offsets)[every]), chosen)
    scores = dict(compute_baselines(data, "test", seed=0, vectors=vectors))
    oracle = oracle_scores(data, "test")
    if oracle is not None:
        scores["oracle"] = oracle
    return {name: values[rows] for name, values in scores.items()}


def _gap_closed(
    study: Study, by_fold: Mapping[str, Scores], metric: str, replicates: int
) -> dict[str, Any]:
    """Share of the gap to the oracle that each arm closes, on planted worlds, which have no
    folds."""
    scores = by_fold.get("", {})
    if "oracle" not in scores:
        return {}
    shares = {
        name: gap_share(
            {seed: folds[""] for seed, folds in system.rows.items()},
            scores[GBDT[0]],
            scores["oracle"],
            metric,
            replicates=replicates,
        )
        for name, system in study.systems.items()
    }
    return {
        f"gap_closed_from_{GBDT[0]}": {
            name: {
                "share": share.share,
                "seeds": None if share.seeds is None else [share.seeds.low, share.seeds.high],
                "users": [share.users.low, share.users.high],
            }
            for name, share in shares.items()
        }
    }
