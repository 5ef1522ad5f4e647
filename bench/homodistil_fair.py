"""The fair test of HomoDistil: is it the gradual path, the ranking, or only the compute?

HomoDistil (Liang et al., ICLR 2023) against one-shot pruning with distillation, the target shape
from random weights, and one-shot pruning that is trained until it has cost as much. Arms × seeds
over a corpus; everything is kept in `out`, and the same command goes on where it was stopped.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.homodistil_arms import (
    CLAIMED,
    MAIN,
    SAME_COST,
    Arm,
    Place,
    arms,
    encoder_grid,
    language_grid,
)
from bench.homodistil_cell import Cell, Trained, probe, run_cell
from raysys.data.dataset import Dataset
from raysys.dist import ensure_ray, run_tasks
from raysys.dist.cluster import worker_env
from raysys.errors import ConfigError, DataError
from raysys.homodistil.begin import load_teacher
from raysys.homodistil.task import headed
from raysys.llm.backbones import open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.metrics.seeds import MIN_SEEDS, paired_t, summary
from raysys.options import load_yaml, merge, nested
from raysys.recipes.homodistil import HomoDistilRecipe, batches_of

Figures = dict[str, Any]
OWN = FreshModel(layers=6, width=192, heads=12, vocab=2048)


def run(
    data: str,
    teacher: str | None = None,
    config: str | None = None,
    out: str = "runs/bench-homodistil-fair",
    seeds: int = 5,
    other_seeds: int = 3,
    unit_tokens: int | None = None,
    teacher_tokens: int = 2_000_000,
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3),
    calibration: int = 10,
    places: tuple[str, ...] | None = None,
    threads: int = 1,
) -> Figures:
    """Every arm with its figures, every claim with its interval and words.

    data: a corpus with documents of all three parts. teacher: a backbone spec; left out, a
    language model of our own (6 layers, 192 wide, 12 heads) is trained on `teacher_tokens` tokens
    of the corpus first. config: of `llm/homodistil`, what the arms share; left out,
    homodistil-lm.yaml or homodistil-minilm.yaml. unit_tokens: of a training at budget 1, 150,000
    by default, 400,000 of a sentence encoder. rates: learning rates that every arm is tried with,
    on one seed and a third of the tokens, by the validation part: the loss, of a sentence encoder
    Spearman of its cosines with its teacher's. places: only these of the grid, such as r0.33-b1.
    threads: of a training.

    Raises:
        ConfigError: `out` holds a study with other options, or no such place.
        RaysysError: what a training raised.
    """
    where = Path(out)
    if not {"train", "valid", "test"} <= set(
        Dataset(data).table("documents", ["split"])["split"].to_pylist()
    ):
        raise DataError(f"{data}: documents of the parts train, valid and test are needed")
    own = teacher is None
    if teacher is None:
        teacher = _own_teacher(data, where, teacher_tokens, threads)
    encoder = not headed(load_teacher(open_backbone(teacher)))
    name = "minilm" if encoder else "lm"
    base = load_yaml(Path(config or f"raysys/configs/llm/homodistil-{name}.yaml"))
    grid = encoder_grid() if encoder else language_grid()
    if places is not None:
        known = {place.name: place for place in grid}
        if unknown := set(places) - set(known):
            raise ConfigError(f"places: no {min(unknown)}; there are {', '.join(known)}")
        grid = {known[name]: grid[known[name]] for name in places}
    unit = unit_tokens or (400_000 if encoder else 150_000)
    study = _Study(base, data, teacher, where, unit, arms(calibration), threads, encoder)
    study.tune(grid, rates)
    counts = {name: seeds if name in CLAIMED else other_seeds for name in study.arms}
    trained = study.train(grid, counts)
    metric = "spearman" if encoder else "loss"
    found = {place.name: _told(place, trained[place], study.arms, metric) for place in grid}
    result: Figures = {
        "bench": "homodistil-fair",
        "teacher": "own language model" if own else teacher,
        "teacher_probes": probe(teacher, teacher, data),
        "metric": metric,
        "data_card_id": Dataset(data).manifest.data_card_id,
        "unit_tokens": unit,
        "rates": study.rates,
        "rates_at_an_end": sorted(
            n for n, r in study.rates.items() if r in (min(rates), max(rates))
        ),
        "places": found,
        "core_hours": study.seconds / 3600,
        "out": out,
    }
    result["verdict"] = verdict(result)
    return result


def verdict(result: Figures) -> dict[str, str]:
    """The fixed words of §5: HomoDistil must beat one-shot pruning and one-shot pruning of equal
    cost on the final measure, at the two strongest compressions of the grid."""
    places = result["places"]
    whole = {name: found for name, found in places.items() if found["budget"] == 1}
    wanted = sorted({p.ratio for p in language_grid() if p.budget == 1})[:2]
    strongest = [
        name for ratio in wanted for name, found in whole.items() if found["ratio"] == ratio
    ]
    words = {"path": _path(places, strongest or list(whole))}
    if any(places[name]["seeds"] < MIN_SEEDS for name in strongest):
        words["path"] = f"no verdict: fewer than {MIN_SEEDS} seeds"
    elif len(strongest) < len(wanted):
        seen = ", ".join(strongest or whole) or "nothing"
        words["path"] = (
            f"no verdict, for the rule asks for the two strongest compressions, and {seen} was run"
            + (f"; there: {words['path']}" if whole else "")
        )
    main = places.get(MAIN.name, {}).get("claims", {})
    for other, name, tied in (
        ("A7", "ranking", "the path matters, not the ranking"),
        ("A8", "distillation", "distillation not shown to help"),
    ):
        claim = main.get(f"A6 better than {other}")
        if claim is not None:
            told = "helps" if claim["low"] > 0 else "hurts" if claim["high"] < 0 else tied
            words[name] = f"{told} ({claim['seeds']} seeds)"
    gaps = [
        (found["budget"], found["claims"]["A6 better than A4"]["difference"])
        for found in places.values()
        if found["ratio"] == MAIN.ratio and "A6 better than A4" in found["claims"]
    ]
    if len(gaps) > 1:
        told = ", ".join(f"{gap:+.4f} at {budget:g}×" for budget, gap in sorted(gaps))
        ahead = [gap for _, gap in sorted(gaps)]
        shrinks = all(a > b > 0 for a, b in itertools.pairwise(ahead))
        words["budget"] = f"A6 is ahead of A4 by {told}; " + (
            "the lead shrinks with the budget" if shrinks else "no lead that shrinks steadily"
        )
    return words


def _path(places: Figures, names: list[str]) -> str:
    beaten = {
        other: bool(names)
        and all(
            places[name]["claims"].get(f"A6 better than {other}", {}).get("low", -1) > 0
            for name in names
        )
        for other in ("A4", "A12")
    }
    if all(beaten.values()):
        return f"supported at {', '.join(names)}"
    return "explained by compute" if beaten["A4"] else "not supported"


def markdown(result: Figures) -> str:
    """The tables of `run` for the page of results."""
    parts = [" ".join(f"{name}: **{told}**." for name, told in result["verdict"].items())]
    told = ", ".join(f"{k} {v:.4f}" for k, v in result["teacher_probes"].items())
    parts.append(
        f"Teacher: {result['teacher']} ({told}). Budget 1 is {result['unit_tokens']:,} tokens; "
        f"{result['core_hours']:.2f} core hours with the tries; FLOPs are counted, teacher and "
        "calibration included."
    )
    for found in result["places"].values():
        probes = [name for name in ("r@1", "spearman") if name in found["probes"]]
        title = f"{found['ratio']:.2f} left, {found['tokens']:,} tokens"
        rows = [
            f"**{title}**\n",
            f"| arm | | seeds | loss | distance | {' | '.join(probes)} | weights ÷ A6 | FLOPs ÷ A6 "
            "| minutes | rate |",
            "| --- " * (9 + len(probes)) + "|",
        ]
        for name, arm in found["arms"].items():
            cells = [f"{arm[m]['mean']:.4f} ± {arm[m]['sd'] or 0:.4f}" for m in ("loss", "kl")]
            cells += [f"{arm[m]['mean']:.4f} ± {arm[m]['sd'] or 0:.4f}" for m in probes]
            rows.append(
                f"| {name} | {arm['told']} | {arm['loss']['n']} | {' | '.join(cells)} "
                f"| {arm['weights_ratio']:.2f} | {arm['flops_ratio']:.2f} | {arm['wall'] / 60:.1f} "
                f"| {result['rates'][name]:g} |"
            )
        rows.append("")
        rows += [
            f"- {claim}: {c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}], {c['verdict']}"
            for claim, c in found["claims"].items()
        ]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


class _Study:
    """All trainings. arms: by name; rates: learning rate by arm; seconds: of one core."""

    def __init__(
        self,
        base: Figures,
        data: str,
        teacher: str,
        where: Path,
        unit_tokens: int,
        chosen: dict[str, Arm],
        threads: int,
        encoder: bool,
    ) -> None:
        self.encoder = encoder
        self.base, self.data, self.teacher, self.where = base, data, teacher, where
        self.unit_tokens, self.arms, self.threads = unit_tokens, chosen, threads
        self.rates: dict[str, float] = {}
        self.seconds = 0.0
        plain = self._config(self.arms["A6"], MAIN.ratio, 1, 1e-3, 0)
        loader = batches_of(plain, Dataset(data), open_backbone(teacher).tokenizer(), masked=False)
        self.step_tokens = loader.tokens / len(loader.rows) * plain.batch_rows

    def steps(self, budget: float) -> int:
        """Updates that see so many units of tokens."""
        return max(2, round(budget * self.unit_tokens / self.step_tokens))

    def tune(self, grid: Mapping[Place, tuple[str, ...]], rates: tuple[float, ...]) -> None:
        """The learning rate of every arm, at the place where all arms are."""
        place = next(iter(grid))
        names = list(dict.fromkeys(n for row in grid.values() for n in row))
        own = [name for name in names if self.arms[name].like is None]
        steps = max(2, self.steps(place.budget) // 3)
        cells = {
            (name, rate): Cell(
                self.where / "tune" / name / f"lr-{rate:g}",
                self._config(self.arms[name], place.ratio, steps, rate, 0),
                probed="valid" if self.encoder else None,
            )
            for name in own
            for rate in rates
        }
        done = self._run(cells, "tuning")
        for name in own:
            self.rates[name] = min(rates, key=lambda rate: self._judged(done[name, rate]))
        for name in names:
            if self.arms[name].like is not None:
                self.rates[name] = self.rates[str(self.arms[name].like)]

    def _judged(self, tried: Trained) -> float:
        return -tried.probes["spearman"] if self.encoder else tried.metrics["student"]["loss"]

    def train(
        self, grid: Mapping[Place, tuple[str, ...]], counts: Mapping[str, int]
    ) -> dict[Place, dict[str, dict[int, Trained]]]:
        """Place → arm → seed → training."""
        later, shorter, longer = SAME_COST
        found: dict[Place, dict[str, dict[int, Trained]]] = {}
        for place, names in grid.items():
            first = [name for name in names if name != later]
            done = self._seeds(place, dict.fromkeys(first, self.steps(place.budget)), counts)
            if later in names:
                wanted = sum(done[longer][0].metrics["flops"].values())
                one = done[shorter][0].metrics["flops"]
                steps = (wanted - one["calibration"]) / one["training"] * self.steps(place.budget)
                done |= self._seeds(place, {later: round(steps)}, counts)
            found[place] = {name: done[name] for name in names}
        return found

    def _seeds(
        self, place: Place, steps: Mapping[str, int], counts: Mapping[str, int]
    ) -> dict[str, dict[int, Trained]]:
        cells = {
            (name, seed): Cell(
                self.where / place.name / name / f"seed-{seed}",
                self._config(self.arms[name], place.ratio, count, self.rates[name], seed),
                probed="test",
            )
            for name, count in steps.items()
            for seed in range(counts[name])
        }
        done = self._run(cells, place.name)
        return {name: {s: t for (n, s), t in done.items() if n == name} for name in steps}

    def _run(self, cells: dict[Any, Cell], label: str) -> dict[Any, Trained]:
        missing = [cell for cell in cells.values() if cell.finished() is None]
        if missing:
            ensure_ray(env=worker_env(self.threads))
            for _ in run_tasks(run_cell, missing, label=label, num_cpus=self.threads):
                pass
        done = {key: cell.finished() for key, cell in cells.items()}
        found = {key: trained for key, trained in done.items() if trained is not None}
        self.seconds += sum(trained.seconds for trained in found.values())
        return found

    def _config(self, arm: Arm, ratio: float, steps: int, rate: float, seed: int) -> Any:
        shared = {
            "data": self.data,
            "teacher": self.teacher,
            "ratio": ratio,
            "train.max_steps": steps,
            "train.epochs": 1000,
            "train.lr": rate,
            "train.seed": seed,
            "train.workers": 0,
            "train.threads_per_worker": self.threads,
        }
        given = merge(self.base, nested({**shared, **arm.options}))
        return HomoDistilRecipe.model_validate(given)


def _own_teacher(data: str, where: Path, tokens: int, threads: int) -> str:
    """A language model of the corpus, trained once: what the students shall become like."""
    documents = Dataset(data).table("documents", ["split", "text"]).to_pylist()
    folder = where / "fresh"
    if not folder.is_dir():
        write_fresh_model(folder, OWN, [d["text"] for d in documents if d["split"] == "train"])
    base = load_yaml(Path("raysys/configs/llm/homodistil-lm.yaml"))
    rows, width = base["batch_rows"], base["row_tokens"]
    given = {
        "data": data, "teacher": f"dir:{folder}", "ratio": 1.0,
        "loss": {"kl": 0.0, "hidden": 0.0, "embedding": 0.0, "attention": 0.0},
        "train": {"max_steps": round(tokens / rows / width), "epochs": 1000, "lr": 2e-3,
                  "workers": 0, "threads_per_worker": threads},
    }  # fmt: skip
    cell = Cell(where / "teacher", HomoDistilRecipe.model_validate(merge(base, given)), probed=None)
    if cell.finished() is None:
        run_cell(cell)
    return f"dir:{where / 'teacher' / 'hf'}"


def _told(
    place: Place,
    trained: Mapping[str, Mapping[int, Trained]],
    chosen: Mapping[str, Arm],
    metric: str,
) -> Figures:
    """Figures of the test part by arm, and what is asked of them."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for name, seeds in trained.items():
        found = {s: {**t.metrics["test"], **t.probes} for s, t in seeds.items()}
        values[name] = {
            "loss": {s: f["loss"] for s, f in found.items()},
            "kl": {s: f.get("kl", f["hidden"]) for s, f in found.items()},
            **{
                m: {s: f[m] for s, f in found.items()}
                for m in ("r@1", "mrr", "spearman")
                if m in next(iter(found.values()))
            },
        }
    reference = sum(trained["A6"][0].metrics["flops"].values())
    claims = {
        f"A6 better than {name}": _claim(values["A6"][metric], values[name][metric], metric)
        for name in trained
        if name != "A6"
    }
    any_run = trained["A6"][0]
    return {
        "ratio": place.ratio,
        "budget": place.budget,
        "tokens": any_run.metrics["tokens_seen"],
        "seeds": len(trained["A6"]),
        "share": any_run.metrics["student"]["share"],
        "probes": list(any_run.probes),
        "arms": {
            name: {
                "told": chosen[name].told,
                **{m: summary(v).model_dump() for m, v in values[name].items()},
                "flops_ratio": sum(trained[name][0].metrics["flops"].values()) / reference,
                "tokens": trained[name][0].metrics["tokens_seen"],
                "weights_ratio": trained[name][0].metrics["weights"]
                / trained["A6"][0].metrics["weights"],
                "seconds": _mean([t.seconds for t in trained[name].values()]),
                "wall": _mean([t.wall for t in trained[name].values()]),
            }
            for name in trained
        },
        "claims": claims,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _claim(own: Mapping[int, float], other: Mapping[int, float], metric: str) -> Figures:
    """HomoDistil against an arm over the seeds that both have; positive is better."""
    shared = sorted(own.keys() & other.keys())
    sign = -1.0 if metric == "loss" else 1.0
    found = paired_t({s: sign * own[s] for s in shared}, {s: sign * other[s] for s in shared})
    word = "supported" if found.low > 0 else "worse" if found.high < 0 else "no difference shown"
    if len(shared) < MIN_SEEDS:
        word = f"{word} ({len(shared)} seeds, no verdict)"
    return {
        "difference": found.delta, "low": found.low, "high": found.high,
        "p": found.p, "seeds": len(shared), "verdict": word,
    }  # fmt: skip
