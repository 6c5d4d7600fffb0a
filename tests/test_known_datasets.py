"""Every dataset of docs/datasets.md in its true shape, defects included: the exact pairs and the exact counts.

The rows are our own short texts under the datasets' columns, in the files that the hub has. Beside each row stands
what must become of it: the reason why it is dropped, or its pair (prompt, chosen, rejected).
"""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from preftune.data.checks import check_source
from preftune.data.mixture import load_pairs
from preftune.data.pairs import Pair, text_of
from preftune.data.sources import find_source, pick_split, read_rows
from preftune.errors import UserError
from preftune.schema import DatasetEntry, Validation
from preftune.workspace import Workspace

Fate = str | tuple[str, str, str]
PARQUET = "data/train-00000-of-00001.parquet"


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def judge(
    folder: Path, name: str, file: str, expected: list[tuple[Any, Fate]], entry: dict[str, Any], **validation: Any
) -> tuple[dict[str, Any], list[Pair]]:
    """Checks a dataset, and that of each row became what is expected. Returns the report and the pairs."""
    write(folder / name / file, [row for row, _ in expected])
    source = find_source(DatasetEntry(id=name, **entry), Workspace(folder, folder / ".preftune"))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    report = check_source(source, Validation(**{"max_dropped": 1, **validation}), out, 42)
    pairs = load_pairs(out / "train.jsonl")
    fates: dict[str, Fate] = {
        p.row_id: (text_of(p.prompt), p.chosen[-1]["content"], p.rejected[-1]["content"]) for p in pairs
    }
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().split("\n")[:-1]]
    dropped = {line["row_id"]: line["reason"] for line in lines if line["split"] == report["train"]["split"]}
    assert not fates.keys() & dropped.keys()
    ids = [row_id for row_id, _ in read_rows(source, pick_split(source, source.entry.split, False)[0])]
    assert len(set(ids)) == len(ids) == len(expected) == report["train"]["read"]
    assert [{**fates, **dropped}.get(i) for i in ids] == [fate for _, fate in expected]
    assert Counter(dropped.values()) == report["train"]["dropped"]
    assert report["train"]["read"] == report["train"]["kept"] + sum(report["train"]["dropped"].values())
    return report, pairs


def counts(report: dict[str, Any]) -> tuple[int, dict[str, int], dict[str, int]]:
    return report["train"]["kept"], report["train"]["dropped"], report["train"]["warned"]


# --- the guide's datasets ---------------------------------------------------------------------------------


def test_ultrafeedback_binarized(tmp_path: Path) -> None:
    """10 rows: 4 kept (one with another text in `prompt`), 6 dropped."""

    def row(prompt: str, chosen: str, rejected: str, scores: tuple[Any, Any], asked: str | None = None) -> Any:
        lists = [user(prompt), bot(chosen)], [user(prompt), bot(rejected)]
        return {
            "prompt": prompt if asked is None else asked,
            "prompt_id": "0f",
            "chosen": lists[0],
            "rejected": lists[1],
            "messages": lists[0],
            "score_chosen": scores[0],
            "score_rejected": scores[1],
        }

    rows: list[tuple[Any, Fate]] = [
        (row("Q1", "A1", "B1", (8.5, 6.0)), ("user: Q1", "A1", "B1")),
        (row("Q2", "A2", "B2", (7.0, 7.0)), "tie"),
        (row("Q3", "a time-out", "a time-out", (7.0, 7.0)), "tie"),  # one reason for each row: the first
        (row("Q4", "a time-out", "a time-out ", (9.0, 1.0)), "identical"),
        (row("Q5", "A5", "", (9.0, 1.0)), "empty_answer"),
        (row("Q1", "A1", "B1", (8.5, 6.0)), "duplicate"),
        (row("Q1", "B1", "A1", (9.0, 6.0)), "contradiction"),
        (row("Q6\n", "A6", "B6", (None, None), asked="Q6"), ("user: Q6\n", "A6", "B6")),
        (row("Q7", "A7", "B7", (10.0, 1.0), asked="Q8"), ("user: Q7", "A7", "B7")),  # warned: prompt_mismatch
        (row("Q9", "The sum:\n\n4", "The sum:\n\n5", (5.0, 4.5)), ("user: Q9", "The sum:\n\n4", "The sum:\n\n5")),
    ]
    name = "HuggingFaceH4/ultrafeedback_binarized"
    held_out = [row("T1", "A", "B", (9.0, 1.0)), row("T2", "A", "B", (5.0, 5.0))]
    write(tmp_path / name / "data/test_prefs-00000-of-00001.parquet", held_out)
    write(tmp_path / name / "data/train_sft-00000-of-00001.parquet", held_out)
    file = "data/train_prefs-00000-of-00001.parquet"
    report, pairs = judge(tmp_path, name, file, rows, {"split": "train_sft", "test_split": "test"})
    dropped = {"contradiction": 1, "duplicate": 1, "empty_answer": 1, "identical": 1, "tie": 2}
    assert counts(report) == (4, dropped, {"prompt_mismatch": 1})
    assert [(p.score_chosen, p.score_rejected) for p in pairs] == [(8.5, 6.0), (None, None), (10.0, 1.0), (5.0, 4.5)]
    assert (report["train"]["split"], report["test"]["split"]) == ("train_prefs", "test_prefs")
    assert (report["test"]["kept"], report["test"]["dropped"]) == (1, {"tie": 1})


