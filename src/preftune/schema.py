"""The recipe's sections, as frozen models. Every field says what it does; nothing here imports torch or prefect.

TRL's own keys stay a flat mapping (`Recipe.training`, `Recipe.model`) under exactly TRL's names; their types and
bounds are checked in `known_keys.py`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.data.check_list import CHECKS, Severity
from preftune.evaluation_schema import Evaluation, Gate
from preftune.pairs_schema import Pairs
from preftune.section import Section
from preftune.sweep_schema import Sweep

EMBEDDED_MODEL = "embedded/SmolLM2-135M-Instruct"


class DatasetEntry(Section):
    """One source of preference pairs."""

    id: str = Field(min_length=1, description="a file, a folder, or a hub dataset id")
    config: str | None = Field(None, description="the hub dataset's configuration")
    split: str = Field("train", description="the split to train on")
    test_split: str | None = Field(None, description="the split to hold out; none: split off test_split_size")
    columns: dict[str, str] | list[str] | None = Field(
        None, description="our name → the dataset's column; a list (handbook style) only names what to keep"
    )

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        known = ("prompt", "chosen", "rejected", "system", "score_chosen", "score_rejected")
        if isinstance(value, dict) and (unknown := sorted(set(value) - set(known))):
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(known)} (our name: the dataset's column)")
        return value

    weight: float = Field(1.0, gt=0, description="keep: share of this dataset's rows; share: of the mixture")
    max_rows: int | None = Field(None, ge=1, description="keep at most this many pairs of the split, drawn at random")
    revision: str | None = Field(None, description="the hub dataset's commit or tag")
    data_dir: str | None = Field(None, description="subfolder of the dataset")
    streaming: bool = Field(
        False, description="read the files in a random order and stop when max_rows pairs are kept: for huge datasets"
    )

    @field_validator("data_dir")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("/") or ".." in value.split("/")):
            raise ValueError("it is a subfolder of the dataset: no leading / and no ..")
        return value

    @property
    def name(self) -> str:
        """The id, with the part of the dataset that is read."""
        part = "/".join(p for p in (self.config, self.data_dir) if p)
        return f"{self.id}:{part}" if part else self.id

    @model_validator(mode="after")
    def _streaming(self) -> "DatasetEntry":
        if self.streaming and self.max_rows is None:
            raise ValueError("streaming needs max_rows: how many pairs to keep")
        return self


class Mixture(Section):
    """Which pairs, in which proportions, and what is held out."""

    datasets: Annotated[tuple[DatasetEntry, ...], Field(min_length=1)]
    weighting: Literal["keep", "share"] = Field(
        "keep", description="keep: a fraction of each dataset's own rows; share: shares of the result"
    )
    seed: int = Field(42, ge=0)
    test_split_size: float | None = Field(
        None, gt=0, description="held-out share (below 1) or number of prompt groups' pairs (1 and above)"
    )

    @model_validator(mode="after")
    def _weights(self) -> "Mixture":
        for i, entry in enumerate(self.datasets):
            if self.weighting == "keep" and entry.weight > 1:
                raise ValueError(
                    f"datasets.{i}.weight is {entry.weight:g}: a keep-weight is at most 1 (all rows); "
                    "for shares of the result write weighting: share"
                )
        return self


class Validation(Section):
    """How strict the data checks are."""

    strict: bool = Field(False, description="refuse instead of fixing (for example a split's name)")
    max_dropped: float = Field(0.5, ge=0, le=1, description="stop when a larger share of a source is defective")
    severity: dict[str, Severity] = Field(
        default_factory=dict, description="check name → drop, warn or fail; docs/own-data.md lists the checks"
    )
    languages: tuple[str, ...] | None = Field(
        None, description="languages to keep, where a dataset names its rows'; none: the registry's choice"
    )
    near_duplicates: float | None = Field(
        0.8, gt=0, le=1, description="word-trigram Jaccard similarity from which two texts count as one; null: off"
    )
    decontaminate: tuple[str, ...] = Field((), description="files or folders whose prompts must not be trained on")
    max_length_accuracy: float = Field(
        0.75, ge=0.5, le=1, description="check length_tells: how often guessing by length may be right"
    )

    @field_validator("languages", "decontaminate", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False else value  # YAML's `off`

    @field_validator("severity")
    @classmethod
    def _severity(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, severity in value.items():
            if name not in CHECKS:
                near = difflib.get_close_matches(name, CHECKS, 1)
                raise ValueError(f"{name!r} is no check" + (f" → did you mean {near[0]}?" if near else ""))
            if severity not in CHECKS[name].allowed:
                raise ValueError(f"{name}: it can be {' or '.join(CHECKS[name].allowed)}, not {severity}")
        return value

    def does(self, name: str) -> Severity:
        """What is done about a row or dataset that fails the check."""
        return self.severity.get(name, CHECKS[name].severity)


class Tracking(Section):
    """Where the run is recorded. Never part of a cache key."""

    experiment: str | None = Field(None, min_length=1, description="default: the recipe's folder name")
    tags: dict[str, str] = Field(default_factory=dict)


class Hub(Section):
    """Where the policy is pushed after its verdict. TRL's keys, flat in the file. Never part of a cache key."""

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_revision: str | None = None


