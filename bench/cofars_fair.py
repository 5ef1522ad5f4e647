"""The fair test of CoFARS (Feng et al., WWW 2024 Companion): is it context retrieval that helps?

Arms × seeds over any data set folder. Everything is kept in `out`: the same command goes on where
it was stopped. Planted worlds also give the share of the gap to the oracle, and what of the
planted map the prototypes recover; with `placebo` the whole study runs again on the world whose
context law is off, where CoFARS must not win.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.cofars_arms import CANDIDATE_AWARE, METRICS, PLACEBOS, arms, claims
from bench.cofars_recovery import recovery
from bench.fair.arms import Arm
from bench.fair.judge import Claim, Judged, differences, judge, part, values
from bench.fair.leaks import leak_tests
from bench.fair.report import tables, write_page
from bench.fair.slices import Mask, slices
from bench.fair.study import Sizes, Study, run_study
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.metrics import gap_share
from raysys.metrics.baselines import GBDT, baseline_metrics, compute_baselines, oracle_scores
from raysys.metrics.blocks import Floats
from raysys.metrics.bootstrap import REPLICATES
from raysys.metrics.compare import System
from raysys.metrics.seeds import EFFECT
from raysys.options import load_yaml
from raysys.recipes.split_scorer import chosen_impressions

_SHOWN = ("auc", "gauc_mean@user", "gauc_weighted@user", "logloss", "auc_ctcvr")
_GAP = "gauc_mean@user"
Scores = dict[str, Floats]


def run(
    data: str,
    placebo: str | None = None,
    config: str = "raysys/configs/ctr/cofars-small.yaml",
    out: str = "runs/bench-cofars-fair",
    seeds: int = 5,
    other_seeds: int = 2,
    rows: int = 300_000,
    users: int = 2_000,
    window: int = 1_000,
    max_core_hours: float = 4.0,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """Every arm with its figures, every claim with its intervals and words.

    data, placebo: data set folders. config: of `ctr/cofars`; what the arms have in common. rows,
    users, seeds, other_seeds, max_core_hours: see `Sizes`; they hold for each of the two folders.
    On `placebo` only the arms run that a claim names.
    window: events that arms which search the history see.

    Raises:
        ConfigError: no config of `ctr/cofars`, or `out` holds a study with other options.
        RaysysError: what a training raised.
    """
    base = load_yaml(Path(config))
    if "cofars" not in base:
        raise ConfigError(f"{config}: no config of ctr/cofars; it has no section cofars")
    sizes = Sizes(
        rows=rows,
        users=users,
        seeds=seeds,
        other_seeds=other_seeds,
        max_core_hours=max_core_hours,
    )
    chosen = arms(base, window)
    result: dict[str, Any] = {"bench": "cofars-fair", "config": config, "out": out}
    # No claim asks for the others where the law is off.
    named = [arm for arm in chosen if arm.named]
    for name, folder, studied in (("data", data, chosen), ("placebo", placebo, named)):
        if folder is not None:
            study = run_study(studied, base, folder, Path(out) / name, sizes)
            where = Path(out) / name / "runs"
            result[name] = _reported(study, base, folder, where, sizes, replicates)
            result[name]["leak_tests"] = _leaks(
                chosen, base, study, folder, Path(out) / name, users
            )
            write_page(result[name], Path(out) / name, "cofars", _GAP)
    result["verdict"] = _verdict(result)
    return result


def markdown(result: dict[str, Any]) -> str:
    """The tables of `run` for the page of results."""
    parts = [f"Verdict: **{result['verdict']}**."]
    for name in ("data", "placebo"):
        if name in result:
            title = "The data" if name == "data" else "The same with the context law off"
            parts.append(f"{title}. {tables(result[name], 'cofars', _GAP)}")
    return "\n\n".join(parts)


def _reported(
    study: Study, base: dict[str, Any], folder: str, runs: Path, sizes: Sizes, replicates: int
) -> dict[str, Any]:
    data = prepare(Dataset(folder))
    first = study.systems["cofars"].rows[0][""]
    orders = 0 < int(first.order.sum()) < len(first)
    shown = [m for m in _SHOWN if orders or m != "auc_ctcvr"]
    contexts = base["cofars"]["contexts"]["features"]
    support = base["cofars"]["preferences"].get("support", 30)
    parts = slices(data, first, contexts, support)
    rival = max(
        CANDIDATE_AWARE, key=lambda name: float(np.mean(list(study.validation[name].values())))
    )
    asked = [claim for claim in claims(rival) if not claim.slice or claim.slice in parts]
    judged = judge(asked, study.systems, parts, effect=EFFECT, replicates=replicates)
    others = {name: s for name, s in study.systems.items() if name != "cofars"}
    minus = differences(study.systems["cofars"], others, shown, replicates=replicates)
    scores = _cheap(data, sizes.users)
    cheap = baseline_metrics(first, scores, METRICS)
    return {
        "data": folder,
        "data_card_id": data.dataset.manifest.data_card_id,
        "trained_on_rows": study.rows,
        "test": {"rows": len(first), "users": len(first.user.values)},
        "core_hours": round(sum(study.seconds.values()) / 3600, 2),
        "arms": {
            name: {
                **{m: v.model_dump() for m, v in values(system, shown).items()},
                "tuned_to": study.chosen[name],
                "core_minutes": round(study.seconds[name] / 60, 1),
            }
            for name, system in study.systems.items()
        },
        "cofars_minus": {
            name: {
                m: {
                    "delta": row.delta,
                    "seeds": None if row.seeds is None else [row.seeds.low, row.seeds.high],
                    "users": [row.users.low, row.users.high],
                }
                for m, row in found.items()
            }
            for name, found in minus.items()
        },
        "best_candidate_aware": rival,
        "claims": [_told(row) for row in judged],
        "placebo_gains": _placebo_gains(study.systems),
        "slices": _sliced(study.systems, parts),
        "baselines": {
            name: {m: v.value for m, v in found.items()} for name, found in cheap.items()
        },
        **_planted(study, data, runs, scores, replicates),
        "supported_but_cost": all(row.holds for row in judged)
        and all(gain["below_half"] for gain in _placebo_gains(study.systems).values()),
        "not_worse_than_best": all(row.holds for row in judged if row.claim.b == rival),
    }


def _leaks(
    chosen: Sequence[Arm], base: dict[str, Any], study: Study, folder: str, out: Path, users: int
) -> dict[str, Any]:
    """Of CoFARS: it has every part that could leak."""
    arm = next(arm for arm in chosen if arm.name == "cofars")
    found = leak_tests(arm, base, prepare(Dataset(folder)), study, out, users)
    return {finding.test: finding.model_dump(exclude={"test"}) for finding in found}


def _told(row: Judged) -> dict[str, Any]:
    claim: Claim = row.claim
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


def _placebo_gains(systems: dict[str, System]) -> dict[str, dict[str, Any]]:
    """Gains over recent-K; of a placebo under half of CoFARS's, in all metrics (§5 d)."""
    means = {
        name: {m: v.mean for m, v in values(systems[name], METRICS).items()}
        for name in ("cofars", "recent", *PLACEBOS)
    }
    gains = {
        name: {m: means[name][m] - means["recent"][m] for m in METRICS}
        for name in ("cofars", *PLACEBOS)
    }
    return {
        name: {
            "gain": gains[name],
            "cofars_gain": gains["cofars"],
            "below_half": all(gains[name][m] < gains["cofars"][m] / 2 for m in METRICS),
        }
        for name in PLACEBOS
    }


