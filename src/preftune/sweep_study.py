"""A sweep's memory: an Optuna study in a SQLite file, which outlives a killed sweep.

What a trial came to is written by the process that ran it, as soon as it is known. A trial that was running when its
process died is still open in the file, and is taken up again with the same values; so is one that failed for a reason
that may pass. Optuna is imported where it is used: the command's process needs it for a sweep only.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from preftune.children import read_json_lines
from preftune.errors import Hopeless, UserError
from preftune.store import locked
from preftune.sweep_schema import Range, Sweep
from preftune.sweep_space import as_choice, from_choices, watched

NAME = "sweep"
# Far behind: worse than three of four finished trials at the same step, once there are four, and not before a quarter
# of the training is done.
KEEP_PERCENT, FINISHED, EARLIEST = 75.0, 4, 0.25
State = Literal["done", "stopped", "failed", "open"]


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        number: From 0, in the order of their start.
        values: Recipe key → value.
        state: `done`; `stopped` early; `failed` for good; `open`: running, or to be tried again.
        found: Of a done one: what `Study.finish` was given.
        why: Why it was stopped, failed, or is open after a failure.
    """

    number: int
    values: dict[str, Any]
    state: State
    found: dict[str, Any]
    why: str = ""


@lru_cache(maxsize=4)
def _storage(path: Path) -> Any:
    """The file, opened once in a process: Optuna looks through its tables each time."""
    from optuna.storages import RDBStorage

    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})


@dataclass(frozen=True)
class Study:
    """The trials of one sweep; small, so that it can be sent to another process.

    Args:
        path: The SQLite file.
        sweep: The recipe's section.
    """

    path: Path
    sweep: Sweep

    def _load(self, sampler: Any = None) -> Any:
        """The study; with a sampler only where a trial is drawn (the grid's does not let its last trial be told)."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._make(optuna)
        pruner = optuna.pruners.PercentilePruner(KEEP_PERCENT, n_startup_trials=FINISHED, n_min_trials=FINISHED)
        sampler = sampler or optuna.samplers.RandomSampler()
        return optuna.load_study(study_name=NAME, storage=_storage(self.path), sampler=sampler, pruner=pruner)

    def _sampler(self, drawn: int) -> Any:
        """What draws the trial of this number; by its number, so that a sweep that was killed draws on, and not the
        first ones again."""
        from optuna.samplers import GridSampler, TPESampler

        if self.sweep.search == "optuna":
            return TPESampler(seed=self.sweep.seed + drawn)
        values = self.sweep.parameters.items()
        choices = {name: [as_choice(v) for v in found] for name, found in values if isinstance(found, tuple)}
        return GridSampler(choices, seed=self.sweep.seed)

    def _make(self, optuna: Any) -> None:
        """Creates the file, whole or not at all: a process killed half-way would leave one that nobody can open."""
        if self.path.exists():
            return
        with locked(self.path.with_suffix(".making")):
            if self.path.exists():
                return
            building = self.path.with_suffix(".building")
            for left in building.parent.glob(f"{building.name}*"):
                left.unlink()
            storage = _storage.__wrapped__(building)
            optuna.create_study(study_name=NAME, storage=storage, direction="maximize")
            storage.engine.dispose()
            building.replace(self.path)

    def trials(self) -> list[Trial]:
        """All that were started, in the order of their start."""
        from optuna.trial import TrialState

        states: dict[Any, State] = {
            TrialState.COMPLETE: "done",
            TrialState.PRUNED: "stopped",
            TrialState.FAIL: "failed",
        }
        return [
            Trial(
                t.number,
                from_choices(self.sweep, t.params),
                states.get(t.state, "open"),
                t.user_attrs.get("found", {}),
                t.user_attrs.get("why", ""),
            )
            for t in self._load().get_trials(deepcopy=False)
            if t.params.keys() == self.sweep.parameters.keys()  # else it was killed while it was made
        ]

    def next(self, running: set[int]) -> tuple[int, dict[str, Any]] | None:
        """The next trial to run: one that was left open, else a new one; None if there are enough.

        Args:
            running: The numbers of those that this sweep has started.

        Returns:
            Its number and its values.
        """
        import optuna
        from optuna.trial import TrialState

        there = self._load().get_trials(deepcopy=False)
        left = [t for t in there if t.state == TrialState.RUNNING and t.number not in running]
        if not left and len(there) >= self.sweep.planned:
            return None
        study = self._load(self._sampler(left[0].number if left else len(there)))
        trial = optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()
        for name, wanted in self.sweep.parameters.items():  # a trial that has its values keeps them
            if not isinstance(wanted, Range):
                trial.suggest_categorical(name, [as_choice(value) for value in wanted])
            elif wanted.whole:
                trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step or 1)
            else:
                trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)
        return trial.number, from_choices(self.sweep, trial.params)

    def _trial(self, number: int) -> Any:
        import optuna

        study = self._load()
        return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def report(self, number: int, rows: list[dict[str, Any]]) -> tuple[int, float] | None:
        """Notes what a training reports about held-out pairs.

        Args:
            number: The trial's.
            rows: Of metrics.jsonl.

        Returns:
            The step and value of the last row, if the trial is far behind the others there.
        """
        name, sign = watched(self.sweep)
        found = {r["step"]: (r["metrics"][name], r["max_steps"]) for r in rows if r["metrics"].get(name) is not None}
        trial = self._trial(number)
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        for step, (value, _) in sorted(found.items()):
            if step not in known and math.isfinite(value):
                trial.report(sign * value, step)
        if not found or not self.sweep.stop_hopeless:
            return None
        step = max(found)
        value, steps = found[step]
        return (step, value) if EARLIEST * steps <= step < steps and trial.should_prune() else None

    def finish(self, number: int, found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Notes a verdict.

        Args:
            number: The trial's.
            found: `value`, `low`, `high` (of the measure), `better`, `outcome`, and more for the table.
            rows: The training's metrics.jsonl, which later trials are compared with.
        """
        self.report(number, rows)
        trial = self._trial(number)
        trial.set_user_attr("found", found)
        trial.set_user_attr("why", "")
        if not trial.constraints:
            trial.set_constraint("rejected", float(found["outcome"] == "reject"))
        trial.study.tell(number, pessimistic(found))

    def stop(self, number: int, why: str) -> None:
        """Notes that it was stopped early."""
        self._end(number, why, "PRUNED")

    def fail(self, number: int, why: str, again: bool) -> None:
        """Notes a failure; where trying again may help, the next sweep does."""
        self._end(number, why, None if again else "FAIL")

    def _end(self, number: int, why: str, state: str | None) -> None:
        from optuna.trial import TrialState

        trial = self._trial(number)
        trial.set_user_attr("why", why)
        if state:
            trial.study.tell(number, state=TrialState[state])


