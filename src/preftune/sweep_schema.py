"""The recipe's section `sweep`: which keys are tried with which values. A plain run ignores it."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from preftune.known_keys import HUB, known, unknown_key
from preftune.old_keys import ALIASES
from preftune.section import Section

MOST = 1000  # combinations of a grid
_ONE_BAR = "the trials of a sweep are measured on the same items against the same bars"
NOT_SWEPT = {
    **dict.fromkeys(("evaluation", "gate", "sweep"), _ONE_BAR),
    **dict.fromkeys(("tracking", "output_dir", "run_name", "report_to", *HUB), "it changes nothing that is learned"),
}


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("a number is needed")
    return value


Number = Annotated[Any, AfterValidator(_number)]  # an int stays one, a float too


class Range(Section):
    """A range that `search: optuna` draws from; of whole numbers if both ends are."""

    low: Number
    high: Number
    log: bool = Field(False, description="draw evenly on a logarithmic scale")
    step: Number | None = Field(None, description="only low, low + step, low + 2 step, …")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("with log: true low is above 0, and there is no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step ({self.step:g}) must be above 0")
        if self.step is not None and abs((n := (self.high - self.low) / self.step) - round(n)) > 1e-6:
            raise ValueError(f"high ({self.high:g}) is not low and a number of steps of {self.step:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return all(isinstance(v, int) for v in (self.low, self.high, self.step) if v is not None)


def _kind(value: Any) -> str | None:
    if isinstance(value, Range | dict):
        return "range"
    return "list" if isinstance(value, list | tuple) else None


Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="values",
        custom_error_message="write a list of values or, with search: optuna, {low: …, high: …}",
    ),
]


class Sweep(Section):
    """Which trainings a sweep makes, and by what they are ranked."""

    search: Literal["grid", "optuna"] = Field(
        "grid", description="grid: every combination; optuna: each next trial where the finished ones were good (TPE)"
    )
    parameters: dict[str, Values] = Field(
        min_length=1, description="recipe key → a list of values or, with optuna, {low, high, log, step}"
    )
    trials: int | None = Field(
        None, ge=1, le=MOST, description="how many trainings; grid: none for all combinations, else so many of them"
    )
    seed: int = Field(42, ge=0, description="of the order of a grid, and of optuna's draws")
    measure: str | None = Field(None, description="ranked by; none: the verdict's primary measure")
    stop_hopeless: bool = Field(
        True, description="end a training that is far behind the others while it runs; needs eval_strategy"
    )

    @field_validator("parameters")
    @classmethod
    def _known(cls, parameters: dict[str, Values]) -> dict[str, Values]:
        for name, values in parameters.items():
            key = name.split(".")[0]
            if key not in known() and key not in ALIASES:
                error = unknown_key(name, known(), "")
                raise ValueError(f"{error.error}: {error.advice}")
            if key in NOT_SWEPT:
                raise ValueError(f"{name} cannot be swept: {NOT_SWEPT[key]}")
            if isinstance(values, tuple):
                if not values:
                    raise ValueError(f"{name}: the list is empty")
                if len({repr(v) for v in values}) < len(values):
                    raise ValueError(f"{name}: a value stands twice")
        return parameters

    @field_validator("measure")
    @classmethod
    def _has_a_better_way(cls, value: str | None) -> str | None:
        from preftune.measure_table import measure_of

        if value is not None and not measure_of(value)[1].better:
            raise ValueError(f"{value!r} is no measure that has a better way; docs/verdict.md lists them")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Sweep":
        ranges = [name for name, values in self.parameters.items() if isinstance(values, Range)]
        if self.search == "grid":
            if ranges:
                raise ValueError(f"{ranges[0]} is a range: a grid needs a list of values, or write search: optuna")
            if self.combinations > MOST:
                raise ValueError(
                    f"the grid has {self.combinations:,} combinations: at most {MOST:,}, or search: optuna"
                )
        elif self.trials is None:
            raise ValueError("search: optuna needs trials: how many trainings")
        return self

    @property
    def combinations(self) -> int:
        """Of the grid."""
        return math.prod(len(values) for values in self.parameters.values() if isinstance(values, tuple))

    @property
    def planned(self) -> int:
        """How many trials there will be."""
        wanted = self.trials or self.combinations
        return min(wanted, self.combinations) if self.search == "grid" else wanted
