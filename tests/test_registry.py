"""Known datasets: names, refusals and redirects with their messages, notices, and the page that describes them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.adapters import SHAPES
from preftune.data.registry import DATA, all_known, apply, default_languages, known, table, why_not
from preftune.errors import UserError
from preftune.schema import DatasetEntry, Mixture, Validation
from preftune.strict_yaml import load_yaml

PAGE = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text()
ULTRA, HH, OASST = "HuggingFaceH4/ultrafeedback_binarized", "Anthropic/hh-rlhf", "OpenAssistant/oasst1"
ARENA, STACK = "lmsys/chatbot_arena_conversations", "lvwerra/stack-exchange-paired"
CODE = "m-a-p/CodeFeedback-Filtered-Instruction"
# the list that this registry was asked to hold, written down a second time
IDS = {
    ULTRA,
    "HuggingFaceH4/cai-conversation-harmless",
    HH,
    CODE,
    OASST,
    ARENA,
    "Intel/orca_dpo_pairs",
    "HuggingFaceH4/orca_dpo_pairs",
    STACK,
    "argilla/ultrafeedback-binarized-preferences-cleaned",
    "argilla/dpo-mix-7k",
    "mlabonne/orpo-dpo-mix-40k",
    "allenai/llama-3.1-tulu-3-8b-preference-mixture",
    "nvidia/HelpSteer3",
    "Skywork/Skywork-Reward-Preference-80K-v0.2",
    "trl-lib/ultrafeedback_binarized",
    "argilla/distilabel-intel-orca-dpo-pairs",
}


def used(name: str, strict: bool = False, local: bool | None = None, **keys: Any) -> tuple[str, str]:
    """The id that is read in the end, and all notices as one text."""
    entry, notices = apply(DatasetEntry(id=name, **keys), strict, local)
    return entry.id, "\n".join(notices)


def refused(name: str, strict: bool = False, local: bool | None = None, **keys: Any) -> UserError:
    with pytest.raises(UserError) as e:
        apply(DatasetEntry(id=name, **keys), strict, local)
    return e.value


# --- the data ---------------------------------------------------------------------------------------------


def test_every_dataset_is_there_once() -> None:
    ids = [d.id for d in all_known()]
    assert sorted(ids) == sorted(IDS)
    names = [n.casefold() for d in all_known() for n in (d.id, *d.aliases)]
    assert len(names) == len(set(names))


def test_entries_make_sense() -> None:
    for d in all_known():
        assert (d.dpo_splits == ()) == (d.refused is not None and d.refused.data_dir is None), d.id
        assert d.defects, d.id
        assert not any(why_not(d, split) for split in (*d.dpo_splits, *d.test_splits)), d.id
        if d.not_for_dpo:  # the advice of a refusal names these
            assert d.dpo_splits and d.test_splits, d.id


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        (ULTRA, "messages"),
        (HH, "transcript"),
        (OASST, "tree"),
        (ARENA, "arena"),
        ("Intel/orca_dpo_pairs", "strings"),
        ("HuggingFaceH4/orca_dpo_pairs", "messages"),
        (STACK, "stack-exchange"),
        ("nvidia/HelpSteer3", "helpsteer3"),
        ("argilla/distilabel-intel-orca-dpo-pairs", "distilabel"),
    ],
)
def test_shapes(name: str, adapter: str) -> None:
    found = known(name)
    assert found and found.adapter == adapter


def test_adapters_are_those_that_exist() -> None:
    """The other shapes are read by `to_pair` as they are."""
    named = {d.adapter for d in all_known()}
    assert named - {"messages", "strings", "transcript"} == set(SHAPES)


def test_parts_of_hh_rlhf_sum_to_the_whole() -> None:
    """160,800 and 8,552 rows are read from the card, the parts are reported: each checks the other."""
    found = known(HH)
    assert found
    numbers = re.findall(r"([\d,]+)/([\d,]+)", found.rows)
    assert len(numbers) == len(found.data_dirs) == 4
    assert [sum(int(n[i].replace(",", "")) for n in numbers) for i in (0, 1)] == [160_800, 8_552]


def test_table_is_json() -> None:
    rows = json.loads(json.dumps(table()))
    assert [r["id"] for r in rows] == [d.id for d in all_known()]
    ultra = next(r for r in rows if r["id"] == ULTRA)
    assert ultra["licence"] == "MIT" and ultra["dpo_splits"] == ["train_prefs"] and ultra["gated"] is False
    assert set(ultra["not_for_dpo"]) == {"train_sft", "test_sft", "*_gen"}
    stack = next(r for r in rows if r["id"] == STACK)
    assert stack["licence"] is None and stack["streaming_advised"] is True


def test_data_stand_beside_the_module() -> None:
    """A wheel takes what lies in the package's folder."""
    assert DATA.is_file() and DATA.parent.name == "data"


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (HH, HH),
        ("anthropic/HH-RLHF", HH),
        ("HuggingFaceH4/CodeFeedback-Filtered-Instruction", CODE),
        ("huggingfaceh4/chatbot_arena_conversations", ARENA),
        # local paths, by their last part
        ("data-in/hh-rlhf", HH),
        ("./data-in/HH-RLHF/", HH),
        ("hh-rlhf", HH),
        ("~/Anthropic/hh-rlhf", HH),
        ("/x/oasst1", OASST),
        # two owners, read the same way; the folder above decides where it can
        ("/x/ultrafeedback_binarized", ULTRA),
        ("/x/trl-lib/ultrafeedback_binarized", "trl-lib/ultrafeedback_binarized"),
        # two owners, read differently
        ("/x/orca_dpo_pairs", None),
        ("orca_dpo_pairs", None),
        ("/x/intel/orca_dpo_pairs", "Intel/orca_dpo_pairs"),
        ("/x/HuggingFaceH4/orca_dpo_pairs", "HuggingFaceH4/orca_dpo_pairs"),
        # not known
        ("/x/hh-rlhf.jsonl", None),
        ("/x/hh-rlhf/train.jsonl", None),
        ("/x/my-hh-rlhf", None),
        ("recipes/starter/pairs", None),
        ("", None),
        ("/", None),
        (".", None),
    ],
)
def test_known(name: str, expected: str | None) -> None:
    found = known(name)
    assert (found.id if found else None) == expected


