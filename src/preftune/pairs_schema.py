"""The recipe's section `pairs`: preference pairs from a model's own answers (`preftune pairs`). A run ignores it."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from preftune.evaluation_schema import OpenAIEndpoint, OpenAIJudge, RewardModelJudge
from preftune.section import Section


def default_output(name: str) -> str:
    """The dataset's folder, for a recipe in the folder of this name."""
    return f"data/{name}-pairs"


class Prompts(Section):
    """Where the prompts come from: a file or dataset, of which the user's turns are taken."""

    id: str = Field(min_length=1, description="a file (.txt: one prompt a line; .jsonl, …), a folder, or a hub id")
    config: str | None = Field(None, description="the hub dataset's configuration")
    split: str = "train"
    revision: str | None = Field(None, description="the hub dataset's commit or tag")
    data_dir: str | None = Field(None, description="subfolder of the dataset")
    column: str | None = Field(None, description="the prompt's column; none: the first known one (prompt, messages, …)")
    answer: str | None = Field(None, description="the answer's column, with chosen: dataset; none: the first known one")
    max_prompts: int | None = Field(None, ge=1, description="at most so many of those that are left, drawn at random")


class LocalGenerator(Section):
    """The recipe's own starting model, on this machine."""

    kind: Literal["local"] = "local"
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="auto: vLLM where it is installed and there is a GPU, else transformers"
    )
    batch_size: int = Field(8, ge=1, description="as evaluation.batch_size; sixteen times as many answers at once")


class OpenAIGenerator(OpenAIEndpoint):
    """A model behind an OpenAI-compatible endpoint."""

    place: ClassVar[str] = "pairs.generator"
    role: ClassVar[str] = "generator"


class RuleScorer(Section):
    """A Python function of the user's."""

    kind: Literal["rule"]
    function: str = Field(description="FILE.py:NAME, relative to the project; (prompt, answer, row) → a number")
    timeout: float = Field(10, gt=0, le=3600, description="seconds for one answer")

    @field_validator("function")
    @classmethod
    def _named(cls, value: str) -> str:
        if not re.fullmatch(r".+\.py:[^\W\d]\w*", value):
            raise ValueError("write it as FILE.py:FUNCTION, for example recipes/own-pairs/rule.py:score")
        return value


class OpenAIScorer(OpenAIJudge):
    """A judge: compares each two answers to a prompt, in both orders."""

    place: ClassVar[str] = "pairs.scorer"


class RewardModelScorer(RewardModelJudge):
    """A local reward model."""

    place: ClassVar[str] = "pairs.scorer"


class PeopleScorer(Section):
    """People, on the page of `preftune pairs label`."""

    kind: Literal["people"]
    labels: str | None = Field(None, description="the file of labels; none: OUTPUT-labels.jsonl beside the output")


GENERATORS = {"local": LocalGenerator, "openai": OpenAIGenerator}
SCORERS = {"rule": RuleScorer, "openai": OpenAIScorer, "reward_model": RewardModelScorer, "people": PeopleScorer}
Generator = Annotated[LocalGenerator | OpenAIGenerator, Field(discriminator="kind")]
Scorer = Annotated[RuleScorer | OpenAIScorer | RewardModelScorer | PeopleScorer, Field(discriminator="kind")]


class Pairs(Section):
    """How pairs are made: prompts → answers → scores → best against worst."""

    prompts: Prompts
    generator: Generator = LocalGenerator()  # pyright: ignore[reportCallIssue]
    completions: int = Field(4, ge=1, le=64, description="answers of the model to each prompt")
    temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        (0.7, 1.0), min_length=1, description="of the answers, in turns"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sampled from the likeliest tokens of this probability mass")
    max_new_tokens: int = Field(256, ge=1, description="an answer is cut here; a cut one is never chosen")
    seed: int = Field(42, ge=0, description="of the answers, the draw of prompts, and the split")
    chosen: Literal["model", "dataset"] = Field(
        "model", description="dataset: the dataset's own answer is chosen, and the model's are rejected"
    )
    scorer: Scorer | None = Field(None, description="who says which answer is better; none: only with chosen: dataset")
    margin: float = Field(0.0, ge=0, description="chosen's score must exceed rejected's by more than this")
    per_prompt: int = Field(1, ge=1, description="at most so many pairs of one prompt: best and worst, then the next")
    max_length_accuracy: float | None = Field(
        None, ge=0.5, le=1, description="guessing by length is right in at most this share of the pairs; none: reported"
    )
    test_size: float = Field(0.1, ge=0, lt=1, description="share of the prompts that is held out")
    output: str | None = Field(None, description="the dataset's folder; none: data/<recipe folder>-pairs")

    @field_validator("prompts", mode="before")
    @classmethod
    def _only_named(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("temperatures", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> "Pairs":
        by_model = self.chosen == "model"
        if self.scorer is None and by_model:
            raise ValueError("scorer is missing: who says which answer is better? (rule, openai, reward_model, people)")
        if self.scorer is None and (self.margin or self.per_prompt > 1 or self.completions > 1):
            raise ValueError("without a scorer there is one answer and no margin: completions: 1, per_prompt: 1")
        if by_model and self.completions < 2:
            raise ValueError("completions is 1: a pair needs two answers to choose from")
        if isinstance(self.scorer, PeopleScorer) and self.completions != (shown := 2 if by_model else 1):
            raise ValueError(f"people compare two answers to a prompt: completions: {shown}")
        if by_model and self.prompts.answer:
            raise ValueError("prompts.answer names the dataset's answers, which only chosen: dataset reads")
        if by_model and set(self.temperatures) == {0.0}:
            raise ValueError("at temperature 0 all answers to a prompt are the same one")
        return self

    def temperature(self, number: int) -> float:
        """Of the answer with this number, from 0."""
        return self.temperatures[number % len(self.temperatures)]
