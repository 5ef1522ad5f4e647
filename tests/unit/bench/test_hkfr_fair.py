"""The fair test of HKFR: its questions and texts, what is permuted, resumption, and the words."""

import shutil
from pathlib import Path
from typing import Any

import hkfr_city
import hkfr_shop
import numpy as np
import pytest

from bench import hkfr_fair
from bench.hkfr_arms import BASE_LEVEL, HEURISTICS, PLACEBOS, SEQUENCES, SUBJECT, language_arms
from bench.hkfr_cell import Cell, answers
from bench.hkfr_data import Questions, Study, instructions, questions, swapped, texts
from bench.hkfr_judge import Judge, verdict
from raysys.errors import ConfigError, DataError
from raysys.hkfr.knowledge import NOTHING
from raysys.hkfr.next_task import NextConfig

ITEMS = {f"i{n}": f"c{n}" for n in range(12)}
CUTS = (16, 22)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty users who order at random, one who never orders twice a day."""
    folder = tmp_path_factory.mktemp("hkfr-fair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        rows = hkfr_shop.random_events(np.random.default_rng(0), list(ITEMS), 40, 28)
        hkfr_shop.write_shop(folder / "shop", dict(ITEMS), rows, CUTS)
        yield folder / "shop"


def study(shop: Path, **changes: Any) -> Study:
    task = NextConfig(
        target="category:0", cut=changes.pop("cut", "day"),
        candidates=changes.pop("candidates", 300),
    )  # fmt: skip
    return Study(data=str(shop), task=task, area="area", **changes)


# ------------------------------------------------------------------ questions


def test_every_arm_answers_the_same_questions_from_the_same_events(shop: Path) -> None:
    asked = questions(study(shop))
    known = asked.task.end - asked.task.start
    for kind in ("template", "names", "events"):
        told = texts(study(shop), kind)
        assert len(told) == len(asked.task) == sum(asked.parts)
        # All kinds of events count, and none at or after the cut.
        lines = [len(text.splitlines()) - 1 for text in told]
        if kind == "names":
            assert lines == known.tolist()
        assert [text == NOTHING or line == 0 for text, line in zip(told, lines, strict=True)] == (
            known == 0
        ).tolist()
    kinds = {line.split()[0] for text in texts(study(shop), "names") for line in text.splitlines()}
    assert {"view", "cart", "coupon", "order"} < kinds
    assert all("view" not in text for text in texts(study(shop), "single"))
    assert set(texts(study(shop), "nothing")) == {NOTHING}


def test_knowledge_of_a_store_is_that_of_the_day_before_the_question(
    shop: Path, tmp_path: Path
) -> None:
    # A store that the template has written stands for one of a model's: the texts must be equal.
    hkfr_city.build(shop, tmp_path / "all", days=30)
    fused = study(shop, fused=str(tmp_path / "all"))
    assert texts(fused, "fused") == texts(study(shop), "template")
    hkfr_city.build(shop, tmp_path / "late", days=2)
    with pytest.raises(DataError, match=r"no knowledge of user .* build it of all days"):
        texts(study(shop, fused=str(tmp_path / "late")), "fused")


def test_labels_are_what_most_money_was_spent_on_in_the_order_itself(shop: Path) -> None:
    asked = questions(study(shop, candidates=11))
    orders = asked.task.orders
    for row, target in zip(asked.task.row.tolist(), asked.task.target.tolist(), strict=True):
        spent: dict[str, float] = {}
        for line in range(int(orders.begin[row]), int(orders.begin[row + 1])):
            name = f"c{orders.item[line] - 2}"
            spent[name] = spent.get(name, 0) + orders.value[line]
        best = [name for name, value in spent.items() if value == max(spent.values())]
        if target < 0:
            assert not set(best) <= set(asked.names)
        else:
            assert asked.names[target] in best
    # Every arm misses what is no candidate, and nobody learns or chooses by it.
    assert (asked.of("train").target >= 0).all() and (asked.of("valid").target >= 0).all()
    assert (asked.of("test").target < 0).any()


def test_smaller_samples_are_the_first_of_larger_ones(shop: Path) -> None:
    large, small = questions(study(shop)), questions(study(shop, samples=9))
    assert large.parts[0] > small.parts[0] == 9
    assert large.task.row[:9].tolist() == small.task.row[:9].tolist()
    assert large.of("train", 9).row.tolist() == small.of("train").row.tolist()
    few = questions(study(shop, users=3))
    assert len(set(few.of("test").user.tolist())) == 3


def test_instructions_tell_when_and_where_and_never_the_answer(shop: Path) -> None:
    asked = questions(study(shop, cut="order"))
    first = instructions(asked, "category:0")
    drawn = instructions(asked, "category:0", seed=1)
    assert drawn == instructions(asked, "category:0", seed=1) != first
    assert {text.split()[0] for text in drawn} == {"Which", "The"}
    for text, local, place in zip(first, asked.local, asked.place, strict=True):
        hour = local.hour
        meal = next(
            name for name, begin in (("night", 22), ("dinner", 17), ("afternoon", 14),
                                     ("lunch", 11), ("breakfast", 5), ("night", 0))
            if hour >= begin
        )  # fmt: skip
        at = f' at "{place}"' if place else ""
        assert text == f"Which category will the user's next order be of, for {meal}{at}?"


# ------------------------------------------------------------------ placebos


def test_another_users_knowledge_is_of_the_same_tenth_and_part(shop: Path) -> None:
    asked = questions(study(shop))
    rows, user = swapped(asked, 0), asked.task.user
    events = asked.task.end - asked.task.start
    assert rows.tolist() == swapped(asked, 0).tolist() != swapped(asked, 1).tolist()
    for split in ("train", "valid", "test"):
        mine = asked.rows(split)
        assert set(rows[mine]) <= set(mine.tolist())
        spread = np.ptp(events[mine])
        assert (np.abs(events[rows[mine]] - events[mine]) <= max(2, spread // 2)).all()
    assert (user[rows] != user).mean() > 0.95


def test_permuted_labels_are_those_of_training_and_no_others(shop: Path) -> None:
    cell = Cell(root=Path("."), study=study(shop), step="test", arm=PLACEBOS[1])
    arms = language_arms(fused=False)
    plain, drawn = (answers(cell, arms[name]) for name in (SUBJECT, PLACEBOS[1]))
    count = questions(study(shop)).parts[0]
    assert sorted(plain[:count]) == sorted(drawn[:count])
    assert plain[:count] != drawn[:count] and plain[count:] == drawn[count:]


# ------------------------------------------------------------------ judging


def judge(delta: float, seeds: int = 5) -> Judge:
    """HKFR is `delta` above every rival in each of 300 questions; the placebos are level."""
    rng = np.random.default_rng(0)
    base = rng.random(300) * 0.2
    noise = {seed: 1e-4 * rng.standard_normal(300) for seed in range(seeds)}
    others = (*SEQUENCES, BASE_LEVEL, *PLACEBOS)
    values = {name: {seed: base + noise[seed] for seed in noise} for name in others}
    values |= {name: {0: base} for name in (*HEURISTICS, "no tuning")}
    values[SUBJECT] = {seed: base + delta + noise[seed] for seed in noise}
    users = np.arange(100, dtype=np.uint64) * np.uint64(7919)
    return Judge(values, np.arange(300) // 3, users, 200)


def test_an_arm_without_chance_stands_for_every_seed() -> None:
    found = judge(0.1)
    seeds, users, count = found.difference(SUBJECT, HEURISTICS[0])
    assert count == 5 and seeds is not None
    assert seeds.delta == pytest.approx(0.1, abs=1e-3) == pytest.approx(users.delta, abs=1e-3)
    assert seeds.low > 0.099 and users.low > 0.099
    assert found.difference(HEURISTICS[0], "no tuning")[0] is None


def test_placebos_may_not_rise_above_the_instruction_alone() -> None:
    found = judge(0.1)
    assert all(row["at_base_level"] for row in found.placebos().values())
    found.values[PLACEBOS[0]].update({s: v + 0.05 for s, v in found.values[SUBJECT].items()})  # type: ignore[attr-defined]
    assert [row["at_base_level"] for row in found.placebos().values()] == [False, True]


def told(**verdicts: str) -> dict[str, Any]:
    """A result with these words about tuning, by rival."""
    rows = [{"b": b.replace("_", " "), "verdict": word} for b, word in verdicts.items()]
    level = {name: {"at_base_level": True} for name in PLACEBOS}
    return {"data": {"claims": {"tuning": rows}, "placebos": level, "planted": False}}


GOOD = {"no_tuning": "supported", "own_habit": "supported", "sasrec": "supported"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "supported"),
        (
            {"own_habit": "contradicted"},
            "refuted for practical use: own habit is better, though it beats sasrec",
        ),
        (
            {"own_habit": "contradicted", "sasrec": "no difference shown"},
            "refuted for practical use: own habit is better",
        ),
        (
            {"own_habit": "no difference shown"},
            "not supported: own habit is not shown to be worse",
        ),
        ({"sasrec": "contradicted"}, "not supported: sasrec is better"),
        ({"sasrec": "no verdict"}, "no verdict: fewer than 5 seeds"),
    ],
)
def test_the_words_about_tuning(changes: dict[str, str], words: str) -> None:
    found = verdict(told(**(GOOD | changes)))
    assert found["tuning"] == words
    assert found["fusion"] == "not run: no fused knowledge was given"
    assert found["features"] == "not run"


def test_the_words_where_something_is_wrong() -> None:
    planted = told(**GOOD)
    planted["data"]["planted"] = True
    assert verdict(planted)["tuning"].startswith("supported on planted data")
    planted["placebo"] = told(**GOOD)["data"]
    assert verdict(planted)["tuning"].startswith("not supported: it also wins where the law")
    planted["data"]["placebos"][PLACEBOS[1]]["at_base_level"] = False
    assert verdict(planted) == {"all": "not to be trusted: permuted labels is above the base level"}
    untimed = verdict({"data": {"untestable": "no event has a time"}})
    assert untimed["tuning"] == untimed["fusion"] == "not testable here: no event has a time"


# ------------------------------------------------------------------ studies


SMALL: dict[str, Any] = dict(
    seeds=2, other_seeds=1, rates=(2e-3,), samples=24, valid=8, users=10, events=8, tokens=192,
    layers=1, width=32, pretrain_tokens=3000, epochs=1, area="area", replicates=100,
)  # fmt: skip


@pytest.mark.slow
def test_a_study_runs_through_and_goes_on(shop: Path, tmp_path: Path) -> None:
    options = {"data": str(shop), "out": str(tmp_path / "study"), **SMALL}
    found = hkfr_fair.run(**options)
    arms = found["data"]["arms"]
    assert set(arms) == {*HEURISTICS, *SEQUENCES, *language_arms(fused=False)}
    assert all(
        0 <= arm["hr@5~full"]["mean"] <= arm["hr@10~full"]["mean"] <= 1 for arm in arms.values()
    )
    assert "no verdict" in found["verdict"]["tuning"]
    assert found["verdict"]["fusion"].startswith("not run")
    assert found["data"]["questions"]["test"] == arms_questions(shop)
    assert "| own habit |" in hkfr_fair.markdown(found)
    records = sorted((tmp_path / "study").rglob("cell.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    assert hkfr_fair.run(**options) == found
    assert before == {path: path.stat().st_mtime_ns for path in records}
    # What was lost is made again, to the same figures.
    lost = [path for path in records if path.parent.parent.name == SUBJECT and "test" in path.parts]
    assert len(lost) == 2
    shutil.rmtree(lost[1].parent)
    again = hkfr_fair.run(**options)
    assert again["data"]["claims"] == found["data"]["claims"]
    with pytest.raises(ConfigError, match="made with other options"):
        hkfr_fair.run(**{**options, "events": 7})


def arms_questions(shop: Path) -> int:
    asked: Questions = questions(study(shop, **{k: SMALL[k] for k in ("samples", "users")}))
    return asked.parts[2]


def test_a_set_without_times_is_told_so(tmp_path: Path) -> None:
    city = hkfr_city.City(timed=False).write(tmp_path / "city")
    found = hkfr_fair.run(str(city), out=str(tmp_path / "study"))
    assert found["verdict"]["tuning"] == "not testable here: no event has a time"
    assert "not testable here" in hkfr_fair.markdown(found)
    assert not (tmp_path / "study").exists()


def test_options_that_cannot_be(shop: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": str(shop), "out": str(tmp_path)}
    with pytest.raises(ConfigError, match="fused knowledge is of days"):
        hkfr_fair.run(**options, cut="order", fused="K")
    with pytest.raises(ConfigError, match=r"has 10 candidates.*choose another target"):
        hkfr_fair.run(**options, candidates=10)
    with pytest.raises(ConfigError, match="area=aera: no such context feature; there are area"):
        hkfr_fair.run(**options, area="aera")
    with pytest.raises(ConfigError, match="tokens"):
        hkfr_fair.run(**options, tokens=3)