def test_someone_elses_copy_on_the_hub_is_not_known() -> None:
    """`tasksource/hh-rlhf` is spelled like a folder; only who looks at the disk can tell."""
    assert known("tasksource/hh-rlhf") is known(HH)
    assert known("tasksource/hh-rlhf", folders=False) is None
    assert known("anthropic/HH-RLHF", folders=False) is known(HH)
    assert known("HuggingFaceH4/CodeFeedback-Filtered-Instruction", folders=False) is known(CODE)
    assert used("tasksource/CodeFeedback-Filtered-Instruction", local=False)[0].startswith("tasksource/")


@given(st.text(max_size=30))
def test_no_name_breaks_it(name: str) -> None:
    assert known(name) is None or name.casefold().rstrip("/.")


@given(st.text(max_size=20), st.sampled_from(["hh-rlhf", "OASST1", "HelpSteer3"]))
def test_folder_is_recognised_wherever_it_stands(above: str, name: str) -> None:
    found = known(f"{above}/{name}")
    assert found and found.id.casefold().endswith(f"/{name.casefold()}")
    assert known(f"{name}/{above}x") is None


@pytest.mark.parametrize(
    ("name", "languages"), [(OASST, ("en",)), ("data-in/oasst1", ("en",)), (ULTRA, None), ("data-in/mine.jsonl", None)]
)
def test_default_languages(name: str, languages: tuple[str, ...] | None) -> None:
    assert default_languages(name) == languages


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        (CODE, CODE),
        (CODE.lower(), CODE.lower()),
        (
            "HuggingFaceH4/CodeFeedback-Filtered-Instruction",
            f"HuggingFaceH4/CodeFeedback-Filtered-Instruction (on the hub: {CODE})",
        ),
        ("data-in/CodeFeedback-Filtered-Instruction", "data-in/CodeFeedback-Filtered-Instruction"),
    ],
)
def test_codefeedback_is_no_preference_data(name: str, where: str, strict: bool) -> None:
    e = refused(name, strict)
    assert "one answer each" in e.error and "not preferences" in e.error
    assert e.where == where
    assert "use it for SFT" in e.advice and "your own model" in e.advice and "rejected" in e.advice


@pytest.mark.parametrize("name", [HH, "data-in/hh-rlhf"])
@pytest.mark.parametrize("data_dir", ["red-team-attempts", "./red-team-attempts/"])
def test_red_team_attempts(name: str, data_dir: str) -> None:
    e = refused(name, data_dir=data_dir)
    assert "red-team-attempts holds single conversations" in e.error and "not valid JSON" in e.error
    assert e.where == name
    assert e.advice.startswith("use data_dir: harmless-base")


def test_missing_data_dir_comes_with_an_entry_to_paste() -> None:
    e = refused(STACK)
    assert "data_dir is missing" in e.error and "31.3 million" in e.error
    assert e.where == STACK
    for folder in ("data/rl", "data/reward", "data/finetune", "data/evaluation"):
        assert folder in e.advice
    pasted = load_yaml(e.advice.partition("for example ")[2], "advice")
    entry, _ = apply(DatasetEntry.model_validate(pasted), strict=True)
    assert (entry.id, entry.data_dir, entry.streaming, entry.max_rows) == (STACK, "data/rl", True, 50_000)
    assert refused(STACK, data_dir="").error == e.error


