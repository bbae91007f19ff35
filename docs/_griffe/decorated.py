"""A Griffe extension: what decorators make of a signature, which static reading does not see."""

from __future__ import annotations

from typing import Any

import griffe

_MANAGERS = {"asynccontextmanager": "AbstractAsyncContextManager", "contextmanager": "AbstractContextManager"}


class Decorated(griffe.Extension):
    """Shows `attrs.frozen` classes with their `__init__`, and context managers as such."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called when a function is read."""
        manager = next((_MANAGERS[str(d.value)] for d in func.decorators if str(d.value) in _MANAGERS), None)
        if manager is None:
            return
        func.labels.discard("async")
        yielded = func.returns.slice if isinstance(func.returns, griffe.ExprSubscript) else "Any"
        func.returns = f"{manager}[{yielded}]"

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called when a class and its members are read."""
        decorator = next((d.value for d in cls.decorators if str(d.value).startswith("attrs.frozen")), None)
        if decorator is None or "__init__" in cls.members:
            return
        all_keyword = _keywords(decorator).get("kw_only") == "True"
        positional, keyword = [], []
        for field in cls.members.values():
            if not isinstance(field, griffe.Attribute) or field.annotation is None:
                continue
            if "instance-attribute" not in field.labels:  # a property, or a ClassVar
                continue
            options = _keywords(field.value)
            if options.get("init") == "False":
                continue
            kinds = griffe.ParameterKind
            by_keyword = all_keyword or options.get("kw_only") == "True"
            (keyword if by_keyword else positional).append(
                griffe.Parameter(
                    field.name.lstrip("_"),
                    annotation=field.annotation,
                    kind=kinds.keyword_only if by_keyword else kinds.positional_or_keyword,
                    default=_default(field.value, options),
                )
            )
        if cls.bases and not (positional or keyword):
            return  # the inherited one is shown
        inherited = _inherited(cls)
        kept = griffe.ParameterKind.positional_or_keyword
        first = [parameter for parameter in inherited if parameter.kind is kept]
        last = [parameter for parameter in inherited if parameter.kind is not kept]
        parameters = griffe.Parameters(*first, *positional, *last, *keyword)
        cls.set_member("__init__", griffe.Function("__init__", parameters=parameters, returns="None"))


def _inherited(cls: griffe.Class) -> list[griffe.Parameter]:
    """The parameters of base classes that stand above in the same module."""
    above = [cls.parent.members.get(str(base)) for base in cls.bases] if cls.parent is not None else []
    inits = [base.members.get("__init__") for base in above if isinstance(base, griffe.Class)]
    return [parameter for init in inits if isinstance(init, griffe.Function) for parameter in init.parameters]


def _keywords(call: Any) -> dict[str, str]:
    if not isinstance(call, griffe.ExprCall):
        return {}
    return {arg.name: str(arg.value) for arg in call.arguments if isinstance(arg, griffe.ExprKeyword)}


def _default(value: Any, options: dict[str, str]) -> str | None:
    """What stands for an argument that is left out; None where it must be given."""
    if value is None:
        return None
    if not (isinstance(value, griffe.ExprCall) and str(value.function) == "attrs.field"):
        return str(value)
    if "factory" in options:
        return {"dict": "{}"}.get(options["factory"], f"{options['factory']}()")
    return options.get("default")
