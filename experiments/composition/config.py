"""Config files: resolved, overridden, locked, saved.

A config is a Python file with `get_config(arg) -> ml_collections.ConfigDict`. The file is the
documentation of every field; below experiments/ only vla_jax/build.py and saved.py read a
ConfigDict.
"""

import argparse
import ast
import difflib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.composition import ranges
from vla_jax.saved_config import flatten, unknown_fields
from vla_jax.types import DTYPES

CONFIGS = Path(__file__).parents[1] / "configs"


def parse_argv(argv: list[str], own: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """`--config=FILE.py[:arg]`, `--config.a.b=value` (also with a space), `--workdir=DIR`,
    `--dry_run`, and the flags of a command's `own` parser (made with add_help=False).

    Returns a namespace with config (a locked ConfigDict), workdir (Path; default runs/<file>-<arg>)
    and dry_run. Raises ValueError as `load_config` does, and for a config with fields of its own.
    """
    overrides, rest = [], []
    words = iter(argv)
    for word in words:
        if word.startswith("--config."):
            if "=" not in word:
                value = next(words, None)
                if value is None:
                    raise ValueError(f"{word}: expected a value, as in {word}=1")
                word = f"{word}={value}"
            overrides.append(word)
        else:
            rest.append(word)
    parser = argparse.ArgumentParser(allow_abbrev=False, parents=[own] if own else [])
    parser.add_argument(
        "--config", required=True, help="FILE.py[:arg], looked up here and in experiments/configs"
    )
    parser.add_argument(
        "--workdir", type=Path, default=None, help="where everything this run writes goes"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="build everything abstractly, print the tables, exit"
    )
    args = parser.parse_args(rest)
    if args.workdir is None:
        args.workdir = Path("runs") / args.config.replace(".py", "").replace(":", "-").replace(
            "/", "-"
        ).strip("-")
    file, args.config = args.config, load_config(args.config, overrides)
    unknown = unknown_fields(args.config.to_dict())
    if unknown:  # now, and not when its checkpoints are opened
        raise ValueError(
            f"--config={file}: has fields that nothing reads: {', '.join(unknown)}; remove them, or"
            " add them to oxe_paligemma.py and to INTRODUCED of vla_jax/saved_config.py"
        )
    check_values(args.config)
    for field in ("start", "weights"):  # a run means its checkpoints
        inside = Path(args.config.model[field], "checkpoints").expanduser()
        if args.config.model[field] and inside.is_dir():
            args.config.model[field] = str(inside)
    return args


def load_config(spec: str, overrides: list[str] | tuple[str, ...] = ()) -> ConfigDict:
    """The config of "FILE.py[:arg]" with `--config.a.b=value` overrides, locked.

    FILE.py is a path as given, else one under experiments/configs. Raises ValueError for an unknown
    file or key and for a value of the wrong type.
    """
    name, _, arg = spec.partition(":")
    path = next((p for p in (Path(name), CONFIGS / name) if p.is_file()), None)
    if path is None:
        there = ", ".join(sorted(p.name for p in CONFIGS.glob("*.py") if p.name != "__init__.py"))
        raise ValueError(f"--config: no file {name!r} here or in {CONFIGS}; there are {there}")
    module_spec = importlib.util.spec_from_file_location(f"vla_jax_config_{path.stem}", path)
    assert module_spec is not None  # a .py file always has a spec with a loader
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(
            f"--config: {path} has no get_config(arg) -> ConfigDict; write one as in"
            " oxe_paligemma.py"
        )
    config = module.get_config(arg)
    for text in overrides:
        override(config, text)
    config.lock()
    return config


def check_values(config: ConfigDict) -> None:
    """Raises ValueError for numbers that no run can have, all of them at once; the model's, the
    optimizer's and the loader's own rules are theirs.
    """
    values = flatten(config.to_dict())
    wrong = ranges.wrong(values)
    if values["model.dtype"] not in DTYPES:
        wrong.append(
            f"model.dtype: expected one of {', '.join(DTYPES)}, got {values['model.dtype']!r}"
        )
    if wrong:
        raise ValueError("\n".join(f"--config.{line}" for line in wrong))


def save(config: ConfigDict, path: Path) -> None:
    """Writes the config as JSON, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    os.replace(part, path)


def diff(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{"a.b": (value in one, value in other)} for every field that differs.

    Values are JSON texts ("(absent)" where there is none): a saved config comes back with lists
    where it had tuples.
    """
    a, b = (
        {key: json.dumps(value) for key, value in flatten(tree).items()} for tree in (one, other)
    )
    keys = [key for key in sorted(a | b) if a.get(key) != b.get(key)]
    return {key: (a.get(key, "(absent)"), b.get(key, "(absent)")) for key in keys}


def override(config: ConfigDict, given: str) -> None:
    """Sets a field: `--config.a.b=value`. Raises ValueError for an unknown one and for a value of
    the wrong type.
    """
    key, equals, text = given.removeprefix("--config.").partition("=")
    known = flatten(config.to_dict())
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(known)}"
        raise ValueError(f"--config.{key}: no such field{hint}")
    if not equals:
        raise ValueError(f"--config.{key}: expected a value, as in --config.{key}={known[key]!r}")
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    try:
        node[last] = _typed(text, known[key])
    except TypeError:
        default = known[key]
        raise ValueError(
            f"--config.{key}: expected {type(default).__name__} such as {default!r}, got {text!r}"
        ) from None


def _typed(text: str, default: Any) -> Any:
    """The text as a value of the default's type (any literal where that is None). Raises
    TypeError.
    """
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        if isinstance(default, tuple) and default and isinstance(default[0], tuple):
            return text  # data.mixture: the name of one in place of a list of pairs
        # Words need no quotes: primary,wrist is ("primary", "wrist"), and nothing is ().
        words = tuple(word.strip() for word in text.split(",") if word.strip())
        value = words if isinstance(default, tuple) else text
    if not isinstance(default, tuple):
        return _converted(value, default)
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(_item(item, default) for item in items)


def _item(item: Any, default: tuple[Any, ...]) -> Any:
    """An item of a tuple: of the type of the default's items where these share one."""
    if len({type(each) for each in default}) != 1:
        return item
    if isinstance(default[0], str) and isinstance(
        item, tuple
    ):  # data.normalise: "q99" or ("bounds", -0.65, 0.65)
        return item
    return _converted(item, default[0])


def _converted(value: Any, default: Any) -> Any:
    """The value if it has the default's type; an int is a float too."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise TypeError
    return value
