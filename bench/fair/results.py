"""What a study has found, as one nested mapping of figures and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.fair.judge import Claim, Judged, differences, judge, part, values
from bench.fair.slices import Mask
from bench.fair.study import Study
from raysys.data.prepared import Prepared
from raysys.metrics import gap_share
from raysys.metrics.baselines import GBDT, baseline_metrics, compute_baselines, oracle_scores
from raysys.metrics.blocks import Floats
from raysys.metrics.compare import System
from raysys.metrics.seeds import EFFECT
from raysys.recipes.split_scorer import chosen_impressions

SHOWN = ("auc", "gauc_mean@user", "gauc_weighted@user", "logloss", "auc_ctcvr")
METRICS = ("auc", "gauc_mean@user")  # those that claims are about
HEADLINE = "gauc_mean@user"
Scores = dict[str, Floats]


@dataclass(frozen=True)
class Subject:
    """What a study is about: the arm, the arm that gains are counted from, and its placebos."""

    name: str
    over: str
    placebos: tuple[str, ...]


def results(
    study: Study,
    data: Prepared,
    subject: Subject,
    claims: Sequence[Claim],
    parts: Mapping[str, Mask],
    users: int,
    replicates: int,
) -> tuple[dict[str, Any], list[Judged]]:
    """Figures of a finished study, and its claims judged.

    parts: rows [N] of the test by slice; claims about a slice that is not there are left out.
    users: how many the test is of.
    """
    name = subject.name
    first = study.systems[name].rows[0][""]
    orders = 0 < int(first.order.sum()) < len(first)
    shown = [metric for metric in SHOWN if orders or metric != "auc_ctcvr"]
    asked = [claim for claim in claims if not claim.slice or claim.slice in parts]
    judged = judge(asked, study.systems, parts, effect=EFFECT, replicates=replicates)
    others = {other: s for other, s in study.systems.items() if other != name}
    minus = differences(study.systems[name], others, shown, replicates=replicates)
    scores = _cheap(data, users)
    cheap = baseline_metrics(first, scores, METRICS)
    found = {
        "data": str(data.dataset.path),
        "data_card_id": data.dataset.manifest.data_card_id,
        "trained_on_rows": study.rows,
        "test": {"rows": len(first), "users": len(first.user.values)},
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
        "placebo_gains": gains(study.systems, subject),
        "slices": sliced(study.systems, parts),
        "baselines": {arm: {m: v.value for m, v in row.items()} for arm, row in cheap.items()},
        **_gap_closed(study, scores, replicates),
    }
    return found, judged


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
        "users": [row.users.low, row.users.high],
        "p_holm": row.p_holm,
        "verdict": row.verdict,
    }


def gains(systems: dict[str, System], subject: Subject) -> dict[str, dict[str, Any]]:
    """Gains of each placebo beside the subject's; whether they are under half of it, in all
    metrics."""
    wanted = (subject.name, subject.over, *subject.placebos)
    means = {arm: {m: v.mean for m, v in values(systems[arm], METRICS).items()} for arm in wanted}
    gain = {arm: {m: means[arm][m] - means[subject.over][m] for m in METRICS} for arm in wanted}
    own = gain[subject.name]
    return {
        arm: {
            "over": subject.over,
            "gain": gain[arm],
            "of": own,
            "below_half": all(gain[arm][m] < own[m] / 2 for m in METRICS),
        }
        for arm in subject.placebos
    }


def sliced(systems: dict[str, System], parts: Mapping[str, Mask]) -> dict[str, Any]:
    """The headline of every arm on every slice that holds clicks and other rows."""
    out: dict[str, Any] = {}
    for name, mask in parts.items():
        cut = {arm: part(system, mask) for arm, system in systems.items()}
        first = next(iter(cut.values())).rows[0][""]
        if not 0 < int(first.click.sum()) < len(first):
            continue
        out[name] = {
            "rows": int(mask.sum()),
            HEADLINE: {
                arm: values(system, [HEADLINE])[HEADLINE].mean for arm, system in cut.items()
            },
        }
    return out


def supported(claims: Sequence[dict[str, Any]]) -> bool:
    """Whether any claim of a placebo world is shown."""
    return any(row["verdict"] == "supported" for row in claims)


def failed_leak(found: Mapping[str, Any]) -> str | None:
    """The first leak test that failed."""
    tests = found["leak_tests"].items()
    return next((name for name, finding in tests if finding["passed"] is False), None)


def _cheap(data: Prepared, users: int) -> Scores:
    """Scores [N] of the cheap baselines and, on planted worlds, of the oracle, on the test rows."""
    log = data.impressions
    every = log.of("test")
    chosen = chosen_impressions(data, "test", users)
    rows = np.isin(np.repeat(every, np.diff(log.offsets)[every]), chosen)
    scores = dict(compute_baselines(data, "test", seed=0))
    oracle = oracle_scores(data, "test")
    if oracle is not None:
        scores["oracle"] = oracle
    return {name: values[rows] for name, values in scores.items()}


def _gap_closed(study: Study, scores: Scores, replicates: int) -> dict[str, Any]:
    """Share of the gap to the oracle that each arm closes, on planted worlds."""
    if "oracle" not in scores:
        return {}
    shares = {
        name: gap_share(
            {seed: folds[""] for seed, folds in system.rows.items()},
            scores[GBDT[0]],
            scores["oracle"],
            HEADLINE,
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
