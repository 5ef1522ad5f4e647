"""Sequence rivals of HKFR: what they may know, what must and must not matter, what they learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hkfr_shop import DAY, START, Row, event, random_events, write_shop
from pydantic import ValidationError
from torch import Tensor

from raysys.errors import ConfigError
from raysys.hkfr.next_task import FIRST_TOKEN, NextConfig, NextTask, full_ranking
from raysys.hkfr.rivals.arms import TRIES, Rival, rivals, tuned
from raysys.hkfr.rivals.heuristics import Markov
from raysys.hkfr.rivals.models import SASRec
from raysys.hkfr.rivals.neural import MODELS, SequenceConfig, SequenceRanker
from raysys.hkfr.rivals.sequences import AGES, SequenceBatch, SequenceModel, Sequences
from raysys.training import TrainConfig

KINDS, USERS, VOCABULARY, LENGTH = 4, 5, 6, 9
SIZES = Sequences(kind_of=np.arange(KINDS), user_of=np.arange(USERS), length=LENGTH)
POPULARITY = torch.log(torch.arange(VOCABULARY, 0.0, -1) / 21)
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str) -> SequenceModel:
    torch.manual_seed(1)
    model = MODELS[name](POPULARITY, SIZES, width=8, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised ones too
            parameter.normal_(std=0.4)
    return model.eval()


def histories(lengths: list[int], seed: int = 0) -> SequenceBatch:
    """Random events, as long as the longest history."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(1, *lengths)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    columns = (draw(1, FIRST_TOKEN + VOCABULARY), draw(0, KINDS), draw(0, AGES))
    user = torch.arange(len(lengths)) % USERS
    return SequenceBatch(*(column * mask for column in columns), mask, user, user % VOCABULARY)


# ------------------------------------------------------------------ what may and must matter


@every_model
def test_padding_and_others_in_the_batch_do_not_matter(name: str) -> None:
    model, lengths = model_of(name), [3, 9, 1, 0, 5]
    batch = histories(lengths)
    together = model(batch)
    for row, length in enumerate(lengths):
        events = (part[row : row + 1, : max(1, length)] for part in batch[:4])
        alone = SequenceBatch(*events, *(part[row : row + 1] for part in batch[4:]))
        torch.testing.assert_close(model(alone)[0], together[row])


@every_model
def test_a_user_without_events_gets_popularity(name: str) -> None:
    torch.testing.assert_close(model_of(name)(histories([0, 4]))[0], POPULARITY)


@every_model
@pytest.mark.parametrize("column", ["token", "kind", "age"])
def test_what_happened_how_and_when_matters(name: str, column: str) -> None:
    model, batch = model_of(name), histories([5, 7])
    size = {"token": FIRST_TOKEN + VOCABULARY, "kind": KINDS, "age": AGES}[column]
    given = getattr(batch, column)
    for place in range(5):
        other = given.clone()
        other[0, place] = (other[0, place] + 1) % size
        scores = model(batch._replace(**{column: other}))
        assert not torch.allclose(scores[0], model(batch)[0])
        torch.testing.assert_close(scores[1], model(batch)[1])


@every_model
def test_the_order_of_events_matters(name: str) -> None:
    model, batch = model_of(name), histories([6])
    swapped = torch.tensor([0, 1, 3, 2, 4, 5])
    turned = batch._replace(**{n: getattr(batch, n)[:, swapped] for n in ("token", "kind", "age")})
    assert not torch.allclose(model(batch), model(turned))


@pytest.mark.parametrize("name", ["sasrec", "mbstr"])
def test_states_know_no_later_event(name: str) -> None:
    model = model_of(name)
    assert isinstance(model, SASRec)
    one, two = histories([LENGTH], 0), histories([LENGTH], 1)
    x = [model.events(*batch[:4]) for batch in (one, two)]
    for cut in range(1, LENGTH):
        mixed = torch.cat([x[0][:, :cut], x[1][:, cut:]], 1)
        kind = torch.cat([one.kind[:, :cut], two.kind[:, cut:]], 1)
        states = model.states(mixed, kind, one.mask)
        expected = model.states(x[0], one.kind, one.mask)
        torch.testing.assert_close(states[:, :cut], expected[:, :cut])
        assert not torch.allclose(states[:, cut:], expected[:, cut:])


