"""From a recipe file and overrides to one frozen recipe: names, translations, refusals, sections."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preftune.errors import UserError
from preftune.evaluation_schema import PRESETS
from preftune.house import HOUSE_TRAINING
from preftune.known_keys import known
from preftune.old_keys import NO_EFFECT
from preftune.recipe import load_recipe, parse_overrides, resolve
from preftune.schema import EMBEDDED_MODEL, Evaluation, Gate, Mixture, Recipe, Validation

DATA = "dataset_name: pairs.jsonl\n"
PATH = Path("recipes/demo/config.yaml")

# alignment-handbook, recipes/zephyr-7b-beta/dpo/config_full.yaml, as published for TRL 0.x
HANDBOOK = """
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits:
- train_prefs
- test_prefs
preprocessing_num_workers: 12
bf16: true
beta: 0.01
do_eval: true
evaluation_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
"""


def write(folder: Path, text: str) -> Path:
    """A recipe file in a folder named demo."""
    path = folder / "demo" / "config.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def made(text: str = "", **overrides: Any) -> Recipe:
    """A recipe resolved from one dataset and some more YAML."""
    return resolve({**yaml.safe_load(DATA + text), **overrides}, PATH)


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["off", "false", '"off"'])
def test_fast_path_off_is_yaml_s_off(tmp_path: Path, written: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{DATA}fast_path: {written}\n")
    assert load_recipe(recipe).fast_path == "off"
    recipe.write_text(DATA)
    assert load_recipe(recipe, parse_overrides([f"--fast_path={written}"])).fast_path == "off"


def test_the_smallest_recipe(tmp_path: Path) -> None:
    """One line is enough; what is assumed is told."""
    recipe = load_recipe(write(tmp_path, DATA))
    assert recipe.name == recipe.experiment == "demo"
    assert recipe.model == {"model_name_or_path": EMBEDDED_MODEL}
    assert recipe.output_dir == "data/demo"
    assert recipe.training == {**HOUSE_TRAINING, "precompute_ref_log_probs": True}
    entry = recipe.mixture.datasets[0]
    assert (entry.id, entry.split, entry.test_split, entry.weight) == ("pairs.jsonl", "train", None, 1.0)
    assert recipe.evaluation.max_pairs == PRESETS["quick"]["max_pairs"]
    assert any(EMBEDDED_MODEL in n for n in recipe.notices)


def test_numbers_arrive_as_written(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, DATA + "learning_rate: 5e-7\nbeta: 0.3\nmax_length: 77\n"))
    assert recipe.training["learning_rate"] == 5e-7
    assert recipe.training["beta"] == 0.3
    assert recipe.training["max_length"] == 77


def test_a_recipe_s_value_beats_the_house_s() -> None:
    assert made("seed: 7").training["seed"] == 7
    assert made().training["seed"] == HOUSE_TRAINING["seed"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a mapping"),
        ("[]", "not a mapping"),
        ("- a\n- b", "not a mapping"),
        ("just text", "not a mapping"),
        ("{}", "not a mapping"),
        ("1: 2", "the key 1 is not text"),
        ("beta: 0.1\nbeta: 0.2", "stands twice"),
        ("beta: .nan\n" + DATA, "not a finite number"),
        ("beta: 0.1", "names no data"),
        (DATA + "dataset_mixture: {datasets: [{id: a}]}", "both name data"),
    ],
)
def test_no_recipe(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(tmp_path / "nothing.yaml")


def test_a_folder_or_bytes_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable text file"):
        load_recipe(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"beta: \xff\xfe")
    with pytest.raises(UserError, match="not a readable text file"):
        load_recipe(tmp_path / "x.yaml")


def test_recipes_are_frozen() -> None:
    recipe = made()
    with pytest.raises(ValidationError):
        recipe.output_dir = "elsewhere"
    with pytest.raises(ValidationError):
        recipe.gate.max_stop_loss = 1.0


def test_nothing_heavy_is_imported() -> None:
    """A typing error in a recipe is told before torch could be imported."""
    code = (
        "import sys; import preftune.recipe; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'trl', 'mlflow', 'transformers', 'prefect', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- overrides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--beta=0.2"], {"beta": 0.2}),
        (["--beta", "0.2"], {"beta": 0.2}),
        (["--beta", "-0.2"], {"beta": -0.2}),
        (["--learning_rate=5e-7"], {"learning_rate": 5e-7}),
        (["--evaluation.preset", "full", "--seed=1"], {"evaluation.preset": "full", "seed": 1}),
        (["--loss_type=[sigmoid, ipo]"], {"loss_type": ["sigmoid", "ipo"]}),
        (["--max_length=null"], {"max_length": None}),
        (["--run_name=a=b"], {"run_name": "a=b"}),
        (["--run_name="], {"run_name": None}),
        (["--beta=1", "--beta=2"], {"beta": 2}),
    ],
)
def test_parse_overrides(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse_overrides(arguments) == expected


def test_parse_overrides_leaves_its_argument_alone() -> None:
    arguments = ["--beta", "0.2"]
    parse_overrides(arguments)
    assert arguments == ["--beta", "0.2"]


@pytest.mark.parametrize("arguments", [["beta=1"], ["-beta=1"], ["--"], ["--=1"], ["--beta"], ["--beta", "--seed=1"]])
def test_arguments_that_are_no_overrides(arguments: list[str]) -> None:
    with pytest.raises(UserError) as e:
        parse_overrides(arguments)
    assert e.value.where == "command line"


def test_an_override_s_value_is_strict_yaml() -> None:
    with pytest.raises(UserError, match="finite"):
        parse_overrides(["--beta=.inf"])


def test_overrides_win_and_nest(tmp_path: Path) -> None:
    """Flat keys, keys of a section that is there or not, entries of a list."""
    path = write(
        tmp_path,
        "beta: 0.1\ngate: {max_stop_loss: 0}\n"
        "dataset_mixture: {datasets: [{id: a, weight: 0.5}, {id: b, weight: 0.25}]}\n",
    )
    recipe = load_recipe(
        path,
        {
            "beta": 0.4,
            "evaluation.preset": "full",
            "gate.max_empty_gain": 0.3,
            "dataset_mixture.datasets.1.weight": 0.75,
            "dataset_mixture.seed": 3,
        },
    )
    assert recipe.training["beta"] == 0.4
    assert recipe.evaluation.max_prompts == PRESETS["full"]["max_prompts"]
    assert (recipe.gate.max_stop_loss, recipe.gate.max_empty_gain) == (0, 0.3)
    assert [d.weight for d in recipe.mixture.datasets] == [0.5, 0.75]
    assert recipe.mixture.seed == 3


def test_an_override_may_replace_a_list_s_entry(tmp_path: Path) -> None:
    path = write(tmp_path, "dataset_mixture: {datasets: [{id: a}, {id: b}]}")
    recipe = load_recipe(path, {"dataset_mixture.datasets.0": {"id": "c"}})
    assert [d.id for d in recipe.mixture.datasets] == ["c", "b"]


@pytest.mark.parametrize(
    "key",
    [
        "dataset_mixture.datasets.2.weight",
        "dataset_mixture.datasets.2",
        "dataset_mixture.datasets.x.weight",
        "dataset_mixture.datasets.-1",
        "dataset_mixture.datasets.²",
        "loss_type.0.x",
        "loss_type.0.x.y",
    ],
)
def test_overrides_that_lead_nowhere(tmp_path: Path, key: str) -> None:
    """An entry that is not there, or a step into a plain value."""
    path = write(tmp_path, "dataset_mixture: {datasets: [{id: a}, {id: b}]}\nloss_type: [sigmoid]")
    with pytest.raises(UserError) as e:
        load_recipe(path, {key: 1})
    assert key in str(e.value)


def test_overrides_are_not_changed(tmp_path: Path) -> None:
    """The caller's mapping is read only: a flow's parameters are shown as they were given."""
    overrides = {"evaluation": {"preset": "quick"}, "evaluation.max_pairs": 5}
    recipe = load_recipe(write(tmp_path, DATA), overrides)
    assert recipe.evaluation.max_pairs == 5
    assert overrides == {"evaluation": {"preset": "quick"}, "evaluation.max_pairs": 5}


# --- unknown keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bta: 0.1", "did you mean beta?"),
        ("learning_rat: 1e-6", "did you mean learning_rate?"),
        ("lora_rank: 8", "did you mean lora_r?"),
        ("evaluations: {}", "did you mean evaluation?"),
        ("evaluation: {presett: quick}", "did you mean evaluation.preset?"),
        ("evaluation: {max_pair: 4}", "did you mean evaluation.max_pairs?"),
        ("gate: {max_stop_los: 0.1}", "did you mean gate.max_stop_loss?"),
        ("validation: {stric: true}", "did you mean validation.strict?"),
        ("tracking: {experimnt: a}", "did you mean tracking.experiment?"),
    ],
)
def test_the_closest_key_is_named(text: str, told: str) -> None:
    with pytest.raises(UserError, match="unknown key") as e:
        made(text)
    assert e.value.advice == told and e.value.where.startswith(str(PATH))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{datasets: [{id: a, wieght: 0.5}]}", "did you mean dataset_mixture.datasets.0.weight?"),
        ("{datasets: [{id: a}, {id: b, test_splt: x}]}", "did you mean dataset_mixture.datasets.1.test_split?"),
        ("{datasets: [{id: a}], weightin: keep}", "did you mean dataset_mixture.weighting?"),
    ],
)
def test_the_closest_key_in_the_mixture(text: str, told: str) -> None:
    with pytest.raises(UserError, match="unknown key") as e:
        resolve({"dataset_mixture": yaml.safe_load(text)}, PATH)
    assert e.value.advice == told


def test_a_key_like_no_other() -> None:
    with pytest.raises(UserError) as e:
        made("qqqqqq: 1")
    assert "docs/recipes.md" in e.value.advice


# --- keys of older versions -------------------------------------------------------------------------------


def test_a_handbook_recipe_runs_as_it_is(tmp_path: Path) -> None:
    """Each key that changed is translated, with a line that says so."""
    recipe = load_recipe(write(tmp_path, HANDBOOK))
    entry = recipe.mixture.datasets[0]
    assert (entry.id, entry.split) == ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs")
    assert (entry.test_split, entry.weight) == ("test_prefs", 1.0)
    assert recipe.model == {"model_name_or_path": "alignment-handbook/zephyr-7b-sft-full", "dtype": "float32"}
    assert recipe.training["eval_strategy"] == "steps"
    assert recipe.training["warmup_steps"] == 0.1
    assert recipe.training["learning_rate"] == 5e-7
    for gone in ("torch_dtype", "max_prompt_length", "warmup_ratio", "dataset_mixer"):
        assert gone not in recipe.training
        assert sum(gone in n for n in recipe.notices) == 1, gone
    assert recipe.output_dir == "data/zephyr-7b-dpo-full"


def test_a_single_checkpoint_is_not_enough() -> None:
    """save_total_limit 1 (as in the handbook's recipes): a torn checkpoint would be the only one, because
    transformers removes the old one before the new one is sealed."""
    recipe = made("save_total_limit: 1")
    assert recipe.training["save_total_limit"] >= 2
    assert any("save_total_limit" in n for n in recipe.notices)
    assert made("save_total_limit: 3").training["save_total_limit"] == 3


@pytest.mark.parametrize(
    ("old", "new", "value", "other"),
    [
        ("torch_dtype", "dtype", "bfloat16", "float16"),
        ("evaluation_strategy", "eval_strategy", "steps", "epoch"),
        ("warmup_ratio", "warmup_steps", 0.1, None),
        ("model_max_length", "max_length", 512, 513),
        ("preprocessing_num_workers", "dataset_num_proc", 4, 5),
    ],
)
def test_renamed(old: str, new: str, value: Any, other: Any) -> None:
    recipe = made(**{old: value})
    assert {**recipe.training, **recipe.model}[new] == value
    assert old not in {**recipe.training, **recipe.model}
    assert f"{old} is called {new} now" in recipe.notices
    if other is not None:
        with pytest.raises(UserError, match="two names of one key"):
            made(**{old: value, new: other})


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_removed(key: str) -> None:
    """Left out and told; nothing is told of a key that is switched off."""
    recipe = made(**{key: False})
    assert key not in recipe.training and not any(key in n for n in recipe.notices)
    recipe = made(**{key: 5})
    assert key not in recipe.training
    assert any(n.startswith(f"{key} has no effect: ") for n in recipe.notices)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resume_from_checkpoint", "x"),
        ("auto_find_batch_size", True),
        ("save_only_model", True),
        ("hub_token", "abc"),
        ("local_rank", 1),
    ],
)
def test_refused(key: str, value: Any) -> None:
    """What preftune sets itself or never allows; switched off it may stand there."""
    with pytest.raises(UserError, match="not taken from a recipe") as e:
        made(**{key: value})
    assert e.value.advice == f"remove {key}"
    recipe = made(**{key: None})
    assert key not in {**recipe.training, **recipe.model}


def test_mixer_with_several_splits() -> None:
    """Every training split of every dataset, in order, with the dataset's weight."""
    data = {
        "dataset_mixer": {"a/a": 0.5, "b/b": 1},
        "dataset_splits": ["train_sft", "train_prefs", "test_prefs"],
    }
    entries = resolve(data, PATH).mixture.datasets
    assert [(e.id, e.split, e.test_split, e.weight) for e in entries] == [
        ("a/a", "train_sft", "test_prefs", 0.5),
        ("a/a", "train_prefs", "test_prefs", 0.5),
        ("b/b", "train_sft", "test_prefs", 1),
        ("b/b", "train_prefs", "test_prefs", 1),
    ]


def test_mixer_without_splits() -> None:
    entry = resolve({"dataset_mixer": {"a": 1.0}}, PATH).mixture.datasets[0]
    assert (entry.split, entry.test_split) == ("train", None)


@pytest.mark.parametrize("mixer", [[], {}, "a", 1])
def test_mixer_of_the_wrong_kind(mixer: Any) -> None:
    with pytest.raises(UserError, match="dataset_mixer"):
        resolve({"dataset_mixer": mixer}, PATH)


@pytest.mark.parametrize("splits", ["train_prefs", [1], 3, {"train": 1}])
def test_splits_of_the_wrong_kind(splits: Any) -> None:
    """One split as plain text is that split, never its first letter; anything else is an error."""
    data = {"dataset_mixer": {"a": 1.0}, "dataset_splits": splits}
    if isinstance(splits, str):
        assert [e.split for e in resolve(data, PATH).mixture.datasets] == [splits]
        return
    with pytest.raises(UserError, match="dataset_splits"):
        resolve(data, PATH)


def test_two_namings_of_the_data_contradict() -> None:
    """Neither dataset_mixer nor a split key beside dataset_mixture is dropped in silence."""
    with pytest.raises(UserError):
        resolve({"dataset_mixer": {"a": 1.0}, "dataset_mixture": {"datasets": [{"id": "b"}]}}, PATH)
    with pytest.raises(UserError):
        resolve({"dataset_test_split": "test", "dataset_mixture": {"datasets": [{"id": "b"}]}}, PATH)
    for mixture in ([{"id": "b"}], 3, "b"):
        with pytest.raises(UserError):
            resolve({"dataset_name": "a", "dataset_mixture": mixture}, PATH)


def test_the_shortcut_for_one_dataset() -> None:
    data = {
        "dataset_name": "a/b",
        "dataset_config": "en",
        "dataset_train_split": "train_prefs",
        "dataset_test_split": "test_prefs",
    }
    entry = resolve(data, PATH).mixture.datasets[0]
    assert (entry.id, entry.config, entry.split, entry.test_split) == ("a/b", "en", "train_prefs", "test_prefs")


def test_the_shortcut_and_how_to_mix() -> None:
    """dataset_mixture without datasets only says how."""
    mixture = resolve({"dataset_name": "a", "dataset_mixture": {"seed": 3, "test_split_size": 0.2}}, PATH).mixture
    assert ([e.id for e in mixture.datasets], mixture.seed, mixture.test_split_size) == (["a"], 3, 0.2)


# --- secrets ----------------------------------------------------------------------------------------------

TOKENS = ["hf_" + "A1b2" * 8, "sk-" + "a_B-" * 6, "wandb_v1_" + "x" * 24]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "place",
    [
        {"run_name": "TOKEN"},
        {"tracking": {"tags": {"who": "TOKEN"}}},
        {"loss_type": ["sigmoid", "TOKEN"]},
        {"dataset_mixture": {"datasets": [{"id": "a", "revision": "TOKEN"}]}},
        {"nobody_knows": "TOKEN"},
    ],
)
def test_secrets_are_refused_and_not_repeated(place: dict[str, Any], token: str) -> None:
    """Wherever it stands; the message names the place, never the token."""

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: put(v) for k, v in value.items()}
        if isinstance(value, list):
            return [put(v) for v in value]
        return token if value == "TOKEN" else value

    data = {**({} if "dataset_mixture" in place else {"dataset_name": "x"}), **put(place)}
    with pytest.raises(UserError, match="looks like an access token") as e:
        resolve(data, PATH)
    assert token not in str(e.value) and next(iter(place)) in e.value.where


