"""Which trial comes next, and whether one goes on: Optuna and ASHA over the ledger."""

import logging
from collections import deque
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raysys.errors import ArtifactError
from tune_spaces.runner.ledger import ENDED, Book, Event, Trial
from tune_spaces.runner.space import Choice, Domain, Halving, Point, Space, Whole

log = logging.getLogger(__name__)
_VALUE, _EPOCH = "value", "epoch"


class Search:
    """The sweep's decisions. Those of an opened book are made again, in their order, so that
    suggestions and stops go on as if nothing had happened.

    Args:
        space: what is varied.
        samples, seeds: suggestions, and training seeds for each.
        seed: of the search, and the first training seed.
        epochs: the most epochs a trial may have.
        book: the ledger, possibly with the events of an earlier driver.

    Raises:
        ArtifactError: the book tells another story than these arguments.
    """

    def __init__(
        self, space: Space, *, samples: int, seeds: int, seed: int, epochs: int, book: Book
    ) -> None:
        self.book = book
        self._samples = samples
        self._seeds = range(seed, seed + (1 if space.at_best else seeds))
        self._cells: list[Point] = [{}] if space.at_best else space.cells()
        # What is trained for the best suggestion alone.
        self._last = (space.cells(), range(seed, seed + seeds)) if space.at_best else None
        self._pick = max if space.mode == "max" else min
        self._optuna = _optuna(space, samples, seed) if space.search else None
        members = len(self._cells) * len(self._seeds)
        self._asha = _asha(space, epochs) if members == 1 else None
        self._points = 0
        self._members: deque[Trial] = deque()
        self._told: set[int] = set()
        self._again: deque[Trial] = deque()
        self._replay()

    def next(self) -> Trial | None:
        """The next trial to train, first those an earlier driver left unfinished; None: all are
        given out, or `waits`."""
        if self._again:
            trial = self._again.popleft()
            trial.status = "running"
            return trial
        fresh = self._fresh()
        if fresh is None:
            return None
        self.book.write(_suggestion(fresh))
        return self.book.trials[fresh.id]

    @property
    def waits(self) -> bool:
        """Whether more trials follow once those that are given out have ended."""
        return self._last is not None and self._points <= self._samples

    def report(self, name: str, epoch: int, value: float, seconds: float, finished: bool) -> bool:
        """Take the value of an epoch; True if the trial is to stop. Told twice, counted once."""
        trial = self.book.trials[name]
        if epoch <= trial.epoch or trial.status in ENDED:
            return trial.status == "stopped"
        stop = self._judge(name, epoch, value) and not finished
        self.book.write(
            {"kind": "report", "trial": name, "epoch": epoch, "value": value, "seconds": seconds,
             "finished": finished, "stop": stop}
        )  # fmt: skip
        self._tell(trial.point)
        return stop

    def end(self, name: str, message: str | None = None) -> None:
        """The trial has ended, well or, with a message, not."""
        trial = self.book.trials[name]
        if trial.status not in ENDED:
            status = "completed" if message is None else "failed"
            self.book.write({"kind": "end", "trial": name, "status": status, "message": message})
            self._tell(trial.point)

    def _fresh(self) -> Trial | None:
        """The first member of the next point, or the next member of the last one."""
        if not self._members and not self._open():
            return None
        trial = self._members.popleft()
        if self._asha and trial.point < self._samples:
            self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial.id))
        return trial

    def _open(self) -> bool:
        """Begin the next point; False: there is none, or none yet."""
        point, cells, seeds = self._points, self._cells, self._seeds
        if point < self._samples:
            suggested: Point = self._optuna.suggest(str(point)) if self._optuna else {}
        elif self.waits and self._last and not self.book.unfinished():
            suggested, (cells, seeds) = self._best(), self._last
        else:
            return False
        self._points += 1
        for cell, values in enumerate(cells):
            for seed in seeds:
                name = f"p{point:03d}"
                name += f"-g{cell}" if len(cells) > 1 else ""
                name += f"-s{seed}" if len(seeds) > 1 else ""
                self._members.append(Trial(name, point, {**suggested, **values}, seed))
        return True

    def _best(self) -> Point:
        """The best suggestion that was trained to its end; of equals the first. Without any, the
        recipe's own values."""
        whole = [t for t in self.book.trials.values() if t.status == "completed"]
        values = {t.id: t.value for t in whole if t.value is not None}
        if not values:
            return {}
        return self.book.trials[self._pick(values, key=lambda name: values[name])].parameters

    def _judge(self, name: str, epoch: int, value: float) -> bool:
        if self._asha is None or self.book.trials[name].point >= self._samples:
            return False
        result = {_EPOCH: epoch, _VALUE: value}
        trial = SimpleNamespace(trial_id=name)
        return self._asha.on_trial_result(None, trial, result) == TrialScheduler.STOP

    def _tell(self, point: int) -> None:
        """Give Optuna the mean of a suggestion once all its members have ended."""
        if point >= self._samples:
            return
        mine = [trial for trial in self.book.trials.values() if trial.point == point]
        whole = len(mine) == len(self._cells) * len(self._seeds)
        if not whole or point in self._told or any(t.status not in ENDED for t in mine):
            return
        self._told.add(point)
        if self._optuna is None:
            return
        values = [t.value for t in mine if t.status != "failed" and t.value is not None]
        failed = len(values) < len(mine)
        mean = None if failed else {_VALUE: sum(v for v in values) / len(values)}
        self._optuna.on_trial_complete(str(point), mean, error=failed)

    def _replay(self) -> None:
        """Make all decisions of the book again; the book is filled anew as it was at each."""
        events, waiting = self.book.events, self.book.unfinished()
        self.book.events, self.book.trials = [], {}
        for number, event in enumerate(events, 1):
            made = self._again_made(event)
            self.book.events.append(event)
            self.book._apply(event)
            if made != event:
                raise ArtifactError(
                    f"{self.book.path}, line {number}: says {event}, but the search decides "
                    f"{made}; was another Optuna or Ray at work? Start again with another --out"
                )
            if event["kind"] != "suggest":
                self._tell(self.book.trials[event["trial"]].point)
        self._again.extend(self.book.trials[trial.id] for trial in waiting)
        for trial in self._again:
            trial.status = "waiting"

    def _again_made(self, event: Event) -> Event | None:
        if event["kind"] == "suggest":
            fresh = self._fresh()
            return None if fresh is None else _suggestion(fresh)
        if event["kind"] == "report":
            stop = self._judge(event["trial"], event["epoch"], event["value"])
            return {**event, "stop": stop and not event["finished"]}
        return event


def _suggestion(trial: Trial) -> Event:
    return {"kind": "suggest", "trial": trial.id, "point": trial.point,
            "parameters": trial.parameters, "seed": trial.seed}  # fmt: skip


def _asha(space: Space, epochs: int) -> Any:
    rule: Halving | None = space.halving
    if rule is None or rule.grace >= epochs:
        return None
    return ASHAScheduler(
        time_attr=_EPOCH,
        metric=_VALUE,
        mode=space.mode,
        max_t=epochs,
        grace_period=rule.grace,
        reduction_factor=rule.factor,
        # A trial at its last epoch still has to write its run folder.
        stop_last_trials=False,
    )


def _optuna(space: Space, samples: int, seed: int) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A third of a short sweep at random is enough to begin with; Optuna's own default is ten.
    random = min(10, max(3, samples // 3))
    return OptunaSearch(
        {key: _distribution(domain) for key, domain in space.search.items()},
        metric=_VALUE,
        mode=space.mode,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=random),
    )


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(domain, Whole):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
