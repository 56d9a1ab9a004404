"""Pages that mkdocs makes from the code while it builds: the configuration's fields and every command's flags.

Sources are read as syntax trees and never imported, so the pages cannot differ from the code, and building them needs
none of its libraries.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(os.path.abspath(__file__)).parents[1]
_FIELDS = ROOT / "mossa_jax/config/fields.py"
_SHARED = "Flags of every command"
_KNOWN = {"sorted": sorted, "get_args": get_args, "Literal": Literal}
_KNOWN |= {kind.__name__: kind for kind in (tuple, str, int, float, bool)}
_NOT_SIMPLE = object()


# ---- mkdocs ----------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to the site's files."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Returns every generated page: its path in the site -> its Markdown."""
    return {"reference/config.md": config_page(), "reference/commands.md": commands_page()}


# ---- The configuration -----------------------------------------------------------------------------------------------


def config_page() -> str:
    """Writes one table for each part of a configuration, from its dataclasses."""
    tree = _tree(_FIELDS)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    prefixes: dict[str, list[str]] = {}
    _collect_prefixes(classes, "Config", "config", prefixes)
    lines = [
        "# Configuration",
        "",
        "Every field of a [configuration](../configuring.md). On the command line a field has its full name, for",
        "example `--config.tuning.rank=16`; a tuple is written as",
        "`--config.tasks.only=\"('facts', 'sentiment')\"`. A value that cannot work is refused before anything starts,",
        f"with exit code 2. This page is generated from `{_FIELDS.relative_to(ROOT).as_posix()}`.",
        "",
        "## Published configurations",
        "",
        "| file | what it runs |",
        "|---|---|",
    ]
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        about = (ast.get_docstring(_tree(path)) or "").split("\n\n")[0]
        lines.append(f"| `configs/{path.name}` | {_cell(about)} |")
    for name, places in prefixes.items():
        titles = ", ".join(f"`{place}`" for place in places)
        lines += ["", f"## {titles}", "", ast.get_docstring(classes[name]) or "", ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for field, kind, default, about in _fields(classes[name]):
            if kind in classes:
                lines.append(f"| `{field}` | | | see `{places[0]}.{field}` below |")
            else:
                lines.append(f"| `{field}` | {_cell(kind)} | `{_cell(default)}` | {_cell(about)} |")
    return "\n".join(lines) + "\n"


def _collect_prefixes(classes: dict[str, ast.ClassDef], name: str, prefix: str, into: dict[str, list[str]]) -> None:
    """Finds under which dotted names each dataclass is part of a configuration, in the order of the fields."""
    into.setdefault(name, []).append(prefix)
    for field, kind, _, _ in _fields(classes[name]):
        if kind in classes:
            _collect_prefixes(classes, kind, f"{prefix}.{field}", into)


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    """Returns name, type, default and description of each field of a dataclass."""
    found = []
    for number, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign):
            continue
        after = node.body[number + 1] if number + 1 < len(node.body) else None
        about = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        value = evaluate(statement.value, _FIELDS) if statement.value else None
        default = ast.unparse(statement.value) if value is _NOT_SIMPLE else repr(value)
        kind = evaluate(statement.annotation, _FIELDS)
        shown = ast.unparse(statement.annotation) if kind is _NOT_SIMPLE else _shown_type(kind)
        found.append((statement.target.id, shown, default, str(about)))
    return found


def _shown_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is tuple:
        return f"tuple of {_shown_type(get_args(kind)[0])}"
    return f"`{getattr(kind, '__name__', kind)}`"


# ---- Commands --------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Writes one section for each command, from the docstrings and flag definitions of launch/*.py."""
    shared, commands = command_flags()
    lines = [
        "# Commands",
        "",
        "`mossa NAME` after installation and `python -m launch.NAME` in the repository are the same command with the",
        "same flags. `mossa` alone lists the commands, `mossa configs` the published configurations. Flags are given",
        "as `--flag=value`. This page is generated from `launch/*.py`.",
    ]
    offered = _constant("_COMMANDS", ROOT / "launch/mossa.py") if (ROOT / "launch/mossa.py").is_file() else [*commands]
    for name, (about, flags) in commands.items():
        alone = [] if name in offered else ["", f"In the repository only, as `python -m launch.{name}`."]
        lines += ["", f"## {name}", "", *_described(about), *alone, "", *_flag_table(flags)]
    lines += ["", f"## {_SHARED}", "", *_flag_table(shared)]
    return "\n".join(lines) + "\n"