def test_cai_conversation_harmless(tmp_path: Path) -> None:
    """8 rows: 3 kept. The steps' own columns (init_prompt, critic_response, …) are no prompt and no answer."""

    def row(first: str, revision: str, prompt: str = "Q", **more: Any) -> Any:
        return {
            "index": 0,
            "prompt": prompt,
            "init_prompt": prompt,
            "init_response": first,
            "critic_prompt": "Say what is harmful in it.",
            "critic_response": "It is rude.",
            "revision_prompt": "Write it again without that.",
            "revision_response": revision,
            "messages": [user(prompt), bot(revision)],
            "chosen": [user(prompt), bot(revision)],
            "rejected": [user(prompt), bot(first)],
            **more,
        }

    rows: list[tuple[Any, Fate]] = [
        (row("rude", "polite"), ("user: Q", "polite", "rude")),
        (row("same", "same"), "identical"),
        (row("same", " same\n"), "identical"),
        (row("rude", ""), "empty_answer"),
        (row("", "polite"), "empty_answer"),
        (row("rude [/INST]", "polite"), "control_tokens"),
        (row("rude", "polite", prompt="Q2"), ("user: Q2", "polite", "rude")),
        (
            row("x", "y", chosen=[user("1"), bot("2"), user("3"), bot("y")])
            | {"rejected": [user("1"), bot("2"), user("3"), bot("x")], "prompt": "1"},
            ("user: 1\nassistant: 2\nuser: 3", "y", "x"),
        ),
    ]
    file = "data/train_prefs-00000-of-00001.parquet"
    report, _ = judge(tmp_path, "HuggingFaceH4/cai-conversation-harmless", file, rows, {})
    assert counts(report) == (3, {"control_tokens": 1, "empty_answer": 2, "identical": 2}, {})


def hh(*turns: str) -> str:
    """A transcript that begins with the human."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


def test_hh_rlhf(tmp_path: Path) -> None:
    """16 rows: 6 kept. Nothing is cut inside an answer, however much the two have in common."""
    before = ("Hi", "Hello.", "Why?")
    after = "user: Hi\nassistant: Hello.\nuser: Why?"
    same = "I'm sorry, I can't"
    rows: list[tuple[tuple[str, str], Fate]] = [
        ((hh("Hi", "Yes."), hh("Hi", "No.")), ("user: Hi", "Yes.", "No.")),
        ((hh(*before, "So."), hh(*before, "Well.")), (after, "So.", "Well.")),
        # both answers begin with the same words; one is the beginning of the other
        ((hh("Hi", same + " help."), hh("Hi", same + " say.")), ("user: Hi", same + " help.", same + " say.")),
        ((hh(*before, "No."), hh(*before, "No. Go.")), (after, "No.", "No. Go.")),
        # an answer of several paragraphs, one that quotes a transcript
        ((hh("Hi", "One.\n\nTwo."), hh("Hi", "One.\n\nThree.")), ("user: Hi", "One.\n\nTwo.", "One.\n\nThree.")),
        (
            (hh("Hi", "Human: x"), hh("Hi", "Human: y\nAssistant: z")),
            ("user: Hi", "Human: x", "Human: y\nAssistant: z"),
        ),
        ((hh("Hi", ""), hh("Hi", "No.")), "empty_answer"),
        ((hh(*before, " "), hh(*before, "No.")), "empty_answer"),
        (("\n\nHuman: a" + hh("b", "1"), "\n\nHuman: a" + hh("b", "2")), "not_alternating"),
        ((hh("a", "1") + "\n\nAssistant: 2", hh("a", "1") + "\n\nAssistant: 3"), "not_alternating"),
        ((hh(*before, "So."), hh("Hi", "No.")), "unequal_turns"),
        ((hh("Hi", "No."), hh("Hi", "Yes.", "Sure?", "Yes.")), "unequal_turns"),
        ((hh(*before, "So."), hh("Hi", "Hey.", "Why?", "Well.")), "prompts_differ"),
        ((hh("Hi", "No."), hh("Hi!", "Yes.")), "prompts_differ"),
        ((hh("Hi", "No.", "Bye"), hh("Hi", "Yes.", "Bye")), "last_turn_not_assistant"),
        ((hh(*before, "So."), hh(*before, "So.")), "identical"),
    ]
    expected = [({"chosen": chosen, "rejected": rejected}, fate) for (chosen, rejected), fate in rows]
    file = "harmless-base/train.jsonl.gz"
    report, _ = judge(tmp_path, "Anthropic/hh-rlhf", file, expected, {"data_dir": "harmless-base"})
    dropped = {
        "empty_answer": 2,
        "identical": 1,
        "last_turn_not_assistant": 1,
        "not_alternating": 2,
        "prompts_differ": 2,
        "unequal_turns": 2,
    }
    assert counts(report) == (6, dropped, {})


@pytest.mark.parametrize("common", range(1, 20))
def test_hh_rlhf_answers_stay_whole(common: int, tmp_path: Path) -> None:
    """Two answers that share their first words, or first letters: the prompt ends where the answer begins."""
    start = "I am not sure, but "[:common]
    row = {"chosen": hh("Hi", "Hey.", "Why?", start + "A."), "rejected": hh("Hi", "Hey.", "Why?", start + "B.")}
    fate = ("user: Hi\nassistant: Hey.\nuser: Why?", start + "A.", start + "B.")
    judge(tmp_path, "Anthropic/hh-rlhf", "train.jsonl.gz", [(row, fate)], {})


def test_codefeedback(tmp_path: Path) -> None:
    """Nothing in it is rejected: refused, with the way on."""
    rows = [{"query": f"Q{i}", "answer": f"A{i}", "resource": "evol", "lang": "python"} for i in range(6)]
    with pytest.raises(UserError, match="no preference pairs") as e:
        expected: list[tuple[Any, Fate]] = [(row, "missing_answer") for row in rows]
        judge(tmp_path, "m-a-p/CodeFeedback-Filtered-Instruction", "data.jsonl", expected, {})
    assert "columns found: query, answer, resource, lang" in e.value.error
    assert "this is SFT data" in f"{e.value.error} {e.value.advice}" and e.value.exit_code == 2


def message(name: str, parent: str | None, text: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    """A message of tree t1; a name that begins with q is the prompter's."""
    return {
        "message_id": name,
        "parent_id": parent,
        "user_id": "u1",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": "prompter" if name.startswith("q") else "assistant",
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.01, "severe_toxicity": 0.0, "insult": 0.0},
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [2]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
        **more,
    }


