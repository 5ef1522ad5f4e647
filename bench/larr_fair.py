"""The fair test of LARR's scene vector: is it the text that helps?

LARR (Wan et al., RecSys 2024) is reconstructed here, and no published figures exist to compare
with. Arms × seeds over any data set folder; everything is kept in `out`, and the same command goes
on where it was stopped. With `placebo` the whole study runs again on the world whose words mean
nothing, where LARR must not win.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.fair.arms import Arm
from bench.fair.folds import Fold, Folds, run_folds
from bench.fair.leaks import leaks_of
from bench.fair.report import tables, write_page
from bench.fair.results import (
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
from bench.fair.slices import scene_slices
from bench.fair.study import Sizes, run_study
from bench.larr_arms import CONTROLS, OFF_THE_SHELF, PLACEBOS, SLICES, arms, claims
from bench.larr_cost import scene_cost
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.errors import ConfigError
from raysys.metrics.bootstrap import REPLICATES
from raysys.options import load_yaml
from raysys.recipes.registry import ready

SUBJECT = Subject(name="larr", over="no-scene", placebos=PLACEBOS)
FOLD = "{fold}"
NO_FIGURES = "no published figures compared: LARR is reconstructed, and none are known"


def run(
    data: str,
    placebo: str | None = None,
    config: str = "raysys/configs/ctr/larr-small.yaml",
    out: str = "runs/bench-larr-fair",
    encoder: str = OFF_THE_SHELF,
    pooling: str = "mean",
    variants: dict[str, str] | None = None,
    small: str | None = None,
    seeds: int = 5,
    other_seeds: int = 2,
    rows: int = 300_000,
    valid_rows: int = 30_000,
    users: int = 2_000,
    window: int | None = None,
    rare: int = 30,
    max_core_hours: float = 4.0,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """Every arm with its figures, every claim with its intervals and words.

    data, placebo: data set folders; the folds of one log are parted by commas and averaged within
    a seed. config: of `ctr/larr`; what the arms have in common. encoder:
    whose vectors LARR's arms read, by default an off-the-shelf one, without stages 1 and 2;
    pooling: its pooling. variants: encoders that lack a stage, e.g. {no-cpt: dir:RUN/hf}. small: an
    encoder of a few layers, dir:RUN/hf, that learns with the ranker: the upper reference. Of folds
    each has its own, which has not learned from the fold's test rows: {fold} in a spec is the
    fold's number, from 0. rows,
    valid_rows, users, seeds, other_seeds, max_core_hours: see `Sizes`; they hold for each of the
    two folders. On `placebo` only the arms run that a claim names.
    window: events that arms which search the history see, by default as many as the longest has,
    10,000 at most. rare: training requests below which a scene value is rare.

    Raises:
        ConfigError: no config of `ctr/larr`, or `out` holds a study with other options.
        RaysysError: what a training raised.
    """
    base = load_yaml(Path(config))
    if "larr" not in base:
        raise ConfigError(f"{config}: no config of ctr/larr; it has no section larr")
    specs = [encoder, *(variants or {}).values(), *([] if small is None else [small])]
    if "," in data and any(s.startswith("dir:") and FOLD not in s for s in specs):
        raise ConfigError(
            "folds of one log, but one encoder for all: it has learned from what others test; "
            f"name one for each, as in dir:runs/encoder-{FOLD}/hf"
        )
    sizes = Sizes(
        rows=rows,
        valid_rows=valid_rows,
        users=users,
        seeds=seeds,
        other_seeds=other_seeds,
        max_core_hours=max_core_hours,
    )
    encoders = dict(variants or {})
    result: dict[str, Any] = {
        "bench": "larr-fair",
        "published": NO_FIGURES,
        "config": config,
        "encoder": encoder,
        "out": out,
    }

    def study_of(name: str, folders: str) -> dict[str, Any]:
        where = Path(out) / name

        def train(folder: str, at: Path, share: Sizes) -> Fold:
            prepared = prepare(Dataset(folder))
            seen, _ = seen_of(prepared, users, window)
            fold = at.name.removeprefix("fold-")
            chosen = arms(
                base,
                encoder.replace(FOLD, fold),
                {name: spec.replace(FOLD, fold) for name, spec in encoders.items()},
                seen,
                pooling,
                None if small is None else small.replace(FOLD, fold),
            )
            _encode(chosen, base, folder)
            # No claim asks for the others where the law is off.
            studied = chosen if name == "data" else [arm for arm in chosen if arm.named]
            study = run_study(studied, base, folder, at, share)
            return Fold(prepared, at, base, chosen, study, cheap(prepared, users))

        folds = run_folds(train, folders, where, sizes)
        first = folds.first
        seen, beyond = seen_of(first.data, users, window)
        found = _reported(folds, base, encoders, rare, replicates)
        found |= {"data": folders, "window": seen, "beyond_window": beyond}
        found["cost"] = scene_cost(first.data, first.runs("larr")[0], first.runs("din")[0])
        # One fold shows whether something leaks; the others are made the same way.
        found["leak_tests"] = leaks_of(
            "larr", first.arms, base, first.data, first.study, first.where, users, first.scores
        )
        write_page(found, where, "larr", found["headline"])
        return found

    for name, folders in (("data", data), ("placebo", placebo)):
        if folders is not None:
            result[name] = study_of(name, folders)
    result["verdict"] = verdict(result)
    result["stages_1_and_2"] = stages(result, encoder, encoders)
    return result


def markdown(result: dict[str, Any]) -> str:
    """The tables of `run` for the page of results."""
    parts = [
        f"{NO_FIGURES[0].upper()}{NO_FIGURES[1:]}. Encoder: `{result['encoder']}`.",
        f"Verdict: **{result['verdict']}**. Stages 1 and 2: {result['stages_1_and_2']}.",
    ]
    for name in ("data", "placebo"):
        if name in result:
            title = "The data" if name == "data" else "The same with the law of words off"
            found = result[name]
            parts.append(f"{title}. {tables(found, 'larr', found['headline'])}")
    return "\n\n".join(parts)


def verdict(result: dict[str, Any]) -> str:
    """The fixed words of §5."""
    found = result["data"]
    leak = failed_leak(found)
    if leak is not None:
        return f"not to be trusted: {leak} failed"
    words = _words(found, result.get("placebo", {}))
    return f"{beside_baselines(found, 'larr')}; {words}{cut_short(found)}"


def _words(found: dict[str, Any], placebo: dict[str, Any]) -> str:
    unjudged = open_claim(found)
    if unjudged is not None:
        return unjudged
    if not _beaten(found, "larr-random"):
        if _as_good(found, "larr-random"):
            return "refuted: a random vector per value does as well"
        return "not supported: better than a random vector per value is not shown"
    if not all(_beaten(found, control) for control in CONTROLS):
        helps = _beaten(found, "no-scene")
        return "scene helps, not shown that text does" if helps else "not supported"
    if not found["gain_where_text_should_help"]["at_least_overall"]:
        return "not supported: the gain is not larger where ids know little"
    if supported(_of(placebo, "larr-random")):
        return "not supported: LARR also wins where words mean nothing"
    if found["planted"]:
        return "supported on planted data, which test the code and not the claim"
    return "supported"


def stages(result: dict[str, Any], encoder: str, variants: dict[str, str]) -> str:
    """What can be said of continual pretraining and contrastive tuning."""
    if encoder == OFF_THE_SHELF:
        return "not tested, the encoder is off the shelf"
    if not variants:
        return "not tested, no encoder without them was given"
    found = result["data"]
    leak = failed_leak(found)
    if leak is not None:
        return f"not to be trusted: {leak} failed"
    told = {name: _stage(found, f"larr-{name}") for name in variants}
    if set(told.values()) == {"supported"}:
        return "supported on planted data" if found["planted"] else "supported"
    return "; ".join(f"{name}: {word}" for name, word in told.items() if word != "supported")


def _reported(
    folds: Folds, base: dict[str, Any], variants: dict[str, str], rare: int, replicates: int
) -> dict[str, Any]:
    sentences = [f for f in base["larr"]["features"] if f["kind"] == "context"]
    contexts = list(dict.fromkeys(name for f in sentences for name in f["contexts"]))
    parts = {
        name: scene_slices(fold.data, fold.study.systems["larr"].rows[0][""], contexts, rare)
        for name, fold in folds.by_name.items()
    }
    data = folds.first.data
    asked = claims(variants, metrics_of(data))
    found, _ = results(folds.study, data, SUBJECT, asked, parts, folds.scores, replicates)
    return {**found, "gain_where_text_should_help": _where_it_should(found)}


def _where_it_should(found: dict[str, Any]) -> dict[str, Any]:
    """Gains over (b) in the headline, on all rows and where ids have seen little."""

    def gain(values: dict[str, float]) -> float:
        return values["larr"] - values["dcnv2"]

    metric = found["headline"]
    overall = gain({arm: found["arms"][arm][metric]["mean"] for arm in ("larr", "dcnv2")})
    slices = {
        name: gain(found["slices"][name][metric]) for name in SLICES if name in found["slices"]
    }
    return {
        "over": "dcnv2",
        "metric": metric,
        "overall": overall,
        "slices": slices,
        "at_least_overall": any(value >= overall for value in slices.values()),
    }


def _of(found: dict[str, Any], other: str) -> list[dict[str, Any]]:
    start = f"larr better than {other} in "
    return [row for row in found.get("claims", ()) if row["claim"].startswith(start)]


def _beaten(found: dict[str, Any], other: str) -> bool:
    """Whether LARR is shown to beat the arm in every metric."""
    return all(row["verdict"] == "supported" for row in _of(found, other))


def _as_good(found: dict[str, Any], other: str) -> bool:
    """Whether the arm is shown not to be worse than LARR, in every metric."""
    start = f"{other} not worse than larr in "
    rows = [row for row in found["claims"] if row["claim"].startswith(start)]
    return bool(rows) and all(row["verdict"] == "not inferior" for row in rows)


def _stage(found: dict[str, Any], other: str) -> str:
    """What is shown of the stage that the encoder of an arm lacks."""
    rows = _of(found, other)
    if any(row["verdict"] == "no verdict" for row in rows):
        return "no verdict"
    if _beaten(found, other):
        return "supported"
    return "unsupported, as good without" if _as_good(found, other) else "no difference shown"


def _encode(chosen: Sequence[Arm], base: dict[str, Any], folder: str) -> None:
    """Encode every text of every arm now; trainings side by side only read the vector tables."""
    for arm in chosen:
        if arm.recipe == "ctr/larr":
            ready(arm.config(base, {}, 0, {"data": folder}))