def test_words_that_only_begin_like_a_token() -> None:
    assert made("run_name: hf_short").training["run_name"] == "hf_short"
    assert made("run_name: sk-learn").training["run_name"] == "sk-learn"


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("validation: {max_dropped: 1.1}", "validation.max_dropped"),
        ("validation: {max_dropped: -0.1}", "validation.max_dropped"),
        ("evaluation: {preset: huge}", "evaluation.preset"),
        ("evaluation: {preset: [quick]}", "evaluation.preset"),
        ("evaluation: {max_pairs: 0}", "evaluation.max_pairs"),
        ("evaluation: {max_prompts: 0}", "evaluation.max_prompts"),
        ("evaluation: {max_new_tokens: 3}", "evaluation.max_new_tokens"),
        ("evaluation: {task_limit: -1}", "evaluation.task_limit"),
        ("evaluation: {training_pairs: 0}", "evaluation.training_pairs"),
        ("evaluation: {batch_size: 0}", "evaluation.batch_size"),
        ("evaluation: {batch_size: 1.5}", "evaluation.batch_size"),
        ("gate: {min_reward_accuracy: 0.49}", "gate.min_reward_accuracy"),
        ("gate: {min_reward_accuracy: 1}", "gate.min_reward_accuracy"),
        ("gate: {max_stop_loss: -0.01}", "gate.max_stop_loss"),
        ("gate: {max_empty_gain: -0.01}", "gate.max_empty_gain"),
        ("gate: {max_repetition_gain: -0.01}", "gate.max_repetition_gain"),
        ("gate: {max_nll_factor: 0.99}", "gate.max_nll_factor"),
        ("gate: {max_nll_offset: -0.01}", "gate.max_nll_offset"),
        ("gate: {max_capability_loss: -0.01}", "gate.max_capability_loss"),
        ("tracking: {experiment: ''}", "tracking.experiment"),
        ("tracking: {tags: {a: [1]}}", "tracking.tags.a"),
        ("chat_template: 5", "chat_template"),
    ],
)
def test_bounds_of_the_sections(text: str, place: str) -> None:
    with pytest.raises(UserError) as e:
        made(text)
    assert e.value.where.startswith(f"{PATH}: {place}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{datasets: []}", "dataset_mixture.datasets"),
        ("{}", "dataset_mixture.datasets"),
        ("{datasets: [{split: train}]}", "dataset_mixture.datasets.0.id"),
        ("{datasets: [{id: ''}]}", "dataset_mixture.datasets.0.id"),
        ("{datasets: [{id: a, weight: 0}]}", "dataset_mixture.datasets.0.weight"),
        ("{datasets: [{id: a, weight: -1}]}", "dataset_mixture.datasets.0.weight"),
        ("{datasets: [{id: a, max_rows: 0}]}", "dataset_mixture.datasets.0.max_rows"),
        ("{datasets: [{id: a}], seed: -1}", "dataset_mixture.seed"),
        ("{datasets: [{id: a}], test_split_size: 0}", "dataset_mixture.test_split_size"),
        ("{datasets: [{id: a}], weighting: other}", "dataset_mixture.weighting"),
        ("{datasets: [{id: a}, {id: b, weight: 1.5}]}", "dataset_mixture"),
        ("{datasets: [{id: a, columns: 3}]}", "dataset_mixture.datasets.0.columns"),
    ],
)
def test_bounds_of_the_mixture(text: str, place: str) -> None:
    with pytest.raises(UserError) as e:
        resolve({"dataset_mixture": yaml.safe_load(text)}, PATH)
    assert e.value.where.startswith(f"{PATH}: {place}")