TREE: list[tuple[Any, Fate]] = [
    (message("q1", None, "Q1"), "not_an_answer"),
    (message("a", "q1", "A", 0), "best_answer"),
    (message("b", "q1", "B", 1), ("user: Q1", "A", "B")),
    (message("c", "q1", "C", 2, deleted=True), "deleted"),
    (message("d", "q1", "D", 3), ("user: Q1", "B", "D")),  # c is gone, so b is next
    (message("e", "q1", "E"), "no_rank"),
    (message("f", "q1", "F", 4, review_result=False), "deleted"),
    (message("q2", "b", "Q2"), "not_an_answer"),
    (message("g", "q2", "G", 1), ("user: Q1\nassistant: B\nuser: Q2", "H", "G")),
    (message("h", "q2", "H", 0), "best_answer"),
    (message("q3", "c", "Q3"), "not_an_answer"),
    (message("i", "q3", "I", 0), "deleted"),  # below a deleted answer
    (message("j", "q3", "J", 1), "deleted"),
    (message("q4", None, "F1", lang="de", message_tree_id="t2"), "not_an_answer"),
    (message("k", "q4", "K", 0, lang="de", message_tree_id="t2"), "best_answer"),
    (message("l", "q4", "L", 1, lang="de", message_tree_id="t2"), "other_language"),
    (message("q5", None, "Q5", message_tree_id="t3"), "not_an_answer"),
    (message("m", "q5", "M", 0, message_tree_id="t3"), "no_rank"),  # no sibling
    (message("q6", None, "Q6", message_tree_id="t4"), "not_an_answer"),
    (message("n", "q6", "N", 0, message_tree_id="t4"), "best_answer"),
    (message("o", "q6", "O", 0, message_tree_id="t4"), "tie"),
    (message("p", "gone", "P", 0, message_tree_id="t5"), "empty_prompt"),
]


@pytest.mark.parametrize("file", [PARQUET, "train.jsonl.gz"])
def test_oasst1(file: str, tmp_path: Path) -> None:
    """22 messages: 6 prompter's, 4 best answers, 4 deleted, 2 without a rank to compare, 3 pairs, 3 others."""
    report, pairs = judge(tmp_path, "OpenAssistant/oasst1", file, TREE, {}, max_dropped=0.05)
    dropped = {
        "best_answer": 4,
        "deleted": 4,
        "empty_prompt": 1,
        "no_rank": 2,
        "not_an_answer": 6,
        "other_language": 1,
        "tie": 1,
    }
    assert counts(report) == (3, dropped, {})
    assert {p.group_id for p in pairs} == {"OpenAssistant/oasst1:t1"}


