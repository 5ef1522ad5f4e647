"""The fair test of CoFARS (Feng et al., WWW 2024 Companion): is it context retrieval that helps?

Arms × seeds over any data set folder. Everything is kept in `out`: the same command goes on where
it was stopped. Planted worlds also give the share of the gap to the oracle, and what of the
planted map the prototypes recover; with `placebo` the whole study runs again on the world whose
context law is off, where CoFARS must not win.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bench.cofars_arms import CANDIDATE_AWARE, PLACEBOS, arms, claims
from bench.cofars_recovery import recovery
from bench.fair.arms import Arm
from bench.fair.leaks import leaks_of
from bench.fair.report import tables, write_page
from bench.fair.results import (
    Scores,
    Subject,
    beside_baselines,
    cheap,
    cut_short,
    failed_leak,
    metrics_of,
    open_claim,
    results,
    seen_of,
    supported,
)
from bench.fair.slices import slices
from bench.fair.study import Sizes, Study, run_study
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.metrics.bootstrap import REPLICATES
from raysys.options import load_yaml

SUBJECT = Subject(name="cofars", over="recent", placebos=PLACEBOS)
Figures = dict[str, Any]


def run(
    data: str,
    placebo: str | None = None,
    config: str = "raysys/configs/ctr/cofars-small.yaml",
    out: str = "runs/bench-cofars-fair",
    seeds: int = 5,
    other_seeds: int = 2,
    rows: int = 300_000,
    valid_rows: int = 30_000,
    users: int = 2_000,
    window: int | None = None,
    category: str | None = None,
    max_core_hours: float = 4.0,
    only: list[str] | None = None,
    replicates: int = REPLICATES,
) -> Figures:
    """Every arm with its figures, every claim with its intervals and words.

    data, placebo: data set folders. config: of `ctr/cofars`; what the arms have in common. rows,
    valid_rows, users, seeds, other_seeds, max_core_hours: see `Sizes`; they hold for each of the
    two folders. On `placebo` only the arms run that a claim names.
    window: the newest events that arms which search or pool the history see; by default as many
    as the longest history has, 10,000 at most. With a smaller one these arms know less than
    CoFARS, and the verdict says so. category: the item field of SIM's hard search. only: names of
    arms, cofars among them, if a question about these is all that is asked, say with more seeds
    and users; there is no verdict on the whole then.

    Raises:
        ConfigError: no config of `ctr/cofars`, an unknown arm, or `out` holds a study with other
            options.
        RaysysError: what a training raised.
    """
    base = load_yaml(Path(config))
    if "cofars" not in base:
        raise ConfigError(f"{config}: no config of ctr/cofars; it has no section cofars")
    sizes = Sizes(
        rows=rows,
        valid_rows=valid_rows,
        users=users,
        seeds=seeds,
        other_seeds=other_seeds,
        max_core_hours=max_core_hours,
    )
    result: Figures = {"bench": "cofars-fair", "config": config, "out": out}
    for name, folder in (("data", data), ("placebo", placebo)):
        if folder is None:
            continue
        prepared = prepare(Dataset(folder))
        seen, beyond = seen_of(prepared, users, window)
        studied = _wanted(arms(base, seen, category), only)
        if name == "placebo":
            # No claim asks for the others where the law is off.
            studied = [arm for arm in studied if arm.named]
        where = Path(out) / name
        study = run_study(studied, base, folder, where, sizes)
        scores = cheap(prepared, users)
        found = _reported(study, base, prepared, where / "runs", scores, replicates)
        found |= {"data": folder, "window": seen, "beyond_window": beyond}
        # CoFARS has every part that could leak.
        found["leak_tests"] = leaks_of(
            "cofars", studied, base, prepared, study, where, users, scores
        )
        result[name] = found
        write_page(found, where, "cofars", found["headline"])
    result["verdict"] = _verdict(result) if only is None else _part(result["data"])
    return result


def _wanted(every: list[Arm], only: list[str] | None) -> list[Arm]:
    if only is None:
        return every
    names = [arm.name for arm in every]
    unknown = [name for name in only if name not in names]
    if unknown or "cofars" not in only:
        raise ConfigError(f"only={only}: cofars and others of {', '.join(names)}")
    chosen = [arm for arm in every if arm.name in only]
    lacking = [arm for arm in chosen if arm.tuned_as not in (None, *only)]
    if lacking:
        raise ConfigError(f"only: {lacking[0].name} is tuned as {lacking[0].tuned_as}; name it too")
    return chosen


def markdown(result: Figures) -> str:
    """The tables of `run` for the page of results."""
    parts = [f"Verdict: **{result['verdict']}**."]
    for name in ("data", "placebo"):
        if name in result:
            title = "The data" if name == "data" else "The same with the context law off"
            found = result[name]
            parts.append(f"{title}. {tables(found, 'cofars', found['headline'])}")
    return "\n\n".join(parts)


def _reported(
    study: Study,
    base: dict[str, Any],
    data: Prepared,
    runs: Path,
    scores: Scores,
    replicates: int,
) -> Figures:
    contexts = base["cofars"]["contexts"]["features"]
    support = base["cofars"]["preferences"].get("support", 30)
    parts = slices(data, study.systems["cofars"].rows[0][""], contexts, support)
    rivals = [name for name in CANDIDATE_AWARE if name in study.systems]
    rival = max(
        rivals,
        key=lambda name: float(np.mean(list(study.validation[name].values()))),
        default=CANDIDATE_AWARE[0],
    )
    asked = [c for c in claims(rival, metrics_of(data)) if {c.a, c.b} <= study.systems.keys()]
    found, judged = results(study, data, SUBJECT, asked, {"": parts}, {"": scores}, replicates)
    return {
        **found,
        "best_candidate_aware": rival,
        **({"recovery": _recovery(study, data, runs)} if found["planted"] else {}),
        "supported_but_cost": all(row.holds for row in judged)
        and all(gain["below_half"] for gain in found["placebo_gains"].values()),
        "not_worse_than_best": all(row.holds for row in judged if row.claim.b == rival),
    }


def _recovery(study: Study, data: Prepared, runs: Path) -> Figures:
    """What of the hidden map each arm's prototypes recover."""
    return {
        name: recovery(data, [runs / name / f"seed-{n}" for n in study.systems[name].rows])
        for name in study.systems
        if name.startswith("cofars")
    }


