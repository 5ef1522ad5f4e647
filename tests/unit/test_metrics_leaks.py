"""Each leak test passes an honest protocol and catches the leak it is for."""

import numpy as np
import pytest

from raysys.errors import MetricError
from raysys.metrics import ScoredRows, leaks
from raysys.metrics.suite import Audit, Training, run_suite

USERS, PER_USER, SIZE = 60, 4, 8


class World:
    """Users like one of four kinds; the history tells which, an item's kind is in its id."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        impressions = USERS * PER_USER
        user = np.repeat(np.arange(impressions) % USERS, SIZE)
        self.kind_of_user = rng.integers(0, 4, USERS)
        self.kind = rng.integers(0, 4, user.size)
        logit = np.where(self.kind == self.kind_of_user[user], 1.0, -2.0)
        self.label = (rng.random(user.size) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        self.impression = np.repeat(np.arange(impressions), SIZE)
        self.user = user
        self.noise = rng.normal(size=user.size)
        self.rows = ScoredRows.of(
            impression_id=[f"{seed}-{i}" for i in self.impression],
            user_id=[f"u{u}" for u in user],
            item_id=[f"{j}" for j in range(user.size)],
            score=self.score(np.arange(user.size), None),
            click=self.label,
        )

    def score(self, rows, history_of):
        owner = np.arange(USERS) if history_of is None else history_of
        return (self.kind[rows] == self.kind_of_user[owner[self.user[rows]]]).astype(float)


WORLD = World()
LENGTHS = np.random.default_rng(1).integers(0, 40, USERS)


def refit(labels):
    """Click rate by (user kind, item kind), learnt on one world, used on the other."""
    train = World(5)
    match = train.kind == train.kind_of_user[train.user]
    rates = [labels[~match].mean(), labels[match].mean()]
    return np.where(WORLD.score(np.arange(WORLD.user.size), None) > 0, rates[1], rates[0])


def audit() -> Audit:
    train, n = World(5), WORLD.user.size
    return Audit(
        scorer=WORLD.score,
        history_lengths=LENGTHS,
        training=Training(refit, train.label, train.impression, repeats=12, within_groups=False),
        position=np.random.default_rng(2).permutation(n),
        impression_time=np.full(n, 100),
        feature_times={"popularity": np.full(n, 99)},
        features={"noise": WORLD.noise},
        columns=["popularity", "title"],
        train_ids=(["5-0"], ["0", "1"], ["u1"]),
    )


def test_an_honest_protocol_passes_everything() -> None:
    findings = run_suite(WORLD.rows, "impression", audit(), replicates=200)
    assert [f for f in findings if f.passed is False] == []
    assert len({f.test for f in findings}) == 10
    overlap = findings[-1].figures
    assert (overlap["items_shared"], overlap["users_shared"], overlap["users"]) == (2, 1, USERS)


def test_what_cannot_run_says_why() -> None:
    findings = run_suite(WORLD.rows, "impression", Audit())
    skipped = [f for f in findings if f.passed is None]
    assert len(skipped) == 8
    assert all(f.note.startswith("not run: needs") for f in skipped)


@pytest.mark.parametrize("seed", range(3))
def test_random_scorer_and_label_oracle(seed: int) -> None:
    found = leaks.random_scorer(WORLD.rows, "impression", seed)
    assert found.passed
    assert found.figures["mrr"] == pytest.approx(found.figures["mrr_expected"], abs=0.05)
    oracle = leaks.label_oracle(WORLD.rows, "user")
    assert (oracle.passed, oracle.figures) == (True, {"gauc": 1.0, "gauc_inverted": 0.0})


def test_label_shuffle_stays_in_its_group() -> None:
    rng = np.random.default_rng(3)
    labels, groups = rng.integers(0, 2, 500), rng.integers(0, 40, 500)
    shuffled = leaks.shuffle_labels(labels, groups, 4)
    assert np.array_equal(np.bincount(groups, shuffled), np.bincount(groups, labels))
    assert (shuffled != labels).any()
    single = leaks.shuffle_labels(labels, np.arange(500), 4)
    assert single.sum() == labels.sum()
    assert (single != labels).any()


def test_labels_known_to_the_scorer_are_caught() -> None:
    def cheat(labels):
        return WORLD.label + WORLD.noise

    train = (WORLD.label, WORLD.impression)
    assert leaks.shuffled_labels(WORLD.rows, "impression", cheat, *train).passed is False

    def honest(labels):
        return World(9).noise

    assert leaks.shuffled_labels(WORLD.rows, "impression", honest, *train).passed is True


def test_a_cosine_start_may_rank_but_not_improve() -> None:
    start = WORLD.score(np.arange(WORLD.user.size), None)
    train = (WORLD.label, WORLD.impression)

    def unchanged(labels):
        return start

    def leaking(labels):
        return start + WORLD.label

    without = leaks.shuffled_labels(WORLD.rows, "impression", unchanged, *train)
    assert without.passed is False
    for scorer, passed in ((unchanged, True), (leaking, False)):
        found = leaks.shuffled_labels(WORLD.rows, "impression", scorer, *train, untrained=start)
        assert found.passed is passed


def test_history_shuffle_stays_in_its_length_bin_and_moves_everyone() -> None:
    other = leaks.shuffle_histories(LENGTHS, 0)
    assert sorted(other) == list(range(USERS))
    bins = [int(n).bit_length() for n in LENGTHS]
    assert [bins[i] for i in other] == bins
    crowded = [bins.count(b) > 1 for b in bins]
    assert ((other != np.arange(USERS)) == crowded).all()


def test_unused_history_is_caught() -> None:
    def deaf(rows, history_of):
        return WORLD.score(rows, None)

    assert not leaks.shuffled_history(
        WORLD.rows, "impression", deaf, LENGTHS, replicates=200
    ).passed


def test_order_dependent_scorer_is_caught() -> None:
    def by_place(rows, history_of):
        return WORLD.score(rows, None) + np.arange(len(rows)) / len(rows)

    assert not leaks.candidate_permutation(WORLD.rows, "impression", by_place).passed


def test_float_noise_between_near_ties_is_no_order_dependence() -> None:
    def nearly_constant(rows, history_of):
        place = np.arange(len(rows))
        return 0.1 + 1e-8 * np.sin(place)  # the last bit of a float32 of that size

    finding = leaks.candidate_permutation(WORLD.rows, "impression", nearly_constant)
    assert finding.figures["gauc_difference"] > 1e-3
    assert finding.passed


@pytest.mark.parametrize("sign", [1, -1])
def test_clicks_first_lists_are_caught_unless_logged(sign: int) -> None:
    position = sign * (WORLD.noise - 2 * WORLD.label)
    assert (
        leaks.list_position(WORLD.rows, "impression", position, list_is_ours=True).passed is False
    )
    logged = leaks.list_position(WORLD.rows, "impression", position, list_is_ours=False)
    assert logged.passed is None
    assert "position bias" in logged.note


def test_time_columns_features_and_overlap_leaks_are_caught() -> None:
    now = np.array([10, 20])
    late = leaks.time_audit(now, {"a": np.array([9, 20]), "b": np.array([0, 19])})
    assert (late.passed, late.figures) == (False, {"a": 1.0, "b": 0.0})
    assert not leaks.future_columns(["title", "total_inviews"]).passed
    leak = {"x": -WORLD.label, "y": WORLD.noise}
    found = leaks.single_feature_scan(WORLD.rows, "impression", leak)
    assert not found.passed
    assert found.note.startswith("x alone")
    with pytest.raises(MetricError, match="feature 'x' in row 0 is nan"):
        leaks.single_feature_scan(WORLD.rows, "user", {"x": np.full(WORLD.user.size, np.nan)})
    assert not leaks.overlap(WORLD.rows, ["0-3"], [], []).passed


def test_too_few_groups_is_an_error() -> None:
    one = WORLD.rows.take(np.arange(SIZE))
    with pytest.raises(MetricError, match="at least 2 groups"):
        leaks.random_scorer(one, "user")