def test_oasst1_in_german(tmp_path: Path) -> None:
    """The recipe's languages replace the registry's."""
    german = {"other_language": ("user: F1", "K", "L")}
    rows: list[tuple[Any, Fate]] = [
        (row, german.get(fate, fate) if isinstance(fate, str) else "other_language") for row, fate in TREE
    ]
    rows[20] = (rows[20][0], "other_language")  # asked first: is it a language that is wanted
    report, pairs = judge(tmp_path, "OpenAssistant/oasst1", PARQUET, rows, {}, languages=("DE",))
    assert report["train"]["kept"] == 1 and report["train"]["dropped"]["other_language"] == 4
    assert [p.group_id for p in pairs] == ["OpenAssistant/oasst1:t2"]


def test_chatbot_arena_conversations(tmp_path: Path) -> None:
    """11 rows: 5 kept, of which 2 toxic."""

    def row(
        winner: str, a: Any, b: Any, language: str = "English", turn: int = 1, toxic: tuple[bool, bool] = (False, False)
    ) -> Any:
        return {
            "question_id": "58210e39b3fd4441a2bd4a518bb44c2d",
            "model_a": "chatglm-6b",
            "model_b": "koala-13b",
            "winner": winner,
            "judge": "arena_user_973",
            "conversation_a": a,
            "conversation_b": b,
            "turn": turn,
            "anony": True,
            "language": language,
            "tstamp": 1682351591.1322,
            "openai_moderation": {
                "categories": {"harassment": toxic[0], "hate/threatening": False},
                "category_scores": {"harassment": 0.1, "hate/threatening": 0.0},
                "flagged": toxic[0],
            },
            "toxic_chat_tag": {
                "roberta-large": {"flagged": False, "probability": 0.02},
                "t5-large": {"flagged": toxic[1], "score": 0.02},
            },
        }

    def talk(answer: str, question: str = "Q") -> Any:
        return [user(question), bot(answer)]

    longer = [user("Q"), bot("A"), user("Q2"), bot("A2")], [user("Q"), bot("B"), user("Q2"), bot("B2")]
    rows: list[tuple[Any, Fate]] = [
        (row("model_a", talk("A1"), talk("B1")), ("user: Q", "A1", "B1")),
        (row("model_b", talk("A2"), talk("B2")), ("user: Q", "B2", "A2")),
        (row("tie", talk("A3"), talk("B3")), "tie"),
        (row("tie (bothbad)", talk("A4"), talk("B4")), "tie"),
        (row("model_a", *longer, turn=2), "later_turn"),
        (row("tie", *longer, turn=2), "later_turn"),
        (row("model_a", talk("A5"), talk("B5"), "German"), "other_language"),
        (row("model_b", talk("A6"), talk("B6"), toxic=(True, False)), ("user: Q", "B6", "A6")),
        (row("model_b", talk("A7"), talk("B7"), toxic=(False, True)), ("user: Q", "B7", "A7")),
        (row("model_a", talk(""), talk("B8")), "empty_answer"),
        (row("model_a", talk("A9", "Q9"), talk("B9", "Q9")), ("user: Q9", "A9", "B9")),
    ]
    name = "lmsys/chatbot_arena_conversations"
    report, pairs = judge(tmp_path, name, PARQUET, rows, {}, languages=("en",))
    dropped = {"empty_answer": 1, "later_turn": 2, "other_language": 1, "tie": 2}
    assert counts(report) == (5, dropped, {"toxic": 2})
    assert len({p.group_id for p in pairs}) == 2  # Q and Q9
    # all languages, and what is toxic dropped
    rows[6] = (rows[6][0], ("user: Q", "A5", "B5"))
    rows[7:9] = [(rows[7][0], "toxic"), (rows[8][0], "toxic")]
    report, _ = judge(tmp_path, name, PARQUET, rows, {}, severity={"toxic": "drop"})
    assert counts(report) == (4, {"empty_answer": 1, "later_turn": 2, "tie": 2, "toxic": 2}, {})


def test_intel_orca(tmp_path: Path) -> None:
    """7 rows: 4 kept; an empty system text is no turn."""

    def row(said: Any, question: str, chosen: Any, rejected: Any) -> Any:
        return {"system": said, "question": question, "chosen": chosen, "rejected": rejected}

    rows: list[tuple[Any, Fate]] = [
        (row("Be brief.", "Q1", "A1", "B1"), ("system: Be brief.\nuser: Q1", "A1", "B1")),
        (row("", "Q2", "A2", "B2"), ("user: Q2", "A2", "B2")),
        (row(None, "Q3", "A3", " B3\n"), ("user: Q3", "A3", " B3\n")),
        (row("", "Q4", "same", "same"), "identical"),
        (row("", "Q5", "A5", ""), "empty_answer"),
        (row("", "", "A6", "B6"), "empty_prompt"),
        (row("", "Say: Human: 1", "Human: 2", "Human: 3"), ("user: Say: Human: 1", "Human: 2", "Human: 3")),
    ]
    report, _ = judge(tmp_path, "Intel/orca_dpo_pairs", "orca_rlhf.jsonl", rows, {})
    assert counts(report) == (4, {"empty_answer": 1, "empty_prompt": 1, "identical": 1}, {})