def _sliced(systems: dict[str, System], parts: dict[str, Mask]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, mask in parts.items():
        cut = {arm: part(system, mask) for arm, system in systems.items()}
        first = next(iter(cut.values())).rows[0][""]
        if not 0 < int(first.click.sum()) < len(first):
            continue
        out[name] = {
            "rows": int(mask.sum()),
            _GAP: {arm: values(system, [_GAP])[_GAP].mean for arm, system in cut.items()},
        }
    return out


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


def _planted(
    study: Study, data: Prepared, runs: Path, scores: Scores, replicates: int
) -> dict[str, Any]:
    """Share of the gap that each arm closes, and what of the hidden map is recovered."""
    if "oracle" not in scores:
        return {}
    shares = {
        name: gap_share(
            {seed: folds[""] for seed, folds in system.rows.items()},
            scores[GBDT[0]],
            scores["oracle"],
            _GAP,
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
        },
        "recovery": {
            name: recovery(data, [runs / name / f"seed-{n}" for n in study.systems[name].rows])
            for name in study.systems
            if name.startswith("cofars")
        },
    }


def _verdict(result: dict[str, Any]) -> str:
    """The fixed words of §5; the cost part is measured by `cofars-cost`."""
    found = result["data"]
    for test, finding in found["leak_tests"].items():
        if finding["passed"] is False:
            return f"not to be trusted: {test} failed"
    if not found["supported_but_cost"]:
        return "quality: equal to the best" if found["not_worse_than_best"] else "not supported"
    placebo: Sequence[dict[str, Any]] = result.get("placebo", {}).get("claims", ())
    if any(row["verdict"] == "supported" for row in placebo):
        return "not supported: CoFARS also wins where the context law is off"
    return "supported, if retrieval time is flat (cofars-cost)"
