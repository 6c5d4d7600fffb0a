"""What flow runs are called."""

from flows.run_names import recipe_name, run_name


def test_the_recipe_and_what_was_changed_in_it() -> None:
    assert recipe_name("recipes/starter/config_starter.yaml") == "starter"
    assert run_name("dpo", "starter", None) == "dpo starter"
    overrides = {"beta": 0.2, "output_dir": "data/b", "evaluation.preset": "full"}
    assert run_name("dpo", "starter", overrides) == "dpo starter beta=0.2 evaluation.preset=full"


def test_a_long_name_is_cut() -> None:
    name = run_name("dpo", "starter", {"chat_template": "x" * 500})
    assert len(name) == 80 and name.startswith("dpo starter chat_template=xxx") and name.endswith("…")