@pytest.mark.parametrize(
    ("name", "data_dir", "named"),
    [(STACK, "rl", "data/rl, data/reward, data/finetune, data/evaluation"), (HH, "harmles-base", "harmless-base")],
)
def test_unknown_data_dir(name: str, data_dir: str, named: str) -> None:
    e = refused(name, data_dir=data_dir)
    assert e.error == f"there is no data_dir {data_dir!r}" and e.where == name
    assert e.advice.startswith(f"use one of {named}")


def test_known_data_dirs_pass() -> None:
    for name in (HH, STACK):
        found = known(name)
        assert found
        for data_dir in (*found.data_dirs, *found.needs_data_dir):
            assert used(name, data_dir=data_dir)[0] == name
    assert used(HH, data_dir="harmless-base/")[0] == HH
    assert used(HH)[0] == HH  # all four parts


def test_a_local_copy_may_be_laid_out_otherwise() -> None:
    """Whether its data_dir is there is looked at when it is read."""
    assert used("data-in/stack-exchange-paired")[0] == "data-in/stack-exchange-paired"
    assert used("data-in/hh-rlhf", data_dir="mine")[0] == "data-in/hh-rlhf"
    assert used(STACK, local=True)[0] == STACK


@pytest.mark.parametrize(
    ("keys", "split", "instead"),
    [
        ({"split": "train_gen"}, "train_gen", "train_prefs"),
        ({"split": "train_prefs", "test_split": "test_gen"}, "test_gen", "test_prefs"),
    ],
)
@pytest.mark.parametrize("name", [ULTRA, "data-in/ultrafeedback_binarized"])
def test_gen_splits(name: str, keys: dict[str, str], split: str, instead: str) -> None:
    e = refused(name, **keys)
    assert e.error == f"split '{split}' is not for DPO: it holds prompts for generation, not preferences"
    assert e.where == name and e.advice == f"use {instead}"


def test_sft_splits_are_left_to_pick_split() -> None:
    """It reads train_prefs instead; the reason is told here, and it is not the same for both datasets."""
    entry = DatasetEntry(id=ULTRA, split="train_sft", test_split="test_sft")
    assert apply(entry, strict=True)[0] == entry
    ultra, cai = known(ULTRA), known("HuggingFaceH4/cai-conversation-harmless")
    assert ultra and cai
    assert why_not(ultra, "train_sft") == "it holds the rows of train_prefs, offered for SFT"
    assert why_not(cai, "train_sft") == "it is the other half of the data, offered for SFT"
    assert why_not(ultra, "train_prefs") is None


# --- redirects and notices --------------------------------------------------------------------------------


def test_alias_is_read_as_the_true_dataset() -> None:
    name, notices = used("HuggingFaceH4/chatbot_arena_conversations", revision="abc")
    assert name == ARENA
    assert notices.startswith(f"HuggingFaceH4/chatbot_arena_conversations is not on the hub: {ARENA} is read instead")


def test_another_spelling_is_no_alias() -> None:
    """The hub takes upper for lower case."""
    assert used("anthropic/HH-RLHF", strict=True, revision="abc") == ("anthropic/HH-RLHF", "")


def test_alias_is_refused_under_strict() -> None:
    e = refused("HuggingFaceH4/chatbot_arena_conversations", strict=True)
    assert e.error == "there is no such dataset on the hub"
    assert e.where == "HuggingFaceH4/chatbot_arena_conversations"
    assert e.advice == f"write id: {ARENA}"


def test_alias_that_is_a_folder_here_is_read() -> None:
    name = "HuggingFaceH4/chatbot_arena_conversations"
    read, notices = used(name, strict=True, local=True)
    assert read == name and notices == f"{name}: its answers are CC-BY-NC-4.0: not for commercial use"


