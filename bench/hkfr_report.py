"""Figures of HKFR's fair test as one nested mapping, and as tables."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.hkfr_arms import BASE_LEVEL, HEURISTICS, SEQUENCES, SUBJECT
from bench.hkfr_cell import METRICS
from bench.hkfr_data import Study
from bench.hkfr_judge import CLAIMED, Judge, claimed
from bench.hkfr_steps import Studied
from raysys.data.split import stable_hash
from raysys.metrics.seeds import summary

Figures = dict[str, Any]


def reported(study: Study, found: Studied, replicates: int) -> Figures:
    """Figures of all arms, claims and placebos of a study."""
    asked, test = found.asked, found.asked.of("test")
    codes, user = np.unique(test.user, return_inverse=True)
    judge = Judge(
        {name: found.of(name, CLAIMED) for name in found.settings},
        user.astype(np.int64),
        stable_hash(np.asarray(test.histories.users)[codes], 0),
        replicates,
    )
    return {
        "data_card_id": asked.data.dataset.card.id,
        "planted": (asked.data.dataset.path / "truth").is_dir(),
        "target": study.task.target,
        "candidates": len(asked.names),
        "questions": {
            "train": min(found.samples, asked.parts[0]),
            "valid": asked.parts[1],
            "test": asked.parts[2],
            "users": len(codes),
            "right_is_no_candidate": float((test.target < 0).mean()),
        },
        "sizes": study.model_dump(mode="json", exclude={"data", "fused", "task"}),
        "core_hours": round(sum(found.seconds.values()) / 3600, 2),
        "arms": {name: _arm(found, name) for name in found.settings},
        "slices": {
            name: {
                "questions": int(mask.sum()),
                CLAIMED: {
                    arm: _mean(by_seed.values(), mask) for arm, by_seed in judge.values.items()
                },
            }
            for name, mask in test.slices().items()
            if mask.any()
        },
        "claims": claimed(judge, fused=study.fused is not None),
        "placebos": judge.placebos(),
    }


def _arm(found: Studied, name: str) -> Figures:
    scoring = [done.scoring for (arm, _), done in found.done.items() if arm == name]
    by_metric = {metric: found.of(name, metric) for metric in METRICS}
    return {
        "told": found.arms[name].told if name in found.arms else "",
        **{
            metric: summary({seed: float(v.mean()) for seed, v in by_seed.items()}).model_dump()
            for metric, by_seed in by_metric.items()
        },
        "tuned_to": found.settings[name],
        "core_minutes": round(found.seconds[name] / 60, 1),
        "scoring_s_per_1000": round(1000 * float(np.mean(scoring)) / found.asked.parts[2], 2),
    }


def _mean(by_seed: Iterable[Any], mask: Any) -> float:
    return float(np.mean([found[mask].mean() for found in by_seed]))


def tables(found: Figures, title: str) -> str:
    """The tables of a study for the page of results."""
    sizes, asked = found["sizes"], found["questions"]
    rows = [
        f"**{title}** (data card `{found['data_card_id']}`): the next order's {found['target']} "
        f"among {found['candidates']}, {asked['train']:,} questions to train on, {asked['test']:,} "
        f"of {asked['users']:,} users to test. Language model: {sizes['layers']} layers, "
        f"{sizes['width']} wide, {sizes['tokens']} tokens. {found['core_hours']} core hours.\n",
        f"| arm | | seeds | {' | '.join(METRICS)} | core min |",
        "| --- " * (4 + len(METRICS)) + "|",
    ]
    for name, arm in found["arms"].items():
        told = [f"{arm[m]['mean']:.4f} ± {arm[m]['sd'] or 0:.4f}" for m in METRICS]
        rows.append(f"| {name} | {arm['told']} | {arm[CLAIMED]['n']} | {' | '.join(told)} "
                    f"| {arm['core_minutes']} |")  # fmt: skip
    shown = [SUBJECT, BASE_LEVEL, *HEURISTICS, *SEQUENCES]
    rows += [
        "",
        f"| {CLAIMED} | questions | {' | '.join(shown)} |",
        "| --- " * (2 + len(shown)) + "|",
    ]
    for name, part in found["slices"].items():
        told = [f"{part[CLAIMED][arm]:.4f}" for arm in shown]
        rows.append(f"| {name} | {part['questions']:,} | {' | '.join(told)} |")
    rows.append("")
    for claim, of in found["claims"].items():
        rows += [f"- {claim}: {r['a']} over {r['b']} {_delta(r)}, {r['verdict']}" for r in of]
    for arm, row in found["placebos"].items():
        at = "at" if row["at_base_level"] else "above"
        rows.append(f"- placebo: {arm}, {at} the base level {_delta(row)}")
    return "\n".join(rows)


def _delta(row: Figures) -> str:
    low, high = row["users"]
    seeds = "" if row["seeds"] is None else ", seeds [{:+.4f}, {:+.4f}]".format(*row["seeds"])
    return f"{row['delta']:+.4f} (users [{low:+.4f}, {high:+.4f}]{seeds})"