def pessimistic(found: dict[str, Any]) -> float:
    """The worse end of the measure's interval, so that more is better; the value itself where it has no interval."""
    end = found["low"] if found["better"] == "higher" else found["high"]
    value = found["value"] if end is None else end
    return value if found["better"] == "higher" else -value


class Watch:
    """What a trial's training is held against while it runs; called with its metrics.jsonl at each of its lines.

    Args:
        study: The trials.
        number: This one's.
    """

    def __init__(self, study: Study, number: int) -> None:
        self._study, self._number, self._seen = study, number, 0

    def __call__(self, metrics: Path) -> None:
        """Raises `Hopeless` if it is far behind the others."""
        name, _ = watched(self._study.sweep)
        rows = [row for row in read_json_lines(metrics) if name in row["metrics"]]
        if len(rows) == self._seen:
            return
        self._seen = len(rows)
        if behind := self._study.report(self._number, rows):
            step, value = behind
            raise Hopeless(
                f"stopped early at step {step} of {rows[-1]['max_steps']}: {name} is {value:.4g}, worse than "
                "three of four finished trials had there",
                "sweep",
                "with sweep.stop_hopeless: false every training runs to its end",
            )


def measured(metrics: dict[str, Any], measure: str) -> dict[str, Any]:
    """The measure of a verdict's policy, with its interval.

    Raises:
        UserError: If there is none, or it is not finite.
    """
    from preftune.measure_table import measure_of

    if measure not in metrics:
        names = ", ".join(n for n in metrics if not n.endswith(("_lo", "_hi")))
        raise UserError(f"the verdict has no measure {measure!r}", "sweep.measure", f"it has: {names}")
    value, low, high = (metrics.get(f"{measure}{end}") for end in ("", "_lo", "_hi"))
    if value is None:
        raise UserError(f"{measure} could not be measured", "sweep.measure", "the trial's report tells more")
    return {"measure": measure, "better": measure_of(measure)[1].better, "value": value, "low": low, "high": high}