def test_redirect_keeps_the_rest_of_the_entry() -> None:
    entry = DatasetEntry(id="HuggingFaceH4/chatbot_arena_conversations", weight=0.25, max_rows=7, revision="abc")
    assert apply(entry, False)[0] == DatasetEntry(id=ARENA, weight=0.25, max_rows=7, revision="abc")


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        (ARENA, {}, ["gated", "HF_TOKEN", f"https://huggingface.co/datasets/{ARENA}", "CC-BY-NC-4.0"]),
        ("Intel/orca_dpo_pairs", {}, ["length and style", "GSM8K"]),
        ("HuggingFaceH4/orca_dpo_pairs", {}, ["length and style", "GSM8K"]),
        ("allenai/llama-3.1-tulu-3-8b-preference-mixture", {}, ["non-commercial"]),
        ("mlabonne/orpo-dpo-mix-40k", {}, ["illegal questions"]),
        ("Skywork/Skywork-Reward-Preference-80K-v0.2", {}, ["states no licence"]),
        (STACK, {"data_dir": "data/rl"}, ["states no licence", "CC-BY-SA-4.0", "streaming: true", "max_rows: 50000"]),
    ],
)
def test_notices(name: str, keys: dict[str, Any], says: list[str]) -> None:
    _, notices = used(name, revision="abc", **keys)
    for text in says:
        assert text in notices
    assert all(line.startswith(f"{name}: ") for line in notices.splitlines())
    assert "revision" not in notices
    assert len(notices.splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "keys", "pinned"),
    [
        (ULTRA, {}, False),
        (ULTRA, {"revision": "main"}, False),
        (ULTRA, {"revision": "v1.0"}, True),
        ("data-in/ultrafeedback_binarized", {}, True),
        ("recipes/starter/pairs", {}, True),
        ("someone/pairs", {}, True),  # may be a folder: not told
        ("someone/pairs", {"local": False}, False),
        (ULTRA, {"local": True}, True),
    ],
)
def test_unpinned_revision(name: str, keys: dict[str, Any], pinned: bool) -> None:
    """A notice for what is surely on the hub; nothing else is worth one here."""
    _, notices = used(name, **keys)
    assert notices.startswith(f"{name}: no revision is pinned") != pinned
    assert ("write revision: with the commit" in notices) != pinned
    assert notices == "" or not pinned


def test_streaming_is_not_advised_to_who_streams() -> None:
    _, notices = used(STACK, data_dir="data/rl", streaming=True, max_rows=10)
    assert "streaming" not in notices and "states no licence" in notices


def test_gating_is_no_matter_of_a_local_copy() -> None:
    _, notices = used("data-in/chatbot_arena_conversations")
    assert notices == "data-in/chatbot_arena_conversations: its answers are CC-BY-NC-4.0: not for commercial use"


def test_unknown_data_pass_untouched() -> None:
    entry = DatasetEntry(id="data-in/mine.jsonl", split="x_gen", data_dir="anything")
    assert apply(entry, strict=True) == (entry, ())


@given(
    st.sampled_from(sorted(IDS)),
    st.sampled_from(["train", "train_prefs", "train_sft", "train_gen"]),
    st.sampled_from([None, "data/rl", "harmless-base", "red-team-attempts"]),
    st.booleans(),
)
def test_what_is_accepted_is_accepted_again(name: str, split: str, data_dir: str | None, strict: bool) -> None:
    entry = DatasetEntry(id=name, split=split, data_dir=data_dir)
    try:
        first = apply(entry, strict)
    except UserError as e:
        assert e.error and e.where and e.advice
        return
    assert apply(first[0], True) == first


# --- the page ---------------------------------------------------------------------------------------------

SNIPPETS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)


def test_page_has_a_row_for_every_dataset() -> None:
    """The table says what the registry says."""
    for d in all_known():
        splits = [", ".join(f"`{s}`" for s in names) or "–" for names in (d.dpo_splits, d.test_splits)]
        cells = (f"`{d.id}`", d.purpose, d.licence or "not stated", *splits, d.rule)
        assert f"| {' | '.join(cells)} |\n" in PAGE, d.id
        assert all(alias in PAGE for alias in d.aliases)


def test_page_has_a_snippet_for_every_dataset_of_dpo_guides() -> None:
    ids = {e["id"] for s in SNIPPETS for e in load_yaml(s, "page")["dataset_mixture"]["datasets"]}
    guide = [d.id for d in all_known()][:9]
    assert guide[-1] == STACK
    assert ids - set(guide) == {"data-in/code-pairs.jsonl"}
    assert set(guide) - ids == {CODE}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_are_accepted(snippet: str) -> None:
    """Each is a valid recipe's part, names splits that hold preferences, and passes under strict."""
    keys = load_yaml(snippet, "docs/datasets.md")
    assert set(keys) <= {"dataset_mixture", "validation"}
    mixture = Mixture.model_validate(keys["dataset_mixture"])
    Validation.model_validate(keys.get("validation", {}))
    held_out = mixture.test_split_size is not None
    for entry in mixture.datasets:
        assert apply(entry, strict=True)[0] == entry
        found = known(entry.id)
        if found:
            assert entry.split in found.dpo_splits
            assert entry.test_split is None or entry.test_split in found.test_splits
        held_out |= entry.test_split is not None
    assert held_out