class Recipe(Section):
    """A resolved recipe: every later step reads its own section of it and nothing else.

    Args:
        path: The file it was read from.
        name: The recipe's folder name.
        method: `dpo` or `orpo`.
        model: TRL `ModelConfig` keys, resolved.
        training: Keys of TRL's `DPOConfig` or `ORPOConfig` that the recipe or the house sets; all others keep TRL's
            default.
        hub: Where the policy is pushed.
        fast_path: `auto`: packed rows and sorted micro-batches where the model can read them; `off`: TRL's own.
        micro_batch_tokens: A micro-batch of more tokens goes through the model in pieces.
        merge_adapter: Also write the model with the adapter merged into it.
        sweep: What `preftune sweep` tries; nothing else looks at it.
        pairs: What `preftune pairs` makes; nothing else looks at it.
        notices: What was translated or assumed, in words.
    """

    path: Path
    name: str
    method: Literal["dpo", "orpo"] = "dpo"
    model: dict[str, Any]
    training: dict[str, Any]
    hub: Hub = Hub()
    merge_adapter: bool = False
    mixture: Mixture
    validation: Validation = Validation()  # pyright: ignore[reportCallIssue]
    evaluation: Evaluation
    gate: Gate = Gate()  # pyright: ignore[reportCallIssue]
    tracking: Tracking = Tracking()  # pyright: ignore[reportCallIssue]
    sweep: Sweep | None = None
    pairs: Pairs | None = None
    chat_template: str | None = None
    accelerate_config: str | None = None
    fast_path: Literal["auto", "off"] = "auto"
    micro_batch_tokens: int | None = Field(None, ge=1)
    output_dir: str
    notices: tuple[str, ...] = ()

    @field_validator("fast_path", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML's `off`

    @property
    def model_name(self) -> str:
        return self.model["model_name_or_path"]

    @property
    def experiment(self) -> str:
        return self.tracking.experiment or self.name

    def resolved(self) -> dict[str, Any]:
        """The recipe as one flat YAML-able mapping that, run again, gives the same run."""
        flat = {"mixture", "model", "training", "hub"}
        dump = self.model_dump(mode="json", exclude={"path", "name", "notices", "tracking", "sweep", "pairs", *flat})
        dump = {k: v for k, v in dump.items() if v is not None}
        mixture = self.mixture.model_dump(mode="json", exclude_none=True)
        return {
            **self.model,
            **self.training,
            **self.hub.model_dump(exclude_defaults=True),
            **dump,
            "dataset_mixture": mixture,
            "tracking": {"experiment": self.experiment, "tags": dict(self.tracking.tags)},
        }
