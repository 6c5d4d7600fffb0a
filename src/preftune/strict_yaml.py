"""A YAML reader that says no where `yaml.safe_load` keeps quiet.

Safe tags only; a key given twice is an error; `5e-7` is a number (YAML 1.1 reads it as text); NaN and infinity
are refused, because no recipe key has a use for them.
"""

import json
import math
import re
from typing import Any

import yaml

from preftune.errors import UserError


class _Loader(yaml.SafeLoader):
    pass


# YAML 1.1 wants a dot in the mantissa and a sign in the exponent; 1.2 (and people) write 5e-7 and 1e6.
_FLOAT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        line = key_node.start_mark.line + 1
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"the key {key!r} stands twice (lines {seen[key]} and {line})",
                key_node.start_mark,
            )
        seen[key] = line
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = yaml.SafeLoader.construct_yaml_float(loader, node)
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is not a finite number", node.start_mark)
    return value


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def load_yaml(text: str, where: str) -> Any:
    """Parses one YAML document strictly.

    Args:
        text: The document.
        where: Name of the file or option, for messages.

    Raises:
        UserError: For anything but a safe, well-formed document without repeated keys and with finite numbers.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
        json.dumps(value, default=str, skipkeys=True)  # a value that holds itself has no end
        return value
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 0
        problem = e.problem or "not well-formed YAML"
        advice = "correct this line"
        if "could not determine a constructor" in problem:
            problem = f"YAML tags that build objects are refused ({problem.split(' for ')[-1]})"
            advice = "write a plain value"
        raise UserError(problem, f"{where}, line {line}", advice) from None
    except yaml.YAMLError as e:
        raise UserError(f"not YAML: {e}", where, "write plain UTF-8 text in YAML") from None
    except (ValueError, LookupError, AttributeError, RecursionError) as e:
        # impossible dates such as 2024-13-45, nesting without end, PyYAML's own slips (`!!int ''`)
        raise UserError(f"not a value that YAML knows: {e}", where, "put the value in quotes") from None


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `load_yaml` would take for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def dump_yaml(value: Any) -> str:
    """YAML that `load_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