def command_flags() -> tuple[list[dict[str, str]], dict[str, tuple[str, list[dict[str, str]]]]]:
    """Returns the flags that all commands share, and for each command its module's docstring and its own flags."""
    modules = {path.stem: path for path in sorted((ROOT / "launch").glob("[!_]*.py"))}
    is_command = {name: _is_command(path) for name, path in modules.items()}
    shared = [flag for name, path in modules.items() if not is_command[name] for flag in _module_flags(path)]
    commands = {}
    for name in sorted((name for name in modules if is_command[name]), key=_order):
        tree = _tree(modules[name])
        top = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        flags = _called_flags(ast.Module(top, []), modules) + _module_flags(modules[name])
        commands[name] = (ast.get_docstring(tree) or "", flags)
    return shared, commands


def _required_names(node: ast.AST) -> set[str]:
    """The flags that calls of mark_flags_as_required below a syntax node name."""
    return {
        name.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and _called(call) in ("mark_flag_as_required", "mark_flags_as_required")
        for name in ast.walk(call)
        if isinstance(name, ast.Constant)
    }


def _order(name: str) -> tuple[int, str]:
    order = ("run", "tasks", "tune", "compare", "report", "export", "plan")
    return (order.index(name) if name in order else len(order), name)


def _is_command(path: Path) -> bool:
    """Whether a module of launch/ can be started with `python -m`; the list of all commands is none itself."""
    texts = (ast.unparse(node.test) for node in _tree(path).body if isinstance(node, ast.If))
    return path.stem != "mossa" and any("__main__" in text for text in texts)


def _module_flags(path: Path) -> list[dict[str, str]]:
    """The flags that a module defines outside of functions."""
    statements = [node for node in _tree(path).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return _flags_in(ast.Module(statements, []), path)


def _called_flags(node: ast.AST, modules: dict[str, Path]) -> list[dict[str, str]]:
    """The flags of the functions of launch/ that are called below a syntax node, and of those that these call."""
    functions = {
        function.name: (function, path)
        for path in modules.values()
        for function in _tree(path).body
        if isinstance(function, ast.FunctionDef) and re.match("define_(?!paths?$)", function.name)
    }
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call) and _called(call) in functions]
    found = []
    for call in sorted(calls, key=lambda call: call.lineno):
        function, path = functions[_called(call)]
        flags = _called_flags(function, modules) + _flags_in(function, path)
        if any(word.arg == "required" and ast.unparse(word.value) == "False" for word in call.keywords):
            flags = [flag | {"default": ""} for flag in flags]
        found += flags
    return found


