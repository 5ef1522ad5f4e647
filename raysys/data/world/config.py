"""Every constant of the planted world, as one frozen config."""

from datetime import date
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Effects(_Frozen):
    """Laws that can be turned off, each giving the placebo world of one method.

    `context` off: one prototype per user instead of one per context, so that variance stays.
    `entity` off: every reader is topic-driven. `words` off: menus pull on nobody, and a new word
    for the weather says nothing about it. The others drop their term.
    """

    context: bool = True
    words: bool = True
    taste: bool = True
    joint_behaviour: bool = True
    entity: bool = True
    abstract: bool = True


class FoodWeights(_Frozen):
    """Weights of the utility U, of p(click) and of p(order|click) in the food city."""

    prototype: float = 1.0
    taste: float = 0.8
    words: float = 0.5
    price: float = 0.4
    quality: float = 0.3
    distance: float = 0.4
    popularity: float = 0.25
    repeat: float = 0.6
    joint: float = 1.2
    kappa: float = Field(default=0.5, gt=0)  # slope from U to the click logit of a recommended item
    kappa_own: float = Field(default=1.0, gt=0)  # the same where the user finds the place himself
    position: float = -0.02  # per rank
    order_price: float = 0.4
    order_prototype: float = 0.18
    order_repeat: float = 0.5
    order_joint: float = 0.6
    click_rate: float = Field(default=0.10, gt=0, lt=1)  # b0 is solved for these two
    order_rate: float = Field(default=0.15, gt=0, lt=1)


class NewsWeights(_Frozen):
    """Weights of the click law of the newspaper readers."""

    kappa: float = Field(default=0.9, gt=0)
    kappa_own: float = Field(default=1.2, gt=0)
    entity: float = 1.0
    topic: float = 1.0
    abstract: float = 0.6
    recency: float = -0.25  # per log hour of age
    position: float = -0.02
    click_rate: float = Field(default=0.10, gt=0, lt=1)


class WorldConfig(_Frozen):
    """The planted world: `kind` food writes the city's meals, news the same users' reading of an
    invented newspaper, readers their reading of real news."""

    kind: Literal["food", "news", "readers"] = "food"
    seed: int = Field(default=0, ge=0)
    users: int = Field(default=2000, ge=1, le=9_999_999)
    days: int = Field(default=60, ge=6)
    start: date = date(2024, 1, 1)  # a Monday
    tz_offset_min: int = Field(default=480, ge=-840, le=840)
    effects: Effects = Effects()
    food: FoodWeights = FoodWeights()
    news: NewsWeights = NewsWeights()

    # Impressions are logged for the last `log_days`; 0 scales these three with `days`.
    log_days: int = Field(default=0, ge=0)
    valid_days: int = Field(default=0, ge=0)
    test_days: int = Field(default=0, ge=0)

    prototypes: int = Field(default=12, ge=2)
    uniform_share: float = Field(
        default=0.1, gt=0, lt=1
    )  # mixed into every prototype and personal law
    personal_concentration: float = Field(default=4.0, gt=0)

    events_per_day: float = Field(
        default=2.0, ge=0
    )  # median over users of places found by themselves
    activity_sigma: float = Field(default=1.3, ge=0)
    history_max: int = Field(default=10_000, ge=0)
    requests_per_day: float = Field(default=0.45, gt=0)
    searches_per_day: float = Field(default=0.25, ge=0)
    favourites_per_day: float = Field(default=0.2, ge=0)
    cold_share: float = Field(default=0.1, ge=0, le=1)
    unseen_share: float = Field(
        default=0.15, ge=0, le=1
    )  # test requests in combinations never seen
    new_value_share: float = Field(
        default=0.05, ge=0, le=1
    )  # test requests with a new weather word

    candidates: int = Field(default=20, ge=2, le=200)
    own_candidates: int = Field(default=32, ge=2, le=200)
    grid: int = Field(default=4, ge=2, le=30)
    pois: int = Field(default=1500, ge=100, le=999_999)
    new_poi_share: float = Field(default=0.1, ge=0, lt=1)
    articles_per_day: int = Field(default=60, ge=20)
    named_entities: int = Field(default=400, ge=40, le=5000)

    shard_users: int = Field(
        default=256, ge=1
    )  # fixed by the config, so that worker counts cannot matter
    truth_terms: bool = False  # also keep every term of the law per impression row

    @property
    def logged(self) -> int:
        """Days with impressions, at the end of the period."""
        return self.log_days or max(5, self.days // 2)

    @property
    def test(self) -> int:
        """Days of the test part."""
        return self.test_days or min(7, max(1, self.logged // 4))

    @property
    def valid(self) -> int:
        """Days of the validation part, just before the test part."""
        return self.valid_days or min(3, max(1, self.logged // 8))

    @property
    def shards(self) -> int:
        """Number of user shards."""
        return -(-self.users // self.shard_users)

    @model_validator(mode="after")
    def _periods_fit(self) -> Self:
        if self.logged > self.days:
            raise ValueError(f"log_days {self.logged} is longer than days {self.days}")
        if self.test + self.valid >= self.logged:
            raise ValueError(
                f"valid_days {self.valid} + test_days {self.test} leave no training day "
                f"in the {self.logged} logged days"
            )
        return self