def test_h4_orca(tmp_path: Path) -> None:
    """6 rows: 4 kept. The column `prompt` lacks the system turn, which stands in the lists."""

    def row(said: str, question: str, chosen: str, rejected: str) -> Any:
        start = [system(said), user(question)]
        lists = [*start, bot(chosen)], [*start, bot(rejected)]
        return {"prompt": question, "prompt_id": "0f", "chosen": lists[0], "rejected": lists[1], "messages": lists[0]}

    rows: list[tuple[Any, Fate]] = [
        (row("Be brief.", "Q1", "A1", "B1"), ("system: Be brief.\nuser: Q1", "A1", "B1")),
        (row("", "Q2", "A2", "B2"), ("user: Q2", "A2", "B2")),
        (row("Be long.", "Q1", "A1", "B1"), ("system: Be long.\nuser: Q1", "A1", "B1")),  # another prompt
        (row("", "Q4", "same", "same"), "identical"),
        (row("", "Q5", "A5", " "), "empty_answer"),
        (row("Think.", "Q6", "Yes, 4.", "Yes, 5."), ("system: Think.\nuser: Q6", "Yes, 4.", "Yes, 5.")),
    ]
    file = "data/train_prefs-00000-of-00001.parquet"
    report, _ = judge(tmp_path, "HuggingFaceH4/orca_dpo_pairs", file, rows, {})
    assert counts(report) == (4, {"empty_answer": 1, "identical": 1}, {})


def stack_row(qid: int, question: Any, better: Any, worse: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "question": question,
        "date": "2011/01/09",
        "metadata": ["https://stackoverflow.com/questions/1", "https://stackoverflow.com"],
        "response_j": better,
        "response_k": worse,
    }


def test_stack_exchange_paired(tmp_path: Path) -> None:
    """8 rows: 5 kept, of 3 questions; all pairs of one question are one group."""
    rows: list[tuple[Any, Fate]] = [
        (stack_row(1, "Q1", "A", "B"), ("user: Q1", "A", "B")),
        (stack_row(1, "Q1", "A", "C"), ("user: Q1", "A", "C")),
        (stack_row(1, "Q1", "B", "C"), ("user: Q1", "B", "C")),
        (stack_row(1, "Q1", "B", "A"), "contradiction"),
        (stack_row(2, "Q2", "A", "A"), "identical"),
        (stack_row(3, "Q3", "A", None), "missing_answer"),
        (
            stack_row(4, "What is `[x]`?", "Human: no\n\nAssistant: yes", "B"),
            ("user: What is `[x]`?", "Human: no\n\nAssistant: yes", "B"),
        ),
        (stack_row(5, "Q5", "A", "B"), ("user: Q5", "A", "B")),
    ]
    file, entry = "data/rl/train-00000-of-00020.parquet", {"data_dir": "data/rl"}
    report, pairs = judge(tmp_path, "lvwerra/stack-exchange-paired", file, rows, entry)
    assert counts(report) == (5, {"contradiction": 1, "identical": 1, "missing_answer": 1}, {})
    assert [p.group_id.rpartition(":")[2] for p in pairs] == ["1", "1", "1", "4", "5"]


def test_stack_exchange_paired_as_a_stream(tmp_path: Path) -> None:
    """It stops when enough are kept, and every row that was read is counted."""
    name = "lvwerra/stack-exchange-paired"
    for shard in range(3):
        rows = [stack_row(i, f"Q{shard}-{i}", "A", "B" if i % 5 else "A") for i in range(100)]
        write(tmp_path / name / f"data/rl/train-0000{shard}-of-00003.parquet", rows)
    entry = DatasetEntry(id=name, data_dir="data/rl", streaming=True, max_rows=20)
    source = find_source(entry, Workspace(tmp_path, tmp_path / ".preftune"))
    report = check_source(source, Validation(), tmp_path, 1)["train"]
    assert report["kept"] == report["drawn"] == len(load_pairs(tmp_path / "train.jsonl")) == 20
    assert report["read"] == 20 + report["dropped"].get("identical", 0) < 300


# --- others that people bring -----------------------------------------------------------------------------


def lists(*turns: Any, chosen: str = "A", rejected: str = "B") -> dict[str, Any]:
    """chosen and rejected with the whole conversation."""
    return {"chosen": [*turns, bot(chosen)], "rejected": [*turns, bot(rejected)]}


def test_argilla_cleaned(tmp_path: Path) -> None:
    """6 rows: 3 kept; ratings under `chosen-rating` and `rejected-rating`."""

    def row(prompt: str, ratings: tuple[Any, Any], **answers: str) -> Any:
        return {
            "source": "evol_instruct",
            "prompt": prompt,
            **lists(user(prompt), **answers),
            "chosen-rating": ratings[0],
            "chosen-model": "gpt-4",
            "rejected-rating": ratings[1],
            "rejected-model": "llama-2-7b-chat",
        }

    rows: list[tuple[Any, Fate]] = [
        (row("Q1", (5.0, 3.75)), ("user: Q1", "A", "B")),
        (row("Q2", (4.0, 4.0)), "tie"),
        (row("Q3", (4.5, 4.25), rejected="A"), "identical"),
        (row("Q4", (5.0, 1.0), chosen=""), "empty_answer"),
        (row("Q5", (None, None)), ("user: Q5", "A", "B")),
        (row("Q6", (0.0, 1.0)), ("user: Q6", "A", "B")),
    ]
    report, pairs = judge(tmp_path, "argilla/ultrafeedback-binarized-preferences-cleaned", PARQUET, rows, {})
    assert counts(report) == (3, {"empty_answer": 1, "identical": 1, "tie": 1}, {"score_inverted": 1})
    assert [(p.score_chosen, p.score_rejected) for p in pairs] == [(5.0, 3.75), (None, None), (0.0, 1.0)]


