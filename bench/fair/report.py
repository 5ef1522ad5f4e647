"""A study as a page: Markdown tables, and a picture of the differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysys.data.files import write_text
from raysys.tracking import draw

Figures = dict[str, Any]


def write_page(found: Figures, out: Path, subject: str, metric: str) -> None:
    """Write report.md and differences.png into `out`; `found` is one folder's part of a study."""
    rows = [
        draw.Bar(name, m[metric]["delta"], *m[metric]["users"], strong=m[metric]["users"][0] > 0)
        for name, m in found[f"{subject}_minus"].items()
        if name in found["arms"]
    ]
    picture = draw.bars_png(rows, f"{subject} minus the arm, {metric}, 95 % over users", zero=True)
    (out / "differences.png").write_bytes(picture)
    write_text(out / "report.md", tables(found, subject, metric) + "\n")


def tables(found: Figures, subject: str, metric: str) -> str:
    """Arms, claims, placebos, slices and what is planted, as Markdown."""
    shown = [name for name in found["arms"][subject] if "mean" in _mapping(found, subject, name)]
    return "\n\n".join(
        part
        for part in (
            f"Data card {found['data_card_id']}"
            + (f" and {found['folds'] - 1} further folds" if found["folds"] > 1 else "")
            + f"; trained on {found['trained_on_rows']:,} rows; "
            f"searching arms see {found['window']:,} events; "
            f"scored on {found['test']['rows']:,} rows of {found['test']['users']:,} users; "
            f"{found['core_hours']} core hours.",
            _arms(found, subject, shown, metric),
            _claims(found["claims"]),
            _baselines(found, subject, metric),
            _placebos(found["placebo_gains"], metric),
            _slices(found["slices"], metric),
            _planted(found),
            _leaks(found["leak_tests"]),
        )
        if part
    )


def _mapping(found: Figures, arm: str, name: str) -> Figures:
    value = found["arms"][arm][name]
    return value if isinstance(value, dict) else {}


def _arms(found: Figures, subject: str, shown: Sequence[str], metric: str) -> str:
    rows = []
    for name, arm in found["arms"].items():
        minus = found[f"{subject}_minus"].get(name, {}).get(metric)
        seeds = "" if minus is None else _interval(minus["seeds"])
        told = "" if minus is None else f"{minus['delta']:+.4f} {_interval(minus['users'])}"
        cells = [_value(arm[m]) for m in shown]
        rows.append([name, arm[shown[0]]["n"], *cells, told, seeds])
    head = ["arm", "seeds", *shown, f"{subject} − arm, {metric} [users]", "[seeds]"]
    return table(head, rows)


def _value(found: Figures) -> str:
    spread = f" ± {found['sd']:.4f}" if found["n"] > 1 else ""
    return f"{found['mean']:.4f}{spread}"


def _claims(claims: Sequence[Figures]) -> str:
    return table(
        ["claim", "difference", "[seeds]", "[users]", "p (Holm)", "verdict"],
        [
            [
                row["claim"],
                "" if row["delta"] is None else f"{row['delta']:+.4f}",
                _interval(row["seeds"]),
                _interval(row["users"]),
                "" if row["p_holm"] is None else f"{row['p_holm']:.3g}",
                f"{row['verdict']} ({row['reason']})" if row["reason"] else row["verdict"],
            ]
            for row in claims
        ],
    )


def _baselines(found: Figures, subject: str, metric: str) -> str:
    minus = found[f"{subject}_minus"]
    rows = []
    for name, values in found["baselines"].items():
        row = minus.get(name, {}).get(metric)
        told = "" if row is None else f"{row['delta']:+.4f} {_interval(row['users'])}"
        rows.append([name, f"{values[metric]:.4f}", told])
    return table(["baseline", metric, f"{subject} − it [users]"], rows)


def _placebos(found: Figures, metric: str) -> str:
    return "; ".join(
        f"Gain of {name} over {row['over']} in {metric} {row['gain'][metric]:+.4f} of "
        f"{row['of'][metric]:+.4f}, {'under' if row['below_half'] else 'not under'} half in every "
        "metric"
        for name, row in found.items()
    )


def _slices(found: Figures, metric: str) -> str:
    if not found:
        return ""
    arms = list(next(iter(found.values()))[metric])
    return table(
        ["slice", "rows", *arms],
        [
            [name, f"{part['rows']:,}", *(f"{part[metric][arm]:.4f}" for arm in arms)]
            for name, part in found.items()
        ],
    )


def _planted(found: Figures) -> str:
    parts = []
    for key, shares in found.items():
        if key.startswith("gap_closed_from_"):
            rows = [
                [name, f"{s['share']:.3f}", _interval(s["seeds"]), _interval(s["users"])]
                for name, s in shares.items()
            ]
            parts.append(table(["arm", key.replace("_", " "), "[seeds]", "[users]"], rows))
    if "recovery" in found:
        names = list(next(iter(found["recovery"].values())))
        rows = [
            [arm, *(f"{values[name]['mean']:.3f}" for name in names)]
            for arm, values in found["recovery"].items()
        ]
        parts.append(table(["what of the planted map is found", *names], rows))
    return "\n\n".join(parts)


def _leaks(found: Figures) -> str:
    words = {True: "passed", False: "FAILED", None: "printed only"}
    rows = [
        [name, words[f["passed"]], ", ".join(f"{k} {v:.4g}" for k, v in f["figures"].items())]
        if f["figures"]
        else [name, f["note"] or words[f["passed"]], ""]
        for name, f in found.items()
    ]
    return table(["leak test", "", "figures"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"
