"""The recipe's sections `evaluation` (with its judge and suites) and `gate`."""

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from preftune.section import Section


class OpenAIEndpoint(Section):
    """A language model behind an OpenAI-compatible endpoint."""

    place: ClassVar[str]  # where it stands in a recipe
    role: ClassVar[str]  # what it is, in messages

    kind: Literal["openai"]
    model: str = Field(min_length=1, description="the endpoint's name of the model")
    base_url: str | None = Field(None, description="for example http://127.0.0.1:8000/v1; none: OpenAI's own")
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable that holds the key"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests at once")
    timeout: float = Field(60, gt=0, description="seconds for one request")
    retries: int = Field(4, ge=0, le=20, description="more tries after a time-out, 429 or 5xx, with growing pauses")
    max_requests: int | None = Field(None, ge=1, description="budget of one run: requests that are really made")
    max_cost: float | None = Field(None, gt=0, description="budget of one run, in the prices' currency")
    prompt_price: float | None = Field(None, ge=0, description="price of a million prompt tokens")
    completion_price: float | None = Field(None, ge=0, description="price of a million answer tokens")

    @field_validator("base_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is an address that starts with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise ValueError("keys do not belong into a recipe: put the key into the variable that api_key_env names")
        return value

    @model_validator(mode="after")
    def _own_key(self) -> "OpenAIEndpoint":
        host = urlsplit(self.base_url).hostname if self.base_url else "api.openai.com"
        local = host in ("localhost", "127.0.0.1", "::1", "api.openai.com")
        if not local and "api_key_env" not in self.model_fields_set:
            raise ValueError(
                f"OPENAI_API_KEY would be sent to {host}: name the variable of that host's key with api_key_env"
            )
        return self

    @model_validator(mode="after")
    def _priced(self) -> "OpenAIEndpoint":
        if self.max_cost is not None and (self.prompt_price is None or self.completion_price is None):
            raise ValueError("max_cost needs prompt_price and completion_price, per million tokens")
        return self


class OpenAIJudge(OpenAIEndpoint):
    """Compares and grades answers."""

    place: ClassVar[str] = "evaluation.judge"
    role: ClassVar[str] = "judge"

    max_tokens: int = Field(512, ge=8, description="of one of the judge's answers")


class RewardModelJudge(Section):
    """A local reward model (a transformers sequence classifier with one output): the higher score wins."""

    place: ClassVar[str] = "evaluation.judge"

    kind: Literal["reward_model"]
    model: str = Field(min_length=1, description="a folder, or a hub id")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(8, ge=1, description="answers in one forward pass")
    max_length: int = Field(2048, ge=8, description="tokens of prompt and answer; longer ones are cut at the start")


Judge = Annotated[OpenAIJudge | RewardModelJudge, Field(discriminator="kind")]


class Suite(Section):
    """More prompts that both models answer, beside the held-out ones."""

    name: Literal["prompts", "alpaca_eval", "mt_bench"]
    questions: str | tuple[str, ...] = Field(
        description="a file or hub dataset in the suite's published format; for prompts also a list of texts"
    )
    max_questions: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _given(self) -> "Suite":
        if not self.questions:
            raise ValueError("questions is empty")
        if not isinstance(self.questions, str) and self.name != "prompts":
            raise ValueError(f"the questions of {self.name} are a file or a hub dataset; a list is for name: prompts")
        return self


LOCAL_TASKS = ("preference_pairs", "facts", "instructions")
HUB_TASKS = ("ifeval", "gsm8k", "mmlu", "truthfulqa_mc2")
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"max_pairs": 200, "max_prompts": 30, "max_new_tokens": 96, "task_limit": 40},
    "standard": {"max_pairs": 1000, "max_prompts": 200, "max_new_tokens": 256, "task_limit": None},
    "full": {
        "max_pairs": 100_000,
        "max_prompts": 1000,
        "max_new_tokens": 512,
        "task_limit": None,
        "tasks": (*LOCAL_TASKS, *HUB_TASKS),
    },
}


class Evaluation(Section):
    """How SFT and policy are measured: the same pairs, prompts and decoding for both."""

    preset: Literal["quick", "standard", "full"] = "quick"
    max_pairs: int = Field(0, ge=1, description="held-out pairs that are scored")
    max_prompts: int = Field(0, ge=1, description="held-out prompts that are answered")
    max_new_tokens: int = Field(0, ge=4, description="an answer is cut here and counts as not stopped")
    temperature: float = Field(0.0, ge=0, le=2, description="0: the likeliest token at each place (greedy)")
    top_p: float = Field(1.0, gt=0, le=1, description="with temperature above 0: tokens of this probability mass")
    seed: int = Field(0, ge=0, description="of the answers, with temperature above 0")
    tasks: tuple[str, ...] = Field(
        LOCAL_TASKS,
        description="lm-eval tasks: preference_pairs (the held-out pairs), facts, instructions, or lm-eval's own",
    )
    task_folder: str | None = Field(None, description="a folder with lm-eval task files of your own")
    task_limit: int | None = Field(None, ge=1, description="documents of each task; null: all")
    suites: tuple[Suite, ...] = Field((), description="prompts, alpaca_eval, mt_bench")
    judge: Judge | None = Field(None, description="who compares the answers; with one, it decides the verdict")
    training_pairs: int = Field(64, ge=1, description="held-out pairs behind eval/loss while training")
    batch_size: int = Field(8, ge=1, description="pairs in one forward pass")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("preset", "quick"), str):
            return {**PRESETS.get(data.get("preset", "quick"), PRESETS["quick"]), **data}
        return data

    @model_validator(mode="after")
    def _once(self) -> "Evaluation":
        names = [s.name for s in self.suites]
        for what, found in (("suites", names), ("tasks", list(self.tasks))):
            if twice := sorted({n for n in found if found.count(n) > 1}):
                raise ValueError(f"{what}: {twice[0]} is there twice")
        if "mt_bench" in names and isinstance(self.judge, RewardModelJudge):
            raise ValueError("mt_bench is graded from 1 to 10, which no reward model does: use a judge of kind openai")
        return self


class Gate(Section):
    """The bars of the verdict. A loss counts as damage when the paired one-sided 95 % lower bound of it
    exceeds its bar."""

    min_reward_accuracy: float = Field(0.5, ge=0.5, lt=1, description="the interval must lie above this")
    min_win_rate: float = Field(
        0.5, ge=0.5, lt=1, description="with a judge: the length-controlled win rate's interval must lie above this"
    )
    max_flip_rate: float = Field(0.40, gt=0, le=1, description="share of verdicts that change with the order")
    max_judge_errors: float = Field(0.02, ge=0, lt=1, description="share of comparisons without a verdict")
    max_stop_loss: float = Field(0.10, ge=0, description="share of answers that no longer stop by themselves")
    max_empty_gain: float = Field(0.01, ge=0, description="share of answers that became empty")
    max_repetition_gain: float = Field(0.20, ge=0, description="seq-rep-4 above SFT's")
    max_nll_factor: float = Field(2.0, ge=1, description="NLL under SFT: at most factor x SFT's + offset")
    max_nll_offset: float = Field(1.0, ge=0, description="nats per token")
    max_capability_loss: float = Field(0.02, ge=0, description="loss of accuracy on an lm-eval task")