def _flags_in(node: ast.AST, path: Path) -> list[dict[str, str]]:
    """The flags of all DEFINE and DEFINE_* calls below a syntax node, in the order of the text."""
    local = {
        target.id: statement.value
        for statement in ast.walk(node)
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    calls = [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and re.match("DEFINE(_|$)|define_paths?$", _called(call)) and call.args
    ]
    required = _required_names(node)
    flags = [_flag(call, path, local) for call in sorted(calls, key=lambda call: call.lineno)]
    return [flag | ({"default": "required"} if flag["name"] in required else {}) for flag in flags]


def _flag(call: ast.Call, path: Path, local: dict[str, ast.expr]) -> dict[str, str]:
    kind = _called(call).removeprefix("DEFINE_").lower()
    arguments = call.args
    if kind.startswith("define_path"):  # the default stands behind the help, by name
        kind, arguments = kind.removeprefix("define_"), [call.args[0], ast.Constant(None), call.args[1]]
    elif kind == "define":  # flags.DEFINE takes a parser first
        kind, arguments = "number", call.args[1:]
    values = [local.get(arg.id, arg) if isinstance(arg, ast.Name) else arg for arg in arguments]
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    name = evaluate(values[0], path)
    by_name = "default" in options or len(values) < 2
    default = evaluate(options.get("default") if by_name else values[1], path)
    about = evaluate(values[-1] if len(values) > 2 else options.get("help"), path)
    if kind == "enum":
        allowed = evaluate(values[2], path)
        kind = " ".join(f"`{word}`" for word in allowed if word) if allowed is not _NOT_SIMPLE else "a name"
    required = "required" in options and evaluate(options["required"], path) is True
    return {
        "name": str(name),
        "type": {"config_file": "a file, a run folder or a published name", "bool": "true or false"}.get(kind, kind),
        "default": "required" if required else _shown_default(default),
        "about": "" if about is _NOT_SIMPLE or about is None else str(about),
    }


def _shown_default(value: Any) -> str:
    if value is _NOT_SIMPLE:
        return "see the description"
    if value in (None, "", []):
        return ""
    return f"`{','.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def _flag_table(flags: list[dict[str, str]]) -> list[str]:
    if not flags:
        return ["It has no flags of its own."]
    rows = [f"| `--{flag['name']}` | {flag['type']} | {flag['default']} | {_cell(flag['about'])} |" for flag in flags]
    return ["| flag | value | default | meaning |", "|---|---|---|---|", *rows]


def _described(docstring: str) -> list[str]:
    """A module's docstring as Markdown: paragraphs that hold commands become blocks of code."""
    first, *rest = docstring.split("\n\n")
    about, _, command = first.partition(": python -m")
    lines = [about + ("." if command else "")]
    blocks = ([f"python -m{command}"] if command else []) + rest
    for block in blocks:
        if block.lstrip().startswith(("python -m", "mossa ")):
            lines += ["", "```text", block, "```"]
        else:
            lines += ["", block]
    return lines


# ---- Syntax trees ----------------------------------------------------------------------------------------------------


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def evaluate(node: ast.expr | None, path: Path) -> Any:
    """Returns the value of an expression of literals, and of constants of its module and of those that it imports.

    Args:
      node: the expression; None is None.
      path: the file that it stands in.

    Returns:
      The value, or `_NOT_SIMPLE` where it is known at run time only.
    """
    if node is None:
        return None
    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} - _KNOWN.keys()
    constants = {name: _constant(name, path) for name in names}
    if _NOT_SIMPLE in constants.values():
        return _NOT_SIMPLE
    try:
        expression = compile(ast.fix_missing_locations(ast.Expression(node)), str(path), "eval")
        return eval(expression, {"__builtins__": _KNOWN, **constants})
    except Exception:
        return _NOT_SIMPLE


class _Module:
    """A module of the repository whose constants are read when they are asked for."""

    def __init__(self, path: Path):
        self._path = path

    def __getattr__(self, name: str) -> Any:
        value = _constant(name, self._path)
        if value is _NOT_SIMPLE:
            raise AttributeError(name)
        return value


def _constant(name: str, path: Path) -> Any:
    """The value of a module's constant; of a dict whose values are no constants, its keys."""
    for statement in _tree(path).body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            base = path.parent if statement.level else ROOT
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _imported(base / statement.module.replace(".", "/"), alias.name)
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            for number, one in enumerate(names):
                if isinstance(one, ast.Name) and one.id == name and getattr(statement, "value", None) is not None:
                    value = evaluate(statement.value, path)
                    if value is _NOT_SIMPLE and isinstance(statement.value, ast.Dict):
                        return [evaluate(key, path) for key in statement.value.keys if key is not None]
                    return value[number] if isinstance(target, ast.Tuple) and value is not _NOT_SIMPLE else value
    return _NOT_SIMPLE


def _imported(base: Path, name: str) -> Any:
    """What `from BASE import NAME` gives: a module, or the value of a module's constant."""
    for path in (base / f"{name}.py", base / name / "__init__.py"):
        if path.is_file():
            return _Module(path)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return _constant(name, path)
    return _NOT_SIMPLE
