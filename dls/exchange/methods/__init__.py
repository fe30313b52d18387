"""The methods: one a file (`global_topk.py` is `--method global-topk`), and registered classes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any, TypeVar, overload

from dls.exchange.methods._base import Method
from dls.exchange.settings import Field, fields_of

__all__ = ["Method", "find", "load", "names", "reads", "register", "registered", "settings"]

AnyMethod = TypeVar("AnyMethod", bound=type[Method])
_registered: dict[str, type[Method]] = {}


def names() -> tuple[str, ...]:
    """The methods that exist, by the names of their files or of registered classes."""
    return tuple(sorted({*_files(), *_registered}))


def _files() -> list[str]:
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return [name.replace("_", "-") for name in files if not name.startswith("_")]


def registered() -> tuple[type[Method], ...]:
    """The classes that programs have registered, in their order."""
    return tuple(_registered.values())


def load(name: str) -> type[Method]:
    """The method of that name: a registered class, or the one class of its file."""
    if name in _registered:
        return _registered[name]
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    own: list[type[Method]] = [
        each for each in vars(module).values() if _is_own_method(each, module.__name__)
    ]
    if len(own) != 1:
        raise ImportError(f"{module.__name__} must define one method, and has {len(own)}")
    return own[0]


def find(name: str) -> type[Method]:
    """The method that a program names. ValueError where there is none."""
    if name not in names():
        raise ValueError(f"there is no method {name!r}; there are {', '.join(names())}")
    return load(name)


def _is_own_method(candidate: Any, module: str) -> bool:
    return (
        inspect.isclass(candidate)
        and issubclass(candidate, Method)
        and candidate.__module__ == module
    )


@overload
def register(method: AnyMethod, /) -> AnyMethod: ...
@overload
def register(method: str, /) -> Callable[[AnyMethod], AnyMethod]: ...
def register(method: Any, /) -> Any:
    """Register a class as a method: `@dls.register`, or `@dls.register("its-name")`.

    Without a name, MyMethod is `--method my-method`. ValueError where the name, or that of a
    setting, is already used for something else.
    """
    if isinstance(method, str):
        return lambda own: _register(method, own)
    return _register(re.sub(r"(?<!^)(?=[A-Z])", "-", method.__name__).lower(), method)


def _register(name: str, method: AnyMethod) -> AnyMethod:
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise TypeError(
            f"{method!r} is no class of a method: derive it from one in dls.exchange.methods"
        )
    there = _registered.get(name)
    if name in _files() or (there is not None and _source(there) != _source(method)):
        raise ValueError(
            f"there is a method {name!r} already: give yours another name,"
            ' @dls.register("other-name")'
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} cannot be a method's name: small letters, digits and single dashes can"
        )
    known = settings(without=name)
    for setting, own in fields_of(method.Settings).items():
        if setting in known and _shape(known[setting]) != _shape(own):
            raise ValueError(
                f"there is a setting {setting!r} already, of another kind, default or text: rename"
                f" that of {name!r}"
            )
    _registered[name] = method
    return method


def _shape(setting: tuple[Field, Any]) -> tuple[Any, ...]:
    field, kind = setting
    return kind, field.default, field.metadata


def _source(method: type[Method]) -> tuple[str, str]:
    """Where a class comes from: a file that is imported again defines the same method."""
    return method.__qualname__, inspect.getsourcefile(method) or method.__module__


def settings(without: str = "") -> dict[str, tuple[Field, Any]]:
    """The settings of all methods, or of all but one, each with its type, by name."""
    found: dict[str, tuple[Field, Any]] = {}
    for name in names():
        if name == without:
            continue
        found |= {
            key: value for key, value in fields_of(load(name).Settings).items() if key not in found
        }
    return found


def reads(name: str) -> frozenset[str]:
    """The settings that have an effect on a method, those of the exchange included."""
    method = load(name)
    of_exchange = set() if method.whole else {"overlap", "bucket_size"}
    return frozenset(fields_of(method.Settings)) | of_exchange