def test_a_keep_weight_is_at_most_one_a_share_may_be_more() -> None:
    with pytest.raises(ValidationError, match=r"datasets\.1\.weight is 1\.5"):
        Mixture.model_validate({"datasets": [{"id": "a"}, {"id": "b", "weight": 1.5}]})
    mixture = Mixture.model_validate({"weighting": "share", "datasets": [{"id": "a", "weight": 70}, {"id": "b"}]})
    assert [e.weight for e in mixture.datasets] == [70, 1]


@pytest.mark.parametrize("section", ["validation", "evaluation", "gate", "tracking"])
@pytest.mark.parametrize("value", [None, 3, [1], "quick"])
def test_a_section_holds_keys(section: str, value: Any) -> None:
    with pytest.raises(UserError, match="this section must hold keys") as e:
        made(**{section: value})
    assert e.value.where == f"{PATH}: {section}"


@pytest.mark.parametrize("data", [None, 3, [1], "pairs.jsonl"])
def test_a_mixture_of_the_wrong_kind(data: Any) -> None:
    with pytest.raises(UserError):
        resolve({"dataset_mixture": data}, PATH)


@pytest.mark.parametrize("preset", ["quick", "standard", "full"])
def test_presets(preset: str) -> None:
    """A preset sets the sizes; a size that is written wins over it."""
    found = Evaluation.model_validate({"preset": preset})
    assert {k: getattr(found, k) for k in PRESETS[preset]} == PRESETS[preset]
    found = Evaluation.model_validate({"preset": preset, "max_prompts": 7})
    assert (found.max_prompts, found.max_new_tokens) == (7, PRESETS[preset]["max_new_tokens"])


