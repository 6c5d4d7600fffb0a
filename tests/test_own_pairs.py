"""`preftune pairs`: step by step as plain functions, and through the real command line."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import preftune
from fake_judge import Asked, Behaviour, Replied, fake_judge, longest_wins, malformed, sometimes

from preftune.children import read_json_lines
from preftune.data.steps import make_data
from preftune.errors import UserError
from preftune.models import find_model
from preftune.own_pairs import keys, steps
from preftune.own_pairs.labels import LabelFile, new_label
from preftune.own_pairs.selection import REASONS
from preftune.preflight import preflight
from preftune.publish import publish
from preftune.recipe import load_recipe
from preftune.store import StepResult
from preftune.workspace import Workspace

QUESTIONS = "".join(f"Question {'x' * i} of number {i}?\n" for i in range(1, 13))
COUNT_WORDS = "def score(prompt, answer, row):\n    return len(set(answer.split()))\n"
# More words where the prompt's length is odd, fewer where it is even.
NOT_LENGTH = (
    "def score(prompt, answer, row):\n    return len(answer.split()) * (1 if len(prompt[-1]['content']) % 2 else -1)\n"
)
RULE = {"kind": "rule", "function": "rule.py:score"}


def writes(asked: Asked) -> Replied:
    """An answer of one to five different words, by the request's seed and prompt; a judge's question gets a verdict."""
    words = (asked.body["seed"] + len(asked.body["messages"][-1]["content"])) % 5 + 1
    return Replied(" ".join(f"word{i}" for i in range(words)))


def is_answer(asked: Asked) -> bool:
    return "seed" in asked.body


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Callable[..., tuple[Path, Workspace]]:
    """Makes a project whose answers come from a server; returns its recipe and workspace."""

    def make(url: str, text: str = QUESTIONS, rule: str = COUNT_WORDS, **pairs: Any) -> tuple[Path, Workspace]:
        (tmp_path / "prompts.txt").write_text(text)
        (tmp_path / "rule.py").write_text(rule)
        section = {
            "prompts": "prompts.txt",
            "generator": {"kind": "openai", "model": "m", "base_url": url, "retries": 0},
            "scorer": RULE,
            "test_size": 0.25,
            **pairs,
        }
        recipe = {"model_name_or_path": str(tiny_model), "max_length": 128, "pairs": section}
        recipe["validation"] = {"near_duplicates": None}  # the questions are near each other
        path = tmp_path / "recipes" / "own" / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(recipe))
        return path, Workspace(tmp_path, tmp_path / ".preftune").make()

    return make


def built(path: Path, workspace: Workspace, told: list[str] | None = None) -> dict[str, StepResult]:
    """All steps, one after the other, as the flow makes them."""
    recipe = load_recipe(path)
    plan = steps.make_plan(workspace, recipe, find_model(recipe, workspace))
    tell = (told if told is not None else []).append
    prompts = steps.make_prompts(plan, steps.prompts_step_key(plan), tell)
    answers = steps.make_completions(plan, steps.completions_step_key(plan, prompts), prompts, tell)
    found = {"prompts": prompts, "completions": answers}
    if plan.settings.scorer is not None:
        key = steps.scores_step_key(plan, prompts, answers)
        found["scores"] = steps.make_scores(plan, key, prompts, answers, tell)
    key = keys.pairs_key(recipe, plan.settings, prompts, answers, found.get("scores"))
    return found | {"pairs": steps.make_pairs(plan, key, prompts, answers, found.get("scores"), tell)}


def dataset(result: StepResult, workspace: Workspace) -> tuple[list[Any], list[Any], list[Any], Path]:
    folder = result.folder(workspace) / "dataset"
    files = ("train.jsonl", "test.jsonl", "about/left_out.jsonl")
    train, test, left = (read_json_lines(folder / name) for name in files)
    return train, test, left, folder


def test_from_prompts_to_a_dataset_that_the_checks_take(project: Any, tmp_path: Path) -> None:
    with fake_judge(writes) as server:
        path, workspace = project(server.url, margin=1)
        made = built(path, workspace)
    assert len(server.requests) == 12 * 4
    train, test, left, folder = dataset(made["pairs"], workspace)
    assert made["pairs"].info["train"] == len(train) and made["pairs"].info["test"] == len(test) == 3
    # by hand: of the four answers of each prompt the one with most words against the one with fewest
    answers = read_json_lines(made["completions"].folder(workspace) / "completions.jsonl")
    of_prompt: dict[str, list[int]] = {}
    for row in answers:
        of_prompt.setdefault(row["id"], []).append(len(row["text"].split()))
    wide = {prompt for prompt, words in of_prompt.items() if max(words) - min(words) > 1}
    assert {row["id"].partition("#")[0] for row in train + test} == wide
    for row in train + test:
        words = of_prompt[row["id"].partition("#")[0]]
        assert (row["score_chosen"], row["score_rejected"]) == (max(words), min(words))
        assert len(row["chosen"][0]["content"].split()) == max(words)
    assert {(r["step"], r["id"]) for r in left} == {("selection", p) for p in set(of_prompt) - wide}
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in test}
    lineage = json.loads((folder / "about/lineage.json").read_text())
    assert lineage["prompts"]["digest"] and lineage["model"]["weights"] and lineage["counts"]["train"] == len(train)
    # the recipe names no data: it is trained on these, and the data steps keep every pair
    recipe = load_recipe(path)
    assert [(e.id, e.test_split) for e in recipe.mixture.datasets] == [("data/own-pairs", "test")]
    with pytest.raises(UserError, match="not built yet"):
        preflight(path, {}, workspace)
    publish(tmp_path / "data/own-pairs", "k", {"": folder}, dict)
    _, _, sources = preflight(path, {}, workspace)
    _, mixture = make_data(workspace, recipe, sources)
    assert (mixture.info["train"], mixture.info["test"]) == (len(train), len(test))


def test_the_card_tells_how_it_was_made(project: Any) -> None:
    with fake_judge(writes) as server:
        path, workspace = project(server.url, rule=NOT_LENGTH, max_length_accuracy=0.6)
        made = built(path, workspace)
    train, test, left, folder = dataset(made["pairs"], workspace)
    card = (folder / "README.md").read_text()
    pairs = made["pairs"].info
    assert (
        f"{pairs['train'] + pairs['test']} preference pairs ({pairs['train']} to train on, {pairs['test']} held out"
        in card
    )
    assert "| prompts | `prompts.txt`" in card and "12 read, 12 taken" in card
    assert f"m behind {server.url}".replace("_", "\\_") in card and "the Python function rule.py:score" in card
    for reason, count in Counter(row["reason"] for row in left).items():
        assert f"`{reason}`" in card and f"| {count} |" in card
    longer = [len(r["chosen"][0]["content"]) > len(r["rejected"][0]["content"]) for r in train + test]
    share = sum(longer) / len(longer)
    assert f"| chosen is the longer one | {100 * share:.0f} % of the pairs |" in card
    assert max(share, 1 - share) <= 0.6
    for words in ("left out so that length tells less", "all scores are equal"):
        assert (words in card) is any(words in REASONS[row["reason"]] for row in left)
    assert str(workspace.project) not in card and str(workspace.project) not in json.dumps(pairs)


def test_another_margin_asks_and_scores_nothing_anew(project: Any) -> None:
    with fake_judge(writes) as server:
        path, workspace = project(server.url)
        first = built(path, workspace)
        project(server.url, margin=2)
        second = built(path, workspace)
        assert len(server.requests) == 48
        assert [first[s].key == second[s].key for s in first] == [True, True, True, False]
        # more answers: only those that are new are asked for
        project(server.url, completions=5)
        third = built(path, workspace)
    assert len(server.requests) == 60
    assert (third["completions"].info["made"], third["completions"].info["cached"]) == (12, 48)


def test_a_judge_scores_in_both_orders(project: Any) -> None:
    with fake_judge(sometimes(is_answer, writes, longest_wins)) as server:
        judge = {"kind": "openai", "model": "j", "base_url": server.url, "retries": 0}
        path, workspace = project(server.url, scorer=judge, completions=2, temperatures=1)
        made = built(path, workspace)
        asked = [body for body in server.requests if "seed" not in body]
        again = built(path, workspace)
    train, test, *_ = dataset(made["pairs"], workspace)
    different = made["scores"].info["comparisons"]
    assert len(asked) == 2 * different and again["pairs"].key == made["pairs"].key
    assert len(train + test) == different
    for row in train + test:
        assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)
        assert len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"])


def card_and_lineage(folder: Path) -> str:
    return (folder / "README.md").read_text() + (folder / "about/lineage.json").read_text()


def test_an_sft_dataset_supplies_the_chosen_side_and_the_card_says_so(project: Any, tmp_path: Path) -> None:
    rows = [{"query": f"Write {i}", "answer": f"print({i})", "lang": "python"} for i in range(6)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"query": "Unanswered"}]))
    with fake_judge(writes) as server:
        section = {"prompts": str(tmp_path / "sft.jsonl"), "chosen": "dataset", "completions": 1, "scorer": None}
        path, workspace = project(server.url, **section)
        train, test, _, folder = dataset(built(path, workspace)["pairs"], workspace)
    assert {r["chosen"][0]["content"] for r in train + test} == {f"print({i})" for i in range(6)}
    assert str(tmp_path) not in card_and_lineage(folder)
    assert all(r["rejected"][0]["content"].startswith("word0") and "score_chosen" not in r for r in train + test)
    card = (folder / "README.md").read_text()
    assert "**Chosen answers are the dataset's own" in card and "an assumption" in card
    assert (
        "`no_answer`: the row has no answer of its own | 1 |" in card
    )  # the selection's reason of that name is another


def test_people_decide(project: Any, tmp_path: Path) -> None:
    with fake_judge(writes) as server:
        path, workspace = project(server.url, scorer={"kind": "people"}, completions=2)
        recipe = load_recipe(path)
        plan = steps.make_plan(workspace, recipe, find_model(recipe, workspace))
        assert plan.scorer == ""
        prompts = steps.make_prompts(plan, steps.prompts_step_key(plan))
        answers = steps.make_completions(plan, steps.completions_step_key(plan, prompts), prompts)
        tasks = steps.label_tasks(plan, prompts, answers)
        file = LabelFile(tmp_path / "data/own-pairs-labels.jsonl")
        assert steps.label_file(plan).path == file.path
        for number, task in enumerate(tasks[:-2]):
            for who in ("ann", "bob"):
                winner = "second" if who == "bob" and number == 0 else "first"
                file.append(new_label(task.key, who, winner, "page"))
        made = built(path, workspace)
    train, test, left, folder = dataset(made["pairs"], workspace)
    by_task = {task.id: task for task in tasks}
    assert len(train + test) == len(tasks) - 3  # two without a label, one on which they disagree
    for row in train + test:
        assert row["chosen"][0]["content"] == by_task[row["id"].partition("#")[0]].first
    assert Counter(row["reason"] for row in left if row["step"] == "selection") == {"no_score": 2, "tie": 1}
    info = made["scores"].info
    assert (info["labelled"], info["not_labelled"], info["agreement"][0]["tasks"]) == (
        len(tasks) - 2,
        2,
        len(tasks) - 2,
    )
    card = (folder / "README.md").read_text()
    assert "Cohen's kappa of labeller 1 and labeller 2" in card and "ann" not in card
    assert "bob" not in (folder / "about/lineage.json").read_text()


RAISES, ALL_EQUAL, LONGEST = (f"def score(p, a, r):\n    return {what}\n" for what in ("r['nothing']", "1", "len(a)"))
JUDGE = {"kind": "openai", "model": "j"}
BAD = "Good one?\n\n   \ngood ONE?\nWhat is what?\n" + "long " * 400 + "\nThird, which is fine.\n"


def test_bad_prompts_are_counted(project: Any) -> None:
    with fake_judge(writes) as server:
        path, workspace = project(server.url, text=BAD, test_size=0)
        made = built(path, workspace)
    info = made["prompts"].info
    assert (info["read"], info["kept"]) == (7, 3)
    assert info["dropped"] == {"empty": 2, "duplicate": 1, "too_long": 1}
    left = dataset(made["pairs"], workspace)[2]
    assert Counter(r["reason"] for r in left if r["step"] == "prompts") == info["dropped"]


@pytest.mark.parametrize(
    ("keys", "behaviour", "message", "advice"),
    [
        ({"rule": "def score(p, a, r):\n    return r['nothing']\n"}, writes, "KeyError: 'nothing'", ""),
        (
            {"rule": "def score(p, a, r):\n    return 1\n"},
            writes,
            "no pair came out of 12 prompts: 12 × all scores",
            "the scorer",
        ),
        ({"margin": 99}, writes, "no two answers differ by more than the margin", "lower pairs.margin"),
        (
            {"scorer": {"kind": "openai", "model": "j"}},
            sometimes(is_answer, writes, malformed),
            "no readable verdict",
            "",
        ),
        ({"text": "\n \n"}, writes, "no prompt is left", ""),
        ({}, lambda asked: Replied(""), "no answer that could be scored", "more answers"),
        ({}, lambda asked: Replied("word", finish="length"), "no answer that could be scored", ""),
        (
            {},
            lambda asked: Replied("w" * (asked.number % 5 + 1), finish="length"),
            "every answer was cut",
            "max_new_tokens",
        ),
    ],
)
def test_what_gives_no_pairs_is_one_message(
    keys: dict[str, Any], behaviour: Behaviour, message: str, advice: str, project: Any
) -> None:
    with fake_judge(behaviour) as server:
        if "scorer" in keys:
            keys = {"scorer": {**keys["scorer"], "base_url": server.url, "retries": 0}}
        path, workspace = project(server.url, **keys)
        with pytest.raises(UserError) as told:
            built(path, workspace)
    assert message in told.value.error, told.value
    assert advice in told.value.advice
    assert "\n" not in told.value.error


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scorer": None}, "scorer is missing"),
        ({"completions": 1}, "a pair needs two answers"),
        ({"temperatures": [0]}, "at temperature 0 all answers"),
        ({"scorer": {"kind": "people"}}, "people compare two answers"),
        ({"scorer": {"kind": "magic"}}, "a scorer needs kind: rule or openai or reward_model or people"),
        ({"generator": {"kind": "magic"}}, "a generator needs kind: local or openai"),
        ({"generator": {"kind": "local", "engin": "vllm"}}, "pairs.generator.engine"),
        ({"scorer": {**RULE, "functoin": "x"}}, "pairs.scorer.function"),
        ({"scorer": {"kind": "rule", "function": "rule"}}, "write it as FILE.py:FUNCTION"),
        ({"prompts": {"id": "p.txt", "answer": "a"}}, "only chosen: dataset reads"),
        ({"prompts": {"id": "p.txt", "colum": "a"}}, "pairs.prompts.column"),
    ],
)
def test_a_wrong_section_is_told(keys: dict[str, Any], message: str, project: Any) -> None:
    path, _ = project("http://127.0.0.1:1/v1", **keys)
    with pytest.raises(UserError) as told:
        load_recipe(path)
    assert message in str(told.value)


def test_a_recipe_without_the_section(make_project: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_project(tmp_path)
    done = preftune("pairs", str(recipe), "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "the recipe does not say how pairs are made"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], tiny_model: Path) -> Path:
    """A project whose own model answers; many of its tokens end an answer, since it was never taught to."""
    folder = tmp_path_factory.mktemp("own")
    model = Path(shutil.copytree(tiny_model, folder / "model"))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2, 20))}))
    section = {
        "prompts": {"id": "recipes/tiny/pairs/train.jsonl", "max_prompts": 20},
        "completions": 3,
        "temperatures": [1.0, 1.5],
        "max_new_tokens": 48,
        "scorer": RULE,
        "test_size": 0.2,
    }
    no_data = {"dataset_name": None, "dataset_test_split": None}
    keys = {"model_name_or_path": "model", "validation": {"near_duplicates": None}, **no_data}
    make_project(folder, pairs=section, **keys)
    (folder / "rule.py").write_text(COUNT_WORDS)
    return folder


@pytest.fixture(scope="module")
def first(local: Path) -> dict[str, Any]:
    done = preftune("pairs", "recipes/tiny/config.yaml", "--json", cwd=local)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_the_command_makes_a_dataset_and_records_it(first: dict[str, Any], local: Path) -> None:
    assert (first["state"], first["steps"]) == (
        "built",
        dict.fromkeys(("prompts", "completions", "scores", "pairs"), "run"),
    )
    assert first["prompts"] | {"dropped": {}} == {"read": 24, "kept": 20, "left": 4, "dropped": {}, "notices": []}
    assert first["completions"]["answers"] == first["completions"]["made"] == 60
    out = local / "data/tiny-pairs"
    assert Path(first["output"]) == out
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "train.jsonl",
        "test.jsonl",
        "README.md",
        "about/lineage.json",
        "about/left_out.jsonl",
        ".preftune.json",
    }
    assert len(read_json_lines(out / "train.jsonl")) == first["pairs"]["train"] > 0

    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=f"sqlite:///{local}/.preftune/mlflow.db").get_run(first["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["preftune.kind"] == "pairs"
    assert run.data.metrics["pairs"] == first["pairs"]["train"] + first["pairs"]["test"]
    assert run.data.params["pairs.completions"] == "3"
    assert {i.dataset.digest for i in run.inputs.dataset_inputs} == {
        r.digest for r in _stored(local, "prompts", "pairs")
    }


def _stored(project: Path, *names: str) -> list[StepResult]:
    from preftune.store import find

    workspace = Workspace(project, project / ".preftune")
    places = [(name, folder.name) for name in names for folder in (workspace.store / name).iterdir()]
    return [found for name, key in places if (found := find(workspace, name, key)) is not None]


def test_the_same_again_makes_nothing(first: dict[str, Any], local: Path) -> None:
    done = preftune("pairs", "recipes/tiny/config.yaml", cwd=local)
    assert done.returncode == 0, done.stderr
    assert "prompts cached, completions cached, scores cached, pairs cached" in done.stdout
    assert "next:     preftune run recipes/tiny/config.yaml" in done.stdout


def test_people_label_elsewhere(project: Any, tmp_path: Path) -> None:
    """Through the commands: answers, out to Label Studio and back in, the dataset."""
    with fake_judge(writes) as server:
        path, _ = project(server.url, scorer={"kind": "people"}, completions=2)
        recipe = str(path.relative_to(tmp_path))
        early = preftune("pairs", "label", recipe, cwd=tmp_path)
        assert early.returncode == 2 and f"preftune pairs {recipe}" in early.stderr
        done = preftune("pairs", recipe, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "to label: 12 comparisons: preftune pairs label recipes/own/config.yaml" in done.stdout
        out = preftune("pairs", "export", recipe, "out.json", "--to=label-studio", cwd=tmp_path)
        assert out.returncode == 0 and "<Choices" in out.stdout, out.stderr
        tasks = json.loads((tmp_path / "out.json").read_text())
        assert len(tasks) == 12 and not any(task["annotations"] for task in tasks)
        for task in tasks[:10]:
            value = {"from_name": "better", "to_name": "first", "type": "choices", "value": {"choices": ["second"]}}
            task["annotations"] = [{"id": 1, "completed_by": 3, "result": [value]}]
        (tmp_path / "in.json").write_text(json.dumps(tasks))
        back = preftune("pairs", "import", recipe, "in.json", "--from=label-studio", cwd=tmp_path)
        assert back.returncode == 0 and "10 labels that are new" in back.stdout, back.stderr
        wrong = preftune("pairs", "import", recipe, "prompts.txt", "--from=argilla", cwd=tmp_path)
        assert wrong.returncode == 2 and "is no JSON file" in wrong.stderr
        done = preftune("pairs", recipe, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["scores"]["labelled"], found["scores"]["not_labelled"]) == (10, 2)
    assert found["pairs"]["train"] + found["pairs"]["test"] == 10
    assert found["steps"] == {"prompts": "cached", "completions": "cached", "scores": "run", "pairs": "run"}
    assert len(server.requests) == 24


@pytest.mark.slow
def test_a_run_on_the_dataset(first: dict[str, Any], local: Path) -> None:
    """A recipe that makes pairs is trained on them, and says so in MLflow."""
    done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=local)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"]["outcome"] in ("promote", "reject", "inconclusive")
    audit = preftune("audit", "recipes/tiny/config.yaml", "--json", cwd=local)
    mixture = json.loads(audit.stdout)["mixture"]
    assert (mixture["train"], mixture["test"]) == (first["pairs"]["train"], first["pairs"]["test"])