def _verdict(result: Figures) -> str:
    """The words of §5, in a fixed order; the cost part is measured by `cofars-cost`."""
    found = result["data"]
    leak = failed_leak(found)
    if leak is not None:
        return f"not to be trusted: {leak} failed"
    words = _words(found, result.get("placebo"))
    return f"{beside_baselines(found, 'cofars')}; {words}{cut_short(found)}"


def _part(found: Figures) -> str:
    """What is said of a study of some arms."""
    leak = failed_leak(found)
    if leak is not None:
        return f"not to be trusted: {leak} failed"
    shown = [row for row in found["claims"] if row["verdict"] in ("supported", "not inferior")]
    return (
        f"no verdict on the whole, only {', '.join(found['arms'])} were run: "
        f"{len(shown)} of the {len(found['claims'])} claims about them are shown"
    )


def _words(found: Figures, placebo: Figures | None) -> str:
    unjudged = open_claim(found)
    if unjudged is not None:
        return unjudged
    if not found["supported_but_cost"]:
        if found["planted"]:
            return "planted data: the law is not recovered as it should be"
        if found["not_worse_than_best"]:
            return (
                "not supported in quality; not inferior to the best candidate-aware arm, so "
                "cheaper at equal quality if cofars-cost shows it"
            )
        return "not supported"
    if placebo is not None and supported(placebo["claims"]):
        return "not supported: CoFARS also wins where the context law is off"
    if found["planted"]:
        world = "with the law off it does not win" if placebo else "the world without it not run"
        return f"planted data, which support nothing beyond correctness: the law is found; {world}"
    return "supported, if retrieval time is flat (cofars-cost)"