def test_defaults_are_valid() -> None:
    """pydantic does not check defaults: they stand within their own bounds."""
    for model in (Validation, Evaluation, Gate):
        model.model_validate(model.model_validate({}).model_dump())


@pytest.mark.parametrize("method", ["sft", "DPO", None, 3, ["dpo"]])
def test_other_methods(method: Any) -> None:
    with pytest.raises(UserError, match="is not available"):
        made(method=method)
    assert made(method="dpo").method == "dpo"


@pytest.mark.parametrize("report_to", ["all", ["all"], "comet_ml", ["tensorboard", "clearml"]])
def test_trackers_that_are_not_served(report_to: Any) -> None:
    with pytest.raises(UserError, match="is not served") as e:
        made(report_to=report_to)
    assert e.value.where == f"{PATH}: report_to"


@pytest.mark.parametrize(
    ("written", "became", "told"),
    [
        ("tensorboard", ["tensorboard"], False),
        (["tensorboard", "wandb"], ["tensorboard", "wandb"], False),
        ("none", ["none"], False),
        ([], ["none"], False),
        (None, ["none"], False),
        ("mlflow", ["none"], True),
        (["mlflow", "wandb"], ["wandb"], True),
    ],
)
def test_trackers_are_a_list(written: Any, became: list[str], told: bool) -> None:
    """MLflow is left out with a notice: preftune records there itself."""
    recipe = made(report_to=written)
    assert recipe.training["report_to"] == became
    assert any("mlflow" in n for n in recipe.notices) == told