def test_dpo_mix_7k(tmp_path: Path) -> None:
    """6 rows: 3 kept; conversations of several turns, ratings under `chosen_rating`."""

    def row(ratings: tuple[float, float], *turns: Any, **answers: str) -> Any:
        return {
            "dataset": "argilla/distilabel-capybara-dpo-9k-binarized",
            **lists(*turns, **answers),
            "chosen_rating": ratings[0],
            "rejected_rating": ratings[1],
        }

    three = user("1"), bot("2"), user("3")
    rows: list[tuple[Any, Fate]] = [
        (row((5.0, 2.0), *three), ("user: 1\nassistant: 2\nuser: 3", "A", "B")),
        (row((5.0, 5.0), *three, chosen="C"), "tie"),
        (row((5.0, 4.0), system("S"), user("Q")), ("system: S\nuser: Q", "A", "B")),
        (row((5.0, 4.0), user("Q"), bot("x")), "not_alternating"),
        (row((5.0, 4.0), user("Q"), rejected=""), "empty_answer"),
        (row((3.0, 4.0), user("Q")), ("user: Q", "A", "B")),
    ]
    report, _ = judge(tmp_path, "argilla/dpo-mix-7k", PARQUET, rows, {})
    assert counts(report) == (3, {"empty_answer": 1, "not_alternating": 1, "tie": 1}, {"score_inverted": 1})


def test_orpo_dpo_mix_40k(tmp_path: Path) -> None:
    """6 rows: 4 kept; `question` and `prompt` repeat a question."""

    def row(source: str, prompt: str, *turns: Any, **answers: str) -> Any:
        return {"source": source, **lists(*turns, **answers), "prompt": prompt, "question": prompt}

    rows: list[tuple[Any, Fate]] = [
        (row("Airoboros", "Q1", user("Q1")), ("user: Q1", "A", "B")),
        (row("argilla/Capybara", "Q2", user("Q2"), bot("x"), user("y")), ("user: Q2\nassistant: x\nuser: y", "A", "B")),
        (row("orca_dpo_pairs", "Q3", system("S"), user("Q3")), ("system: S\nuser: Q3", "A", "B")),
        (row("toxic-dpo-v0.2", "Q4", user("Q4"), chosen="A <|im_end|>"), "control_tokens"),
        (row("truthy_dpo", "Q5", user("Q5"), rejected="A"), "identical"),
        (row("prm_dpo_pairs", "Q6", user("Another")), ("user: Another", "A", "B")),  # warned
    ]
    report, _ = judge(tmp_path, "mlabonne/orpo-dpo-mix-40k", PARQUET, rows, {})
    assert counts(report) == (4, {"control_tokens": 1, "identical": 1}, {"prompt_mismatch": 1})


def test_tulu_3(tmp_path: Path) -> None:
    """6 rows: 3 kept."""

    def row(number: int, *turns: Any, **answers: str) -> Any:
        prompt = turns[-1]["content"]
        return {"id": f"x_{number}", "prompt": prompt, **lists(*turns, **answers), "source": "ai2-adapt-dev/x"}

    rows: list[tuple[Any, Fate]] = [
        (row(1, user("Q1")), ("user: Q1", "A", "B")),
        (row(2, user("Q2"), bot("x"), user("y")), ("user: Q2\nassistant: x\nuser: y", "A", "B")),
        (row(1, user("Q1")), "duplicate"),
        (row(4, user("")), "empty_prompt"),
        (row(5, user("Q5"), chosen="\n"), "empty_answer"),
        (row(6, user("Q1"), chosen="A", rejected="C"), ("user: Q1", "A", "C")),
    ]
    name = "allenai/llama-3.1-tulu-3-8b-preference-mixture"
    report, pairs = judge(tmp_path, name, PARQUET, rows, {})
    assert counts(report) == (3, {"duplicate": 1, "empty_answer": 1, "empty_prompt": 1}, {})
    assert pairs[0].group_id == pairs[2].group_id != pairs[1].group_id


