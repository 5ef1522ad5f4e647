"""A small city whose people look, search and order: data sets for the tests of HKFR."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from larr_city import CARD

from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.split import DAY_US
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import AnonymiseOptions, EventOptions, KnowledgeConfig
from raysys.hkfr.events import Teller, UserLog, user_logs
from raysys.hkfr.items import Items
from raysys.options import validate
from raysys.recipes.hkfr_knowledge import KnowledgeReport, build_knowledge

FIRST_DAY = date(2024, 1, 1)  # a Monday
T0 = 1_704_067_200_000_000
HOUR = DAY_US // 24
CUISINES = ("thai", "pizza", "sushi")
KINDS = ("click", "search", "order", "favourite", "view", "order")
SCENARIOS = ("home page", "mini program")
DAYS, VALID_FROM, TEST_FROM = 12, 8, 10


def at(day: int, hour: float) -> int:
    """µs UTC of an hour of a day, counted from 0."""
    return T0 + day * DAY_US + int(hour * HOUR)


class City:
    """Rows of the tables; change them before `write`.

    Users u0.. order every second day at noon, and look around before and after; the last has no
    events. At 11 on the days from the fourth on each has a request, which led to the order of the
    day, or to none.
    """

    def __init__(self, users: int = 4, timed: bool = True, scenarios: bool = True) -> None:
        self.timed = timed
        self.items: list[dict[str, Any]] = [
            dict(
                item_id=f"p{n}",
                kind="poi",
                name=f"{('Red', 'Blue', 'Green', 'Gold')[n // 3]} {CUISINES[n % 3].title()}",
                category=["food", CUISINES[n % 3], f"{CUISINES[n % 3]} dishes"],
                price=float(4 + 3 * n),
                brand=("Orchid", "Lotus")[n % 2],
                location=dict(lat=50.0, lon=10.0, area=f"area{n // 6}"),
            )
            for n in range(12)
        ]
        self.events: list[dict[str, Any]] = []
        self.impressions: list[dict[str, Any]] = []
        for user in range(users):
            seen = 0
            for day in range(DAYS if user < users - 1 else 0):
                for hour, kind in enumerate(KINDS):
                    if kind == "order" and (day + hour) % 4:
                        continue
                    moment = at(day, 9 + hour)
                    item = None if kind == "search" else f"p{(user + day + hour) % 12}"
                    self.events.append(
                        dict(
                            user_id=f"u{user}",
                            seq=seen,
                            ts=moment if timed else None,
                            tz_offset_min=0 if timed else None,
                            item_id=item,
                            text=f"{CUISINES[day % 3]} near me" if item is None else None,
                            behaviour=kind,
                            scenario=SCENARIOS[hour % 2] if scenarios else None,
                            context={"place": ("home", "office")[day % 2]},
                        )
                    )
                    seen += 1
            for day in range(3, DAYS):
                self._request(user, day)

    def _request(self, user: int, day: int) -> None:
        bought = f"p{(user + day + 2) % 12}"
        shown = list(dict.fromkeys([bought, *(f"p{(user + 3 * day + n) % 12}" for n in range(5))]))
        clicks = [bought, shown[-1]]
        before = [
            e
            for e in self.events
            if e["user_id"] == f"u{user}" and e["behaviour"] in ("click", "order")
        ]
        part = "train" if day < VALID_FROM else "valid" if day < TEST_FROM else "test"
        self.impressions.append(
            dict(
                impression_id=f"u{user}-{day}",
                user_id=f"u{user}",
                ts=at(day, 10.9) if self.timed else None,
                tz_offset_min=0 if self.timed else None,
                history_end=None if self.timed else len(before) * day // DAYS,
                context={"place": ("home", "office")[day % 2]},
                candidates=shown,
                clicks=clicks,
                orders=[bought] if (day + 2) % 4 == 0 else [],
                split=part,
            )
        )

    def write(self, folder: Path, version: str = "1") -> Path:
        """A data set folder."""
        self.events.sort(key=lambda event: (event["user_id"], event["seq"]))
        with DatasetWriter(folder, contexts={"place": "categorical"}) as writer:
            for name in ("items", "events", "impressions"):
                writer.write(name, pa.Table.from_pylist(getattr(self, name), writer.schemas[name]))
            card = CARD.model_copy(update={"version": version})
            writer.commit(card, history_behaviours=("click", "order"))
        return folder


def build(data: Path, out: Path, day: date | None = None, **options: Any) -> KnowledgeReport:
    """The command, with options as a YAML file gives them."""
    return build_knowledge(data, out, validate(KnowledgeConfig, options), day)


def logs(data: Path) -> dict[str, UserLog]:
    """The logs of the users that have events or requests."""
    dataset = Dataset(data)
    users = {
        user for name in ("events", "impressions")
        for user in dataset.table(name, ["user_id"])["user_id"].to_pylist()
    }  # fmt: skip
    return {log.user_id: log for log in user_logs(dataset, sorted(users), None)}


def teller(data: Path, anonymise: AnonymiseOptions | None = None, **events: Any) -> Teller:
    """Words of the events of a data set."""
    dataset = Dataset(data)
    anonymiser = Anonymiser(anonymise or AnonymiseOptions(), dataset.card.dataset)
    items = Items(dataset.table("items"), anonymiser)
    return Teller(items, anonymiser, validate(EventOptions, events), ["place"])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that are unpacked lie apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The city as it is."""
    return City().write(tmp_path_factory.mktemp("hkfr") / "city")


@pytest.fixture(scope="module")
def daily(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knowledge of every day; one user has no events."""
    out = tmp_path_factory.mktemp("hkfr") / "daily"
    assert build(city, out, days=DAYS).cold == 1
    return out