def test_lora_keys_without_peft_are_told() -> None:
    assert any("no effect without use_peft" in n for n in made("lora_r: 8").notices)
    assert not any("use_peft" in n for n in made("lora_r: 8\nuse_peft: true").notices)


@pytest.mark.parametrize("value", [["a"], 3, {"a": 1}, True])
def test_output_dir_is_text(value: Any) -> None:
    with pytest.raises(UserError) as e:
        made(output_dir=value)
    assert e.value.where == f"{PATH}: output_dir"


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
translated = ["torch_dtype", "warmup_ratio", "dataset_mixer", "dataset_splits", "max_prompt_length", "hub_token"]


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from([*known(), *translated]), values, max_size=4))
@example({"report_to": [["tensorboard"]]})
@example({"report_to": [{"a": 1}]})
@example({"seed": 10**400})
@example({"dataset_mixer": {"a": 1.0}, "dataset_splits": [1]})
def test_any_value_gives_a_recipe_or_a_user_error(data: dict[str, Any]) -> None:
    """No key's value makes anything else happen, and a recipe that is taken can be written and read again."""
    try:
        recipe = resolve({"dataset_name": "x", **data}, PATH)
    except UserError as e:
        assert e.error and e.where
        return
    assert {**HOUSE_TRAINING, **recipe.training} == recipe.training


# --- resolved ---------------------------------------------------------------------------------------------


def test_resolved_gives_the_same_recipe_again(tmp_path: Path) -> None:
    """All sections, lists and overrides; without a notice, because nothing is left to translate."""
    recipe = load_recipe(
        write(tmp_path, HANDBOOK + "gate: {max_stop_loss: 0.2}\ntracking: {tags: {team: a}}\nchat_template: '{{x}}'\n"),
        {"evaluation.preset": "standard", "evaluation.max_pairs": 9, "validation.strict": True, "use_peft": True},
    )
    again = resolve(recipe.resolved(), recipe.path)
    assert again.model_copy(update={"notices": (), "tracking": recipe.tracking}) == recipe.model_copy(
        update={"notices": ()}
    )
    assert [n for n in again.notices if "no revision is pinned" not in n] == []
    assert (again.experiment, again.tracking.tags) == (recipe.experiment, recipe.tracking.tags)


def test_resolved_is_flat_and_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    resolved = load_recipe(write(tmp_path, DATA + "beta: 0.2")).resolved()
    assert resolved["beta"] == 0.2 and resolved["model_name_or_path"] == EMBEDDED_MODEL
    assert str(tmp_path) not in str(resolved)
    assert set(resolved) <= set(known())
