"""Options of commands, generated from configuration models, and the options that commands share.

:func:`command` registers a command whose options set fields of configurations: type, default,
choices, limits and help of an option are those of its field. The module of a configuration is
imported when its command runs or explains itself, so that ``graphhalu --help`` stays quick.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from graphhalu.cli import library
from graphhalu.cli.output import BARS
from graphhalu.core.errors import UsageError

Count = Annotated[int, typer.Option(min=1)]
Size = Annotated[int, typer.Option(min=0)]

F = TypeVar("F", bound=Callable[..., Any])
_LIMITS: Final = {"ge": "min", "gt": "min", "min": "min", "le": "max", "lt": "max", "max": "max"}
_SHARED: Final = {
    "traces": "The store; by default the newest finished one.",
    "labeller": "Rule that decides what is hallucinated.",
    "num_traces": "Only the first traces.",
    "detector_class": "module:Class of a saved detector that no package registers.",
    "threads": "CPU threads; by default the free cores.",
    "svg": "Write figures as SVG files, too.",
    "config": "YAML file with settings; options given here win over it.",
    "set_": "Any setting, as KEY=VALUE; can be repeated.",
    "json": "Print the result as JSON.",
}
"""Help of the parameters that mean the same to all commands."""


GROUPS: Final = {
    "": None,
    "heads": "Roles of attention heads: retrieval, reasoning, patterns; and the model without them.",
    "show": "Show models, data sets, detectors, features, a trace store or its labels.",
    "graphs": "Token graphs of a store.",
    "weights": "Weights of a model: profile, validation against traces, comparison.",
    "instability": "Inter-head instability: do heads disagree on the system prompt under attack?",
    "sinks": "Sink mass against hallucination: measure it, analyse it, draw it.",
}
"""Commands of two words by their first one, with help; and those of one word."""
APPS: Final = {
    group: typer.Typer(name=group or None, help=text, no_args_is_help=bool(group))
    for group, text in GROUPS.items()
}


class Options:
    """Options that set fields of a configuration.

    They win over ``--set``, and that over the file of ``--config``. A list is given with commas, or
    by repeating its option.

    Args:
        path: ``module:Class`` of the configuration; without one, the settings are a plain mapping.
        names: Fields whose options have their names, dotted where they are nested; ``model.*`` are
            all fields of a nested configuration.
        file: Whether there is ``--config FILE``.
        overrides: Whether there is ``--set KEY=VALUE``.
        set_wins: Whether ``--set`` wins over the other options.
        fields: Fields by the names of their options. ``"prompt.system@file"`` is read from the file
            that the option names; several options of one list are joined.
    """

    def __init__(
        self,
        path: str | None = None,
        /,
        *names: str,
        file: bool = False,
        overrides: bool = True,
        set_wins: bool = False,
        **fields: str,
    ) -> None:
        self.path, self.names, self.renamed, self.set_wins = path, names, fields, set_wins
        self.others: dict[str, Any] = {"config": Path} if file else {}
        self.others |= {"set_": list[str]} if overrides else {}

    @cached_property
    def model(self) -> Any:
        """The configuration class."""
        module, _, name = str(self.path).partition(":")
        return getattr(import_module(module), name)

    @cached_property
    def fields(self) -> dict[str, str]:
        """The fields, dotted, by the names of their options."""
        found = dict(self.renamed)  # what has a name of its own is what people look for first
        for name in self.names:
            leaf = name.rpartition(".")[2]
            if leaf != "*":
                found[leaf] = name
                continue
            inside = type(self._owner(name)).model_fields.items()
            flat = [each for each, field in inside if not hasattr(field.annotation, "model_fields")]
            made = {each: name.removesuffix("*") + each for each in flat}
            found |= {each: field for each, field in made.items() if field not in self.renamed.values()}
        return found

    def parameters(self, texts: Mapping[str, str]) -> list[inspect.Parameter]:
        """The options as parameters that typer understands; their help is that of the field, or a text."""
        made = [self._parameter(name, target, texts.get(name)) for name, target in self.fields.items()]
        return made + [_option(name, kind, None, _SHARED[name]) for name, kind in self.others.items()]

    def load(self, given: Mapping[str, Any]) -> Any:
        """The configuration that the given options ask for.

        Raises:
            ConfigError: If a value is not valid.
            UsageError: If numbers or a file cannot be read, or two options set one field.
        """
        options: dict[str, Any] = {}
        for name, target in self.fields.items():
            if name not in given:
                continue
            field, _, file = target.partition("@")
            read = read_text if file else self._kind(field).read
            value = read(_flag(name), given[name])
            if field in options and not isinstance(value, list):
                raise UsageError(f"{_flag(name)} and another option both set {field}; use one of them")
            options[field] = options[field] + value if field in options else value
        others = {name: given.get(name) for name in self.others}
        path, overrides = others.get("config"), library.read_overrides(others.get("set_") or ())
        if self.path is None:
            return {**(library.read_yaml(path) if path else {}), **overrides}
        merged = {**options, **overrides} if self.set_wins else {**overrides, **options}
        return library.load_config(self.model, path, merged)

    def _owner(self, dotted: str) -> Any:
        """The default configuration that has a field, without a check of its values."""
        return reduce(getattr, dotted.split(".")[:-1], self.model.model_construct())

    def _kind(self, dotted: str) -> "_Kind":
        return _kind(type(self._owner(dotted)).model_fields[dotted.rpartition(".")[2]].annotation)

    def _parameter(self, name: str, target: str, text: str | None) -> inspect.Parameter:
        dotted, _, file = target.partition("@")
        owner, leaf = self._owner(dotted), dotted.rpartition(".")[2]
        field = type(owner).model_fields[leaf]
        text = text or (field.description or "").replace("``", "")
        if file:
            return _option(name, Path, None, f"File: {text}")
        kind = _kind(field.annotation)
        shown = kind.shown(getattr(owner, leaf))
        return _option(name, kind.option, shown, text, metavar=kind.metavar, metadata=field.metadata)


class _Kind(NamedTuple):
    """How the command line takes the values of a field.

    Attributes:
        option: Type of the option.
        element: Type of the values of a list, ``dict`` for columns by field; ``None`` for a single value.
        words: Words that may stand for the list, with what they mean.
        metavar: Placeholder of the value in the help.
    """

    option: Any
    element: Any = None
    words: Mapping[str, Any] = {}
    metavar: str | None = None

    def read(self, flag: str, value: Any) -> Any:
        """The value of the field."""
        if self.element is None:
            return value
        if self.element is dict:
            return library.read_fields(value)
        text = ",".join(value)
        return self.words[text] if text in self.words else read_list(flag, text, self.element, self.words)

    def shown(self, default: Any) -> Any:
        """The default of the option, which the help shows."""
        if self.element in (None, dict):
            return default or None if isinstance(default, dict) else default
        return [default if isinstance(default, str) else ",".join(map(str, default))] if default else None


def _kind(annotation: Any) -> _Kind:
    is_union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if is_union else (annotation,)
    lists = [member for member in members if get_origin(member) is tuple]
    if not lists:
        (single, *more) = [member for member in members if member is not NoneType]
        if get_origin(single) is dict:
            return _Kind(str, dict, metavar="FIELD=COLUMN,FIELD=COLUMN")
        is_known = single in (bool, int, float, Path) or get_origin(single) is Literal
        return _Kind(single if is_known and not more else str)
    element = get_args(lists[0])[0]
    if get_origin(element) is Annotated:
        element = get_args(element)[0]
    words: dict[str, Any] = {"all": None} if NoneType in members else {}
    words |= {word: word for member in members if get_origin(member) is Literal for word in get_args(member)}
    metavar = "|".join(["N,N" if element in (int, float) else "NAME,NAME", *words])
    return _Kind(list[str], element, words, metavar)


class RayEngine(Options):
    """Options of a Ray cluster, which make the executor that spreads work over it, or ``None``."""

    def load(self, given: Mapping[str, Any]) -> Any:
        """The executor that is asked for."""
        return super().load(given).engine()


MODEL: Final = Options("graphhalu.models.cards:ModelSpec", "device", "threads", model="name", overrides=False)
RAY: Final = RayEngine("graphhalu.cli.ray:RayOptions", "*", overrides=False)


class ConfigCommand(TyperCommand):
    """A command that makes its options when they are first needed, and prints what its function returns."""

    @cached_property
    def made(self) -> Any:
        """A command of typer with the options of all configurations, and this command's own."""

        def command(**values: Any) -> dict[str, Any]:
            return values

        run: Any = self.callback
        _, _, arguments = (inspect.getdoc(run.function) or "").partition("\n\nArgs:\n")
        texts = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", arguments, flags=re.MULTILINE))
        parameters = [each for options in run.configs.values() for each in options.parameters(texts)]
        parameters += [
            _own_parameter(each, texts.get(each.name) or _SHARED[each.name]) for each in run.own.values()
        ]
        parameters.append(_option("json", bool, False, _SHARED["json"]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app = typer.Typer(add_completion=False)
        app.command()(command)
        return typer.main.get_command(app)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, and ``--help``."""
        return [*self.made.params, *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Read the configurations, call the function with them, and print."""
        run: Any = self.callback
        values = self.made.callback(**ctx.params)
        is_given = {name: ctx.get_parameter_source(name).name == "COMMANDLINE" for name in values}
        given = {name: value for name, value in values.items() if is_given[name]}
        arguments = {name: options.load(given) for name, options in run.configs.items()}
        arguments |= {name: values[name] for name in run.own}
        with BARS:
            shown = run.function(**arguments)
        if shown is not None:
            shown.show(as_json=values["json"])


def command(words: str, *, hidden: bool = False, **configs: Options) -> Callable[[F], F]:
    """Register a function as a command that prints what it returns, a :class:`Shown` or nothing.

    Its parameters named here are configurations, made of options; the others that may be
    positional are arguments, and those that are keyword-only are options of their own. Their help
    is the section ``Args`` of the docstring.
    """

    def register(function: F) -> F:
        def run() -> None: ...

        called: Any = run
        own = inspect.signature(function).parameters
        called.own = {name: own[name] for name in own if name not in configs}
        called.function, called.configs = function, configs
        summary = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")[0]
        group, _, name = words.rpartition(" ")
        APPS[group].command(name, cls=ConfigCommand, help=summary, hidden=hidden)(run)
        return function

    return register


def _own_parameter(parameter: inspect.Parameter, text: str) -> inspect.Parameter:
    """A parameter of a function as typer understands it."""
    kind, metadata = parameter.annotation, []
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Annotated:
        kind, *metadata = get_args(kind)
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return _option(parameter.name, kind, parameter.default, text, metadata=metadata)
    argument = typer.Argument(help=" ".join(text.split()))
    return parameter.replace(
        kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[parameter.annotation, argument]
    )


def _option(
    name: str, kind: Any, default: Any, text: str, *, metavar: str | None = None, metadata: Sequence[Any] = ()
) -> inspect.Parameter:
    """An option as a parameter that typer understands; limits of a number are in the metadata."""
    flag = _flag(name)
    limits = {
        side: getattr(each, key)
        for each in metadata
        for key, side in _LIMITS.items()
        if getattr(each, key, None) is not None and kind in (int, float)
    }
    option = typer.Option(
        f"{flag}/--no{flag[1:]}" if default is True else flag,
        help=" ".join(text.split()).replace("[", r"\["),
        metavar=metavar,
        **limits,
    )
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
    return parameter.replace(annotation=Annotated[kind if kind is bool else kind | None, option])


def read_list(flag: str, text: str, kind: Any = int, words: Any = ()) -> list[Any]:
    """The values of an option that takes several with commas.

    Raises:
        UsageError: If numbers are expected and something else came.
    """
    try:
        return [kind(part) if kind in (int, float) else part.strip() for part in text.split(",")]
    except ValueError:
        also = "".join(f" or {word}" for word in words)
        raise UsageError(f"{flag} takes numbers with commas (3,5,8){also}, got {text!r}") from None


def read_text(flag: str, path: Path) -> str:
    """The text of the file that an option names, without blank ends.

    Raises:
        UsageError: If it cannot be read, is not UTF-8, or is empty.
    """
    try:
        found = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{flag} {path} cannot be read: {reason}") from None
    if not found:
        raise UsageError(f"{flag} {path} is empty: expected a text")
    return found


def _flag(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"
