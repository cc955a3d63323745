"""The reference of plan files, generated from the types: `docs/plan.md` is its output and a test keeps them equal."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medseg import registry
from medseg.plans import Plan
from medseg.record import Section

OPEN = {"space": registry.domains, "network": registry.networks, "target": registry.tasks}
INTRODUCTION = """# The plan file

A plan is one JSON file with every decision between a dataset and a trained model. `medseg plan` writes it, `medseg explain` prints
it with the reason for every value, and it may be edited, by hand or with `--set FIELD=VALUE` (`--set training.batch_size=4`).
An unknown field or an impossible value is an error that names the field. `medseg schema plan` prints the same as JSON Schema.

Lists that belong to a window (strides, kernels, mirror) follow its axes: z, y, x in 3D and y, x in 2D.

*This page is generated from the types in `medseg/plans.py` and the registered domains, networks and tasks. Do not edit it.*
"""
NAMES: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


def plan_markdown() -> str:
    """The reference as Markdown."""
    parts = [INTRODUCTION, *_section("Plan", Plan, "")]
    for name, field in Plan.model_fields.items():
        if name in OPEN:
            for kind, registered in OPEN[name].items():
                parts += _section(f'`{name}` of kind "{kind}"', registered.Settings, name)
        else:
            for model in _models(field.annotation):
                parts += _section(f"`{name}`", model, name)
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A heading, the first paragraph of the docstring, a table, and the tables of records within."""
    yield f"## {title}\n"
    yield from _body(model, prefix)
    for name, field in model.model_fields.items():
        if not prefix:
            continue
        inside = list(_models(field.annotation))
        for inner in inside:
            path = f"{prefix}.{name}"
            yield f"### `{path}`" + (f' of kind "{inner.model_fields["kind"].default}"' if len(inside) > 1 else "") + "\n"
            yield from _body(inner, path)
            for deeper, deep_field in inner.model_fields.items():
                for innermost in _models(deep_field.annotation):
                    yield f"### `{path}.{deeper}`\n"
                    yield from _body(innermost, f"{path}.{deeper}")


def _body(model: type[BaseModel], prefix: str) -> Iterator[str]:
    told = _documented(model)
    yield (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", "\n") + "\n"
    yield "| field | value | meaning |\n|---|---|---|"
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        meaning = field.description or told.get(name, "") or (f'Always "{field.default}".' if name == "kind" else "")
        yield f"| `{path}` | {_cell(_type(field.annotation) + _bounds(field))} | {_cell(meaning)} |"
    yield ""


def _documented(model: type[BaseModel]) -> dict[str, str]:
    """Meanings of fields from the `Attributes:` block of a docstring."""
    told: dict[str, str] = {}
    _, _, block = (model.__doc__ or "").partition("Attributes:\n")
    for line in block.splitlines():
        names, colon, text = line.strip().partition(": ")
        if colon:
            for name in names.split(", "):
                told[name] = text[:1].upper() + text[1:]
    return told


def _type(annotation: Any) -> str:
    """A type as a reader of JSON sees it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{_json(a)}`" for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(a) for a in arguments))
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        inner = [_type(a) for a in arguments if a is not Ellipsis]
        if not several:
            return f"[{', '.join(inner)}]"
        return f"list of ({inner[0]})" if " " in inner[0] else f"list of {inner[0]}"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{_json(member.value)}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "object, see below"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(field: FieldInfo) -> str:
    said = []
    for item in field.metadata:
        if isinstance(item, Ge):
            said.append(f"at least {item.ge}")
        elif isinstance(item, Gt):
            said.append(f"above {item.gt}")
        elif isinstance(item, Le):
            said.append(f"at most {item.le}")
        elif isinstance(item, Lt):
            said.append(f"below {item.lt}")
        elif isinstance(item, MinLen) and item.min_length:
            said.append(f"{item.min_length} or more entries")
        elif isinstance(item, MaxLen):
            said.append(f"{item.max_length} entries or fewer")
    return f"; {', '.join(said)}" if said else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Records within a type, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _json(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan; its open sections list the settings of everything that is registered."""
    schema = Plan.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for name, family in OPEN.items():
        choices = []
        for _, registered in family.items():
            settings = registered.Settings.model_json_schema(ref_template="#/$defs/{model}")
            definitions |= settings.pop("$defs", {})
            definitions[settings["title"]] = settings
            choices.append({"$ref": f"#/$defs/{settings['title']}"})
        schema["properties"][name] = {"anyOf": choices}
    definitions.pop("Section", None)
    return schema