def test_helpsteer3(tmp_path: Path) -> None:
    """9 rows: 5 kept; below 0 response1 is better, above 0 response2, 0 is a tie."""

    def row(preference: int | None, language: str = "english", context: Any = None, **responses: str) -> Any:
        return {
            "domain": "general",
            "language": language,
            "context": context or [user("Q")],
            "response1": responses.get("response1", f"one {preference}"),
            "response2": "two",
            "overall_preference": preference,
            "individual_preference": [{"score": preference, "reasoning": "…", "feedback1": "…", "feedback2": "…"}],
        }

    talk = [user("1"), bot("2"), user("3")]
    rows: list[tuple[Any, Fate]] = [
        (row(-3), ("user: Q", "one -3", "two")),
        (row(-1), ("user: Q", "one -1", "two")),
        (row(0), "tie"),
        (row(1), ("user: Q", "two", "one 1")),
        (row(3, context=talk), ("user: 1\nassistant: 2\nuser: 3", "two", "one 3")),
        (row(None), "missing_answer"),
        (row(2, response1="two"), "identical"),
        (row(-2, response1=" "), "empty_answer"),
        (row(-2, "Python"), ("user: Q", "one -2", "two")),
    ]
    name, file, entry = "nvidia/HelpSteer3", "preference/train.jsonl.gz", {"data_dir": "preference"}
    report, _ = judge(tmp_path, name, file, rows, entry)
    dropped = {"empty_answer": 1, "identical": 1, "missing_answer": 1, "tie": 1}
    assert counts(report) == (5, dropped, {})
    rows[8] = (rows[8][0], "other_language")
    report, _ = judge(tmp_path, name, file, rows, entry, languages=("english",))
    assert counts(report) == (4, {**dropped, "other_language": 1}, {})


def test_skywork_80k(tmp_path: Path) -> None:
    """6 rows: 3 kept; lists only, no prompt."""
    rows: list[tuple[Any, Fate]] = [
        ({**lists(user("Q1")), "source": "magpie_ultra"}, ("user: Q1", "A", "B")),
        (
            {**lists(user("Q2"), bot("x"), user("y")), "source": "wildguard"},
            ("user: Q2\nassistant: x\nuser: y", "A", "B"),
        ),
        ({**lists(user("Q3"), rejected="A"), "source": "wildguard"}, "identical"),
        ({"chosen": [user("Q4"), bot("A")], "rejected": [user("Q4!"), bot("B")], "source": "x"}, "prompts_differ"),
        ({"chosen": [user("Q5"), bot("A")], "rejected": [user("Q5")], "source": "x"}, "last_turn_not_assistant"),
        ({**lists(user("Q6"), chosen="No.", rejected="No. Why?"), "source": "x"}, ("user: Q6", "No.", "No. Why?")),
    ]
    report, _ = judge(tmp_path, "Skywork/Skywork-Reward-Preference-80K-v0.2", PARQUET, rows, {})
    assert counts(report) == (3, {"identical": 1, "last_turn_not_assistant": 1, "prompts_differ": 1}, {})


def test_trl_ultrafeedback(tmp_path: Path) -> None:
    """6 rows: 2 kept; lists and scores, no prompt."""

    def row(scores: tuple[Any, Any], *turns: Any, **answers: str) -> Any:
        return {**lists(*turns, **answers), "score_chosen": scores[0], "score_rejected": scores[1]}

    rows: list[tuple[Any, Fate]] = [
        (row((8.0, 5.0), user("Q1")), ("user: Q1", "A", "B")),
        (row((6.5, 6.5), user("Q2")), "tie"),
        (row((8.0, 5.0), user("Q3"), rejected="A"), "identical"),
        (row((8.0, 5.0), user("Q4"), rejected=""), "empty_answer"),
        (row((8.0, 5.0), user("Q1")), "duplicate"),
        (row((None, 5.0), user("Q6")), ("user: Q6", "A", "B")),
    ]
    report, _ = judge(tmp_path, "trl-lib/ultrafeedback_binarized", PARQUET, rows, {})
    assert counts(report) == (2, {"duplicate": 1, "empty_answer": 1, "identical": 1, "tie": 1}, {})


