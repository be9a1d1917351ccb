"""Options of commands, generated from configuration models, and the options that commands share.

:func:`command` registers a command whose options set fields of configurations: type, default,
choices, limits and help of an option are those of its field. The module of a configuration is
imported when its command runs or explains itself, so that ``graphhalu --help`` stays quick.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from graphhalu.cli import library
from graphhalu.cli.output import BARS
from graphhalu.core.errors import UsageError

Count = Annotated[int, typer.Option(min=1)]
Size = Annotated[int, typer.Option(min=0)]
Resamples = Annotated[int, typer.Option(min=100)]
Place = Path | None
"""A file or a folder; ``None`` where the command finds or makes one."""

F = TypeVar("F", bound=Callable[..., Any])
_LIMITS: Final = {"ge": "min", "gt": "min", "min": "min", "le": "max", "lt": "max", "max": "max"}


@cache
def _shared() -> dict[str, str]:
    """Help of the parameters that mean the same to all commands."""
    return dict(library.read_yaml(Path(__file__).with_name("options.yaml")))


APPS: Final = {"": typer.Typer()}
"""Commands of two words by their first one; and those of one word."""


@dataclass(frozen=True)
class Options:
    """Options that set fields of a configuration.

    They win over ``--set``, and that over the file of ``--config``. A list is given with commas, or
    by repeating its option.

    Args:
        config: Name of the configuration in the library; without one, settings are a plain mapping.
        names: Fields, dotted where they are nested, with spaces between them; an option has the name of
            its field, or another one as in ``data_path=dataset.path``. ``model.*`` are all fields of
            a nested configuration that have no other option. ``system=prompt.system@file`` is read
            from the file that the option names; several options of one list are joined.
        file: Whether there is ``--config FILE``.
        overrides: Whether there is ``--set KEY=VALUE``.
        set_wins: Whether ``--set`` wins over the other options.
    """

    config: str | None = None
    names: str = ""
    file: bool = False
    overrides: bool = True
    set_wins: bool = False

    @cached_property
    def fields(self) -> dict[str, "_Field"]:
        """The fields by the names of their options."""
        default = getattr(library, self.config).model_construct() if self.config else None
        renamed = dict(name.split("=") for name in self.names.split() if "=" in name)
        found = {name: _Field(target, default) for name, target in renamed.items()}
        for name in self.names.split():
            if name.endswith("*"):
                inside = type(_owner(name, default)).model_fields.items()
                flat = [leaf for leaf, info in inside if not hasattr(info.annotation, "model_fields")]
                targets = {leaf: name.removesuffix("*") + leaf for leaf in flat}
                shown = {leaf: each for leaf, each in targets.items() if each not in renamed.values()}
                found |= {leaf: _Field(each, default) for leaf, each in shown.items()}
            elif "=" not in name:
                found[name.rpartition(".")[2]] = _Field(name, default)
        return found

    def parameters(self, texts: Mapping[str, str]) -> list[inspect.Parameter]:
        """The options as parameters that typer understands; their help is that of the field, or a text."""
        made = [field.parameter(name, texts.get(name)) for name, field in self.fields.items()]
        made += [_option("config", Path, None, _shared()["config"])] if self.file else []
        return made + ([_option("set_", list[str], None, _shared()["set_"])] if self.overrides else [])

    def load(self, given: Mapping[str, Any]) -> Any:
        """The configuration that the given options ask for.

        Raises:
            ConfigError: If a value is not valid.
            UsageError: If numbers or a file cannot be read, or two options set one field.
        """
        options: dict[str, Any] = {}
        for name, field in self.fields.items():
            if name not in given:
                continue
            value = field.read(_flag(name), given[name])
            if field.name in options and not isinstance(value, list):
                raise UsageError(f"{_flag(name)} and another option both set {field.name}; use one of them")
            options[field.name] = options[field.name] + value if field.name in options else value
        path = given.get("config") if self.file else None
        overrides = library.read_overrides(given.get("set_", ()) if self.overrides else ())
        if self.config is None:
            return {**(library.read_yaml(path) if path else {}), **overrides}
        merged = {**options, **overrides} if self.set_wins else {**overrides, **options}
        return library.load_config(getattr(library, self.config), path, merged)


MODEL: Final = Options("ModelSpec", "model=name device threads", overrides=False)
RAY: Final = Options("RayExecutor", "*", overrides=False)


def _owner(dotted: str, default: Any) -> Any:
    """The part of a default configuration that has a field."""
    return reduce(getattr, dotted.split(".")[:-1], default)


class _Field:
    """A field of a configuration, and how the command line takes its values.

    Args:
        target: The field, dotted; with ``@file`` its text is read from a file.
        default: The default configuration.

    Attributes:
        element: Type of the values of a list, ``dict`` for columns by field; ``None`` for a single value.
        words: Words that may stand for the list, with what they mean.
    """

    def __init__(self, target: str, default: Any) -> None:
        self.name, _, file = target.partition("@")
        self.is_file = bool(file)
        owner, leaf = _owner(self.name, default), self.name.rpartition(".")[2]
        self.info, self.default = type(owner).model_fields[leaf], getattr(owner, leaf)
        self.kind: Any = str
        self.element: Any = None
        self.metavar: str | None = None
        self.words: dict[str, Any] = {}
        annotation = self.info.annotation
        is_union = get_origin(annotation) in (Union, UnionType)
        members = get_args(annotation) if is_union else (annotation,)
        (single, *more) = [each for each in members if each is not NoneType]
        if lists := [each for each in members if get_origin(each) is tuple]:
            self.kind, self.element = list[str], get_args(lists[0])[0]
            if get_origin(self.element) is Annotated:
                self.element = get_args(self.element)[0]
            words = [word for each in members if get_origin(each) is Literal for word in get_args(each)]
            self.words = {"all": None} if NoneType in members else {}
            self.words |= {word: word for word in words}
            metavar = "N,N" if self.element in (int, float) else "NAME,NAME"
            self.metavar = "|".join([metavar, *self.words])
        elif get_origin(single) is dict:
            self.element, self.metavar = dict, "FIELD=COLUMN,FIELD=COLUMN"
        elif not more and (single in (bool, int, float, Path) or get_origin(single) is Literal):
            self.kind = single

    def parameter(self, name: str, text: str | None) -> inspect.Parameter:
        """The option of this field, which shows its default."""
        text = text or (self.info.description or "").replace("``", "")
        if self.is_file:
            return _option(name, Path, None, f"File: {text}")
        shown = self.default
        if self.element is not None:
            joined = shown if isinstance(shown, str) else ",".join(map(str, shown or ()))
            shown = [joined] if joined else None
        return _option(name, self.kind, shown, text, metavar=self.metavar, metadata=self.info.metadata)

    def read(self, flag: str, value: Any) -> Any:
        """The value of the field that an option asks for."""
        if self.is_file:
            return read_text(flag, value)
        if self.element is None:
            return value
        if self.element is dict:
            return library.read_fields(value)
        text = ",".join(value)
        return self.words[text] if text in self.words else read_list(flag, text, self.element, self.words)


class ConfigCommand(TyperCommand):
    """A command that makes its options when they are first needed, and prints what its function returns.

    Args:
        function: What is run.
        configs: The options of those of its parameters that are configurations.
        settings: Of typer.
    """

    def __init__(self, *, function: Any, configs: Mapping[str, Options], **settings: Any) -> None:
        super().__init__(**settings)
        self.function, self.configs = function, configs
        parameters = inspect.signature(function).parameters
        self.own = {name: parameters[name] for name in parameters if name not in configs}

    @cached_property
    def made(self) -> Any:
        """A command of typer with the options of all configurations, and this command's own."""

        def command(**values: Any) -> dict[str, Any]:
            return values

        _, _, arguments = (inspect.getdoc(self.function) or "").partition("\n\nArgs:\n")
        texts = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", arguments, flags=re.MULTILINE))
        parameters = [each for options in self.configs.values() for each in options.parameters(texts)]
        parameters += [_own_parameter(own, {**_shared(), **texts}[name]) for name, own in self.own.items()]
        parameters.append(_option("json", bool, False, _shared()["json"]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app = typer.Typer(add_completion=False)
        app.command()(command)
        return typer.main.get_command(app)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, and ``--help``."""
        return [*self.made.params, *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Read the configurations, call the function with them, and print."""
        values = self.made.callback(**ctx.params)
        is_given = {name: ctx.get_parameter_source(name).name == "COMMANDLINE" for name in values}
        given = {name: value for name, value in values.items() if is_given[name]}
        arguments = {name: options.load(given) for name, options in self.configs.items()}
        with BARS:
            shown = self.function(**arguments, **{name: values[name] for name in self.own})
        if shown is not None:
            shown.show(as_json=values["json"])


def command(words: str, *, hidden: bool = False, about: str = "", **configs: Options) -> Callable[[F], F]:
    """Register a function as a command that prints what it returns, a :class:`Shown` or nothing.

    Its parameters named here are configurations, made of options; the others that may be
    positional are arguments, and those that are keyword-only are options of their own. Their help
    is the section ``Args`` of the docstring; that of a group of commands is the docstring of their
    module, or what the first of them says it is ``about``.
    """

    def register(function: F) -> F:
        group, _, name = words.rpartition(" ")
        summary = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")[0]
        if group not in APPS:
            text = about or sys.modules[function.__module__].__doc__
            APPS[group] = typer.Typer(name=group, help=text, no_args_is_help=True)
        made: Any = partial(ConfigCommand, function=function, configs=configs)
        APPS[group].command(name, cls=made, help=summary, hidden=hidden)(lambda: None)
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