@every_model
def test_gradients_are_finite_with_empty_histories(name: str) -> None:
    model = model_of(name).train()
    loss, count = model.loss(histories([0, 4, 9, 0]))
    loss.backward()
    assert float(count) == 4
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------ reading

CATEGORIES: dict[str, str | None] = {"i0": "b", "i1": "a", "i2": "a", "i3": "c", "i4": None}
CUTS = (16, 22)


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_batches_are_the_newest_events_before_the_cut_oldest_first(tmp_path: Path) -> None:
    rows = random_events(np.random.default_rng(8), list(CATEGORIES), 30, 28)
    data = write_shop(tmp_path / "d", CATEGORIES, rows, CUTS)
    task = NextTask.of_data(data, NextConfig(cut="order"))
    train, users = task.of("train"), data.histories.users.to_pylist()
    sequences = Sequences.fit(train, 4, typed=True)
    batch = sequences.batch(task, np.arange(len(task)))
    by_time = sorted(rows, key=lambda row: row["ts"])
    met = [r["behaviour"] for r in by_time if r["ts"] < START + CUTS[0] * DAY]
    asked = {users[u] for u in train.user}
    numbers: dict[str, set[int]] = {}
    for q in range(len(task)):
        user, cut = users[task.user[q]], task.cut[q]
        past = [r for r in by_time if r["user_id"] == user and r["ts"] < cut][-4:]
        assert batch.mask[q].sum() == len(past)
        assert (batch.user[q] > 0) == (user in asked)
        for place, row in enumerate(past):
            name = CATEGORIES[row["item_id"]]
            token = FIRST_TOKEN + task.names.index(name) if name in task.names else 1
            assert batch.token[q, place] == token
            hours = (cut - row["ts"]) / (DAY / 24)
            assert batch.age[q, place] == min(int(np.log2(1 + np.float32(hours))), AGES - 1)
            numbers.setdefault(row["behaviour"], set()).add(int(batch.kind[q, place]))
        for part in batch[:4]:
            assert not part[q, len(past) :].any()
    assert all(len(found) == 1 for found in numbers.values())  # one number a kind
    kinds = set().union(*numbers.values())
    assert len(kinds) == len(numbers) == len(set(met))
    assert 0 not in kinds
    assert not Sequences.fit(train, 4, typed=False).batch(task, np.arange(9)).kind.any()


@pytest.mark.usefixtures("_own_cache")
def test_users_and_kinds_are_numbered_by_training_alone(tmp_path: Path) -> None:
    rows = [event(f"u{n % 9}", n % 15 + 0.5, "order", f"i{n % 3}") for n in range(60)]
    rows += [event("v", 17.5, "order", "i0"), event("v", 23.5, "order", "i1")]
    late = [*rows, event("v", 18.0, "view", "i0")]
    for number, given in enumerate((rows, late)):
        data = write_shop(tmp_path / str(number), CATEGORIES, given, CUTS)
        task = NextTask.of_data(data, NextConfig())
        sequences = Sequences.fit(task.of("train"), 4, typed=True)
        assert (sequences.kinds, sequences.users) == (2, 10)
        assert sequences.batch(task.of("test"), np.arange(1)).user.tolist() == [0]


def test_unfit_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="workers: rivals are trained in this process"):
        SequenceConfig(train=TrainConfig(workers=2))
    with pytest.raises(ValidationError, match="widht"):
        SequenceConfig(widht=3)  # type: ignore[call-arg]


# ------------------------------------------------------------------ learning


def told_by_views(seed: int, users: int = 60) -> list[Row]:
    """Each order is of what the user viewed on the day before, and a coupon tells nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for day in range(0, 28, 2):
            view, coupon = rng.integers(0, 4, 2)
            moments = day + rng.permutation([0.3, 0.6])
            rows.append(event(f"u{user}", moments[0], "view", f"i{view}"))
            rows.append(event(f"u{user}", moments[1], "coupon", f"i{coupon}"))
            rows.append(event(f"u{user}", day + 1.5, "order", f"i{view}"))
    return rows


def chain(seed: int, users: int = 60) -> list[Row]:
    """One order every other day, of what follows the last one in a ring in 9 of 10 cases."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        now = int(rng.integers(6))
        for day in range(0, 28, 2):
            rows.append(event(f"u{user}", day + 0.5, "order", f"i{now}"))
            now = (now + 1) % 6 if rng.random() < 0.9 else int(rng.integers(6))
    return rows


