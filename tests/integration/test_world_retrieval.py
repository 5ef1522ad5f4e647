"""Property 10: in the planted city there is something to find for a retriever of contexts."""

from pathlib import Path

import numpy as np
import pytest
from planted import City, fit_score, gauc, load_city, pooled

from raysys.data.mapping import LocalMapper
from raysys.data.world import Effects, WorldConfig, make_world

pytestmark = pytest.mark.slow


def arms(path: Path, effects: Effects) -> tuple[City, dict[str, np.ndarray]]:
    """Scores of the arms on a fresh world; they differ only in the events they pool."""
    make_world(WorldConfig(users=1000, days=60, seed=11, effects=effects), path, LocalMapper())
    city = load_city(path)
    recent = pooled(city, "recent")
    return city, {
        "recent": fit_score(city, recent),
        "full": fit_score(city, recent, pooled(city, "full")),
        "prototype": fit_score(city, recent, pooled(city, "prototype", keep=100)),
    }


def gaucs(city: City, scores: dict[str, np.ndarray], requests: np.ndarray) -> dict[str, float]:
    """gauc_weighted@user of each arm on the rows of the requests with this mask."""
    rows = requests[city.rows.request]
    click = city.rows.click[rows].astype(float)
    return {name: gauc(click, score[rows], city.group[rows]) for name, score in scores.items()}


def test_property_10_retrieval_by_the_true_prototype_pays(tmp_path: Path) -> None:
    city, scores = arms(tmp_path / "w", Effects())
    test = city.rows.split == 2
    for requests in (test, test & city.rows.unseen):
        value = gaucs(city, scores, requests)
        assert value["prototype"] - value["recent"] >= 0.010, value
        assert value["prototype"] - value["full"] >= 0.005, value


def test_property_10_placebo_without_the_context_law_it_does_not(tmp_path: Path) -> None:
    city, scores = arms(tmp_path / "w", Effects(context=False))
    value = gaucs(city, scores, city.rows.split == 2)
    assert value["prototype"] - value["full"] < 0.002, value


def test_gauc_of_a_hand_example() -> None:
    label, score = np.array([1.0, 0, 1, 0, 0, 1]), np.array([0.9, 0.1, 0.5, 0.5, 0.7, 0.2])
    group = np.array([0, 0, 1, 1, 1, 2])  # AUC 1, (1/2 + 0)/2, and a group of one label
    assert gauc(label, score, group) == pytest.approx((2 * 1 + 3 * 0.25) / 5)
