"""The fair test of HKFR: is it the tuning, and is it the fusion, that help?

HKFR (Yin et al., RecSys 2023) is reconstructed here: its prompts, candidates and settings are not
published and its table cannot be standard NDCG, so that no figure of the paper is compared with.
Arms × seeds answer the same questions, what the next order will mainly be of, over the same
candidates, all ranked, from the same events of all kinds; models of sequences see of an event
without an item, as a search, its kind alone. Everything is kept in `out`, and the same command goes
on where it was stopped. With `placebo` the arms that a claim names run again where the law of joint
behaviour is off.
"""

from pathlib import Path
from typing import Any

from bench.hkfr_arms import language_arms
from bench.hkfr_data import Study, untestable
from bench.hkfr_judge import verdict
from bench.hkfr_report import reported, tables
from bench.hkfr_steps import Steps, studied
from raysys.errors import ConfigError
from raysys.hkfr.next_task import NextConfig
from raysys.metrics.bootstrap import REPLICATES
from raysys.options import validate

NO_FIGURES = "no published figures compared: HKFR is reconstructed, and its measure is not standard"
Figures = dict[str, Any]


def run(
    data: str,
    placebo: str | None = None,
    out: str = "runs/bench-hkfr-fair",
    target: str = "category:0",
    behaviour: str = "order",
    cut: str = "day",
    candidates: int = 300,
    area: str | None = None,
    fused: str | None = None,
    seeds: int = 5,
    other_seeds: int = 2,
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3),
    max_core_hours: float = 8.0,
    replicates: int = REPLICATES,
    workers: int = 0,
    events: int = 300,
    tokens: int = 384,
    samples: int = 3000,
    valid: int = 300,
    users: int = 2000,
    layers: int = 6,
    width: int = 128,
    pretrain_tokens: int = 2_000_000,
    epochs: int = 2,
) -> Figures:
    """Every arm with its figures, every claim with its intervals and words.

    data, placebo: data set folders. target, behaviour, cut, candidates: see `NextConfig`. area: the
    context feature that names a place, for popularity there and in prompts. fused: a knowledge
    store of `data` that a model has written, of all days of the questions; without it the claim
    about fusion is not run. seeds: of the arms that the rule for the verdict names; other_seeds: of
    the others. rates: learning rates that every arm with a language model is tried with, on one
    seed and a third of the samples; rivals have as many settings by default. max_core_hours: after
    the tries the samples are reduced so that each of the two studies keeps to it, to a third at the
    least. workers: steps at once as tasks of Ray; 0: one after the other in this process.
    The other options: see `Study`.

    Raises:
        ConfigError: an impossible option, or `out` holds a study with other options.
        RaysysError: what a training raised.
    """
    if fused is not None and cut != "day":
        raise ConfigError(f"cut={cut}: fused knowledge is of days; use cut=day, or leave fused out")
    asked = {"target": target, "behaviour": behaviour, "cut": cut, "candidates": candidates}
    shared = {
        "task": validate(NextConfig, asked), "area": area, "events": events, "tokens": tokens,
        "samples": samples, "valid": valid, "users": users, "layers": layers, "width": width,
        "pretrain_tokens": pretrain_tokens, "epochs": epochs,
    }  # fmt: skip
    result: Figures = {"bench": "hkfr-fair", "published": NO_FIGURES, "out": out}
    for name, folder in (("data", data), ("placebo", placebo)):
        if folder is None:
            continue
        why = untestable(folder)
        if why is not None:
            result[name] = {"untestable": why}
            continue
        mine = {"data": folder, "fused": fused if name == "data" else None}
        study = validate(Study, {**shared, **mine})
        steps = Steps(study, Path(out) / name, seeds, other_seeds, max_core_hours, workers)
        # No claim asks for the others where the law is off.
        arms = language_arms(fused=study.fused is not None)
        named = {key: arm for key, arm in arms.items() if arm.named or name == "data"}
        result[name] = reported(study, studied(steps, named, rates), replicates)
    result["verdict"] = verdict(result)
    return result


def markdown(result: Figures) -> str:
    """The tables of `run` for the page of results."""
    parts = [f"{NO_FIGURES[0].upper()}{NO_FIGURES[1:]}."]
    parts.append(" ".join(f"{name}: **{told}**." for name, told in result["verdict"].items()))
    for name, title in (("data", "The data"), ("placebo", "With the law of joint behaviour off")):
        if name in result and "untestable" not in result[name]:
            parts.append(tables(result[name], title))
    return "\n\n".join(parts)