def task_of(folder: Path, rows: list[Row]) -> NextTask:
    names: dict[str, str | None] = {f"i{n}": f"c{n}" for n in range(6)}
    return NextTask.of_data(write_shop(folder, names, rows, CUTS), NextConfig())


def quick(**changes: Any) -> SequenceConfig:
    plain = SequenceConfig()
    train = plain.train.model_copy(update={"lr": 1e-2, "epochs": changes.pop("epochs", 12)})
    small = {"width": 16, "length": 8, "batch_size": 64, "dropout": 0.1}
    return SequenceConfig(**{**small, "train": train, **changes})


def first_hits(ranker: Any, task: NextTask, seed: int = 0) -> float:
    ranker.fit(task.of("train"), task.of("valid"), seed)
    test = task.of("test")
    return float(full_ranking(ranker.scores(test), test.target, (1,))["hr@1~full"].mean())


@pytest.mark.slow
@pytest.mark.usefixtures("_own_cache")
@every_model
def test_a_planted_chain_is_learned(tmp_path: Path, name: str) -> None:
    task = task_of(tmp_path / "d", chain(0))
    assert first_hits(Markov(), task) > 0.85
    assert first_hits(SequenceRanker(quick(model=name)), task) > 0.8  # chance is 1/6


@pytest.mark.slow
@pytest.mark.usefixtures("_own_cache")
@every_model
def test_models_that_tell_behaviours_apart_learn_what_only_one_tells(
    tmp_path: Path, name: str
) -> None:
    task = task_of(tmp_path / "d", told_by_views(0))
    blind = first_hits(SequenceRanker(quick(model=name, typed=False)), task)
    # Without types it is one of two in 3 of 4 cases, and certain in the fourth.
    assert first_hits(SequenceRanker(quick(model=name)), task) > 0.9 > 0.75 > blind


@pytest.mark.slow
@pytest.mark.usefixtures("_own_cache")
def test_equal_seeds_give_equal_scores(tmp_path: Path) -> None:
    task = task_of(tmp_path / "d", chain(1, users=20))
    scores = []
    for seed in (3, 3, 4):
        ranker = SequenceRanker(quick(epochs=2))
        ranker.fit(task.of("train"), task.of("valid"), seed)
        scores.append(ranker.scores(task.of("test")))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("_own_cache")
def test_what_happens_in_the_test_days_changes_nothing_before(tmp_path: Path) -> None:
    rows = told_by_views(1, users=20)
    edge = START + CUTS[1] * DAY
    changed = [r if r["ts"] < edge else {**r, "item_id": "i5", "behaviour": "cart"} for r in rows]
    changed.append(event("u1", 23.0, "order", "i5"))
    changed.append(event("late", 24.0, "order", "i5"))
    scores = []
    for number, given in enumerate((rows, changed)):
        task = task_of(tmp_path / str(number), given)
        ranker = SequenceRanker(quick(epochs=1))
        ranker.fit(task.of("train"), task.of("valid"), 0)
        scores.append(ranker.scores(task.of("valid")))
    np.testing.assert_array_equal(*scores)


# ------------------------------------------------------------------ tuning


def test_every_rival_has_equally_many_settings_and_each_builds() -> None:
    for rival in rivals("area").values():
        assert len(rival.tries) == TRIES
        assert len({str(given) for given in rival.tries}) == TRIES
        for given in rival.tries:
            rival.build(**given)


@pytest.mark.usefixtures("_own_cache")
def test_validation_chooses_the_settings(tmp_path: Path) -> None:
    task = task_of(tmp_path / "d", chain(2, users=30))
    # With such a backing popularity alone decides, which on a ring tells nothing.
    rival = Rival(Markov, ({"strength": 1e9}, {"strength": 1.0}, {"strength": 1.0}))
    found = tuned(rival, task.of("train"), task.of("valid"), seed=0)
    assert found.settings == {"strength": 1.0}
    valid = task.of("valid")
    expected = full_ranking(found.ranker.scores(valid), valid.target, (10,))["ndcg@10"].mean()
    assert found.value == pytest.approx(expected)


@pytest.mark.usefixtures("_own_cache")
def test_a_rival_without_settings_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path / "d", chain(2, users=30))
    with pytest.raises(ConfigError, match="no settings to try"):
        tuned(Rival(Markov, ()), task.of("train"), task.of("valid"), seed=0)
