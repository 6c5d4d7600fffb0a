"""Reading lm-eval's task files: includes, groups, tags, functions and what they import; and all of lm-eval's own."""

from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.task_files import functions, leaves, lm_eval_folder, modules, read_config, scan


def write(folder: Path, **files: str) -> Path:
    """Files by name; `__` is a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_names_and_tags(tmp_path: Path) -> None:
    """Quoted or not, a tag as a text or as a list, own tags or included ones; a template is no task."""
    write(
        tmp_path,
        a__yaml='"task": "one"\n"tag": "t"\n',
        b__yaml="task: two\ntag:\n  - t\n  - u\ndoc_to_text: 'task: not_this'\n",
        c__yaml="include: _template\ntask: three # a comment\n",
        d__yaml="include: [_template]\ntask: four\ntag: [v]\n",
        e__yaml="group: all\ntask:\n  - one\n  - task: two\n",
        f__yaml="group: p\ntask: program\nclass: !function task.Program\n",
        _template="tag: w\ndataset_path: x\n",
    )
    found = scan(tmp_path)
    assert set(found.files) == {"one", "two", "three", "four", "all", "program"}
    assert [t.name for t in leaves("program", [found])] == ["program"]
    assert found.tags == {"t": {"one", "two"}, "u": {"two"}, "v": {"four"}, "w": {"three"}}


def test_includes(tmp_path: Path) -> None:
    """Own keys win, later includes win over earlier ones, functions stay names."""
    write(
        tmp_path,
        a__yaml="include: [one, two]\ntask: a\nx: 1\nf: !function utils.f\n",
        one="x: 0\ny: 1\nz: 1\n",
        two="y: 2\ninclude: three\n",
        three="w: 3\n",
    )
    config = read_config(tmp_path / "a.yaml")
    assert config == {"task": "a", "x": 1, "y": 2, "z": 1, "w": 3, "f": "utils.f"}
    assert list(functions({"a": [config]})) == ["utils.f"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a__yaml": "task: [\n"}, "cannot be read"),
        ({"a__yaml": "- task\n"}, "no YAML mapping"),
        ({"a__yaml": "include: b\n"}, "No such file"),
        ({"a__yaml": "include: b\n", "b": "include: a.yaml\n"}, "in a circle"),
        ({"a__yaml": "task: !!python/object/apply:os.system ['true']\n"}, "could not determine a constructor"),
    ],
)
def test_broken_files(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """One message each; nothing is run."""
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path, **files) / "a.yaml")


def test_leaves(tmp_path: Path) -> None:
    """A group's tasks, through groups, tags and changed or new tasks in place; the first place wins."""
    write(
        tmp_path / "shipped",
        a__yaml="task: a\ndataset_path: shipped\n",
        b__yaml="task: b\ntag: letters\ndataset_path: b\n",
        c__yaml="task: c\ntag: letters\ndataset_path: c\n",
        g__yaml="group: g\ntask: [a, letters, inner]\n",
        h__yaml="group: inner\ntask: [{task: b, dataset_path: changed}, {task: new, dataset_path: n}, gone]\n",
    )
    write(tmp_path / "own", a__yaml="task: a\ndataset_path: own\n")
    places = [scan(tmp_path / "own"), scan(tmp_path / "shipped")]
    found = [(t.name, t.config["dataset_path"]) for t in leaves("g", places)]
    assert found == [("a", "own"), ("b", "b"), ("c", "c"), ("b", "changed"), ("new", "n")]


def test_modules(tmp_path: Path) -> None:
    """What is imported when the functions are loaded; not what a function imports, nor what is done without."""
    write(
        tmp_path,
        a__yaml="task: a\nf: !function hooks.f\ng: !function json.dumps\nh: !function hooks.g\n",
        hooks__py=(
            "import re, numpy.linalg\nimport helper\nfrom must_have import x\n"
            "try:\n    import nice_to_have\nexcept ImportError:\n    nice = None\n"
            "try:\n    import must_too\nexcept ImportError:\n    raise\n"
            "def f():\n    import lazy\n"
        ),
        helper__py="import deeper\n",
    )
    (task,) = leaves("a", [scan(tmp_path)])
    packages, read = modules(task)
    assert packages == {"re", "numpy", "must_have", "must_too", "json"}
    assert read == {tmp_path / "hooks.py"}


def test_lm_evals_own_functions() -> None:
    """ifeval's imports are found through three of lm-eval's modules."""
    shipped = scan(lm_eval_folder() / "ifeval")
    packages, read = modules(leaves("ifeval", [shipped])[0])
    assert {"langdetect", "immutabledict", "nltk"} <= packages
    assert {p.name for p in read} == {"utils.py", "instructions_registry.py", "instructions.py", "instructions_util.py"}


@pytest.mark.slow
def test_the_same_tasks_as_lm_eval() -> None:
    """Every name that lm-eval's own index has (20 s): tasks, groups and tags."""
    from lm_eval.tasks import TaskManager

    theirs = TaskManager()
    ours = scan(lm_eval_folder())
    assert sorted(ours.names) == theirs.all_tasks
    assert set(ours.tags) - set(ours.files) == set(theirs.all_tags)
    entries = theirs.task_index
    assert {t: ours.tags[t] for t in theirs.all_tags} == {t: entries[t].tags for t in theirs.all_tags}
    assert {n: ours.files[n] for n in theirs.all_groups} == {n: entries[n].yaml_path for n in theirs.all_groups}