def test_distilabel_orca(tmp_path: Path) -> None:
    """8 rows: 5 kept, of which 1 is marked as GSM8K's; pairs marked as swapped are swapped already."""

    def row(
        number: int, status: str, said: str = "", gsm8k: bool = False, rating: Any = (9.0, 4.0), **answers: str
    ) -> Any:
        chosen, rejected = answers.get("chosen", f"A{number}"), f"B{number}"
        return {
            "system": said,
            "input": f"Q{number}",
            "chosen": chosen,
            "rejected": rejected,
            "generations": [chosen, rejected],
            "order": ["chosen", "rejected"],
            "labelling_model": "gpt-4-1106-preview",
            "labelling_prompt": [system("Judge."), user("[Assistant A] … [Assistant B] …")],
            "raw_labelling_response": "9 4",
            "rating": None if rating is None else list(rating),
            "rationale": "The first one is right.",
            "status": status,
            "original_chosen": rejected if status == "swapped" else chosen,
            "original_rejected": chosen if status == "swapped" else rejected,
            "chosen_score": None if rating is None else max(rating),
            "in_gsm8k_train": gsm8k,
        }

    rows: list[tuple[Any, Fate]] = [
        (row(1, "unchanged"), ("user: Q1", "A1", "B1")),
        (row(2, "swapped"), ("user: Q2", "A2", "B2")),
        (row(3, "tie", rating=(8.0, 8.0)), "tie"),
        (row(4, "tie", rating=None), "tie"),
        (row(5, "unchanged", said="S"), ("system: S\nuser: Q5", "A5", "B5")),
        (row(6, "unchanged", gsm8k=True), ("user: Q6", "A6", "B6")),
        (row(7, "unchanged", chosen=""), "empty_answer"),
        (row(8, "unchanged", chosen="B"), ("user: Q8", "B", "B8")),
    ]
    name = "argilla/distilabel-intel-orca-dpo-pairs"
    report, pairs = judge(tmp_path, name, PARQUET, rows, {})
    assert counts(report) == (5, {"empty_answer": 1, "tie": 2}, {"in_gsm8k_train": 1})
    assert [p.score_chosen for p in pairs] == [9.0] * 5
    rows[5] = (rows[5][0], "in_gsm8k_train")
    report, _ = judge(tmp_path, name, PARQUET, rows, {}, severity={"in_gsm8k_train": "drop"})
    assert counts(report) == (4, {"empty_answer": 1, "in_gsm8k_train": 1, "tie": 2}, {})


def test_sharegpt(tmp_path: Path) -> None:
    """LLaMA-Factory's shape. 7 rows: 3 kept."""

    def said(who: str, text: Any) -> dict[str, Any]:
        return {"from": who, "value": text}

    def row(*turns: Any, chosen: Any = "A", rejected: Any = "B", **more: Any) -> Any:
        return {"conversations": list(turns), "chosen": said("gpt", chosen), "rejected": said("gpt", rejected), **more}

    three = said("human", "1"), said("gpt", "2"), said("human", "3")
    rows: list[tuple[Any, Fate]] = [
        (row(said("human", "Q1")), ("user: Q1", "A", "B")),
        (row(*three), ("user: 1\nassistant: 2\nuser: 3", "A", "B")),
        (row(said("system", "S"), said("human", "Q3")), ("system: S\nuser: Q3", "A", "B")),
        (row(said("human", "Q4"), rejected="A"), "identical"),
        (row(said("human", "Q5"), rejected=None), "wrong_type"),
        (row(said("function_call", "Q6")), "unknown_role"),
        (row(*three, said("gpt", "4")), "prompts_differ"),  # nobody asked after the 4
    ]
    report, _ = judge(tmp_path, "dpo_en_demo", "train.json", rows, {})
    assert counts(report) == (3, {"identical": 1, "prompts_differ": 1, "unknown_role": 1, "wrong_type": 1}, {})


OWN: list[tuple[Any, Fate]] = [
    ({"prompt": "Q1", "chosen": "A", "rejected": "B", "score_chosen": 5, "score_rejected": 1}, ("user: Q1", "A", "B")),
    ({"prompt": "Q2", "chosen": "A", "rejected": "B", "score_chosen": 3, "score_rejected": 3}, "tie"),
    (
        {"prompt": "Q3", "chosen": "4", "rejected": "None", "score_chosen": 5, "score_rejected": 1},
        ("user: Q3", "4", "None"),
    ),
    ({"prompt": "Q4", "chosen": "A", "rejected": "A", "score_chosen": 5, "score_rejected": 1}, "identical"),
    ({"prompt": "Q5", "chosen": "A", "rejected": " ", "score_chosen": 5, "score_rejected": 1}, "empty_answer"),
    ({"prompt": "Q1", "chosen": "A", "rejected": "B", "score_chosen": 5, "score_rejected": 1}, "duplicate"),
]


@pytest.mark.parametrize("kind", ["own.jsonl", "own.json", "own.parquet", "own.csv", "own.jsonl.gz", "saved"])
def test_own_files(kind: str, tmp_path: Path) -> None:
    """The same 6 rows in each kind of file: 2 kept."""
    rows = [row for row, _ in OWN]
    if kind == "saved":
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(str(tmp_path / kind))
    elif kind == "own.csv":
        import pandas as pd

        pd.DataFrame(rows).to_csv(tmp_path / kind, index=False)
    elif kind == "own.json":
        (tmp_path / kind).write_text(json.dumps(rows))
    else:
        write(tmp_path / kind, rows)
    source = find_source(DatasetEntry(id=kind), Workspace(tmp_path, tmp_path / ".preftune"))
    report = check_source(source, Validation(max_dropped=1), tmp_path, 42)
    assert report["train"]["read"] == 6
    assert counts(report) == (2, {"duplicate": 1, "empty_answer": 1, "identical": 1, "tie": 1}, {})
    fates = [
        (text_of(p.prompt), p.chosen[0]["content"], p.rejected[0]["content"])
        for p in load_pairs(tmp_path / "train.jsonl")
    ]
    assert fates == [OWN[0][1], OWN[2][1]]
