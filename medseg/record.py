"""What all records share: frozen, typed, strict, and written as stable JSON."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from medseg.errors import PlanError, Problem, ResourceError
from medseg.registry import Registry


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")

    seldom: ClassVar[tuple[str, ...]] = ()
    """Fields that are written only where they differ from their default: few records choose them, and the files and digests of all others
    stay what they were before there was such a choice."""

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.seldom:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written

    def to_json(self) -> str:
        """Stable, readable JSON: same record, same bytes. Short lists stay on one line."""
        return compact_json(self.model_dump(mode="json")) + "\n"

    def content_digest(self) -> str:
        """16 hexadecimal digits that change with any value of the record."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_text(path, self.to_json())

    def remember(self, path: Path) -> None:
        """Write what can be computed again: atomically, too, but a power failure may lose it, and it is not made for people."""
        text = self.model_dump_json()
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"), durable=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read from JSON.

        Raises:
            PlanError: the file is missing, is not JSON, or does not validate; an unknown key names the nearest field.
        """
        try:
            text = path.read_bytes()
            with contextlib.suppress(ValidationError):  # what is wrong is told below, from plain data
                return cls.model_validate_json(text)
            data = json.loads(text.decode("utf-8"))
        except OSError as error:
            raise PlanError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
        except (ValueError, RecursionError) as error:
            raise PlanError.of("is not valid JSON", where=str(path), found=str(error), fix="Restore or re-create the file.") from None
        return cls.parse(data, where=str(path))

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Validate plain data; `where` names its origin in errors."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PlanError(problems_of(cls, error, where)) from None


class Section(Record):
    """Part of a plan whose type is chosen by name: `kind` resolves through a registry to the class with the fields."""

    kind: str


def section(registry: Registry[Any]) -> Any:
    """The pydantic type of a plan section whose `kind` names an object of `registry`, which has a `Settings` class."""

    def resolve(value: object) -> object:
        if isinstance(value, dict):
            if "kind" not in value:
                raise ValueError(f"'kind' is missing; expected one of {', '.join(registry.names())}")
            try:
                settings: type[Section] = registry.get(str(value["kind"])).Settings
            except PlanError as error:
                raise ValueError(str(error).removesuffix(".")) from None
            return settings.model_validate(value)
        return value

    return Annotated[SerializeAsAny[Section], BeforeValidator(resolve)]


def problems_of(model: type[BaseModel], error: ValidationError, where: str, only: Collection[str] | None = None) -> list[Problem]:
    """A pydantic error as problems, each with the nearest field name for an unknown key; `only` those of some dotted fields."""
    problems = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(
            len(other["loc"]) > len(item["loc"]) and other["loc"][: len(item["loc"])] == item["loc"] for other in items
        ):
            continue  # entries are missing only because they are wrong, and it is told of each what is wrong
        path = ".".join(str(part) for part in item["loc"])
        if only is not None and item["type"] == "union_tag_not_found":
            continue  # which of several kinds a part is, and so its fields, is known of a whole record only
        if only is not None and not any(
            f"{path}.".startswith(f"{one}.") or (item["type"] != "missing" and f"{one}.".startswith(f"{path}.")) for one in only
        ):
            continue
        fix = ""
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _field_names(model), n=1)
            fix = f"Did you mean '{near[0]}'?" if near else "Remove this key."
        told = item["type"] in ("missing", "extra_forbidden") or isinstance(item.get("input"), (dict, BaseModel))
        found = "" if told else _short(item.get("input"))
        what = item["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        problems.append(Problem(what, where=f"{where}, field '{path}'" if path else where, found=found, fix=fix))
    return problems


def _field_names(model: type[BaseModel]) -> list[str]:
    names: set[str] = set()
    seen: set[type] = set()

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                return
            seen.add(kind)
            names.update(kind.model_fields)
            for field in kind.model_fields.values():
                visit(field.annotation)
        for argument in getattr(kind, "__args__", ()):
            visit(argument)

    visit(model)
    return sorted(names)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def compact_json(value: Any, indent: int = 0, width: int = 120) -> str:
    """JSON with two-space indent in which every list or object that fits on one line stays on one line."""
    if not isinstance(value, (dict, list)) or 3 * len(value) <= width:  # more entries cannot fit: each takes three characters or more
        flat = json.dumps(value, ensure_ascii=False)
        if len(flat) + indent <= width or not isinstance(value, (dict, list)) or not value:
            return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(key, ensure_ascii=False)}: {compact_json(item, indent + 2, width)}" for key, item in value.items()]
        return "{\n" + ",\n".join(body) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + compact_json(item, indent + 2, width) for item in value) + "\n" + " " * indent + "]"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (see `write_atomic`)."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_atomic(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Call `write` with a temporary path beside `path`, then rename: readers see the old file or the whole new one, also after a power failure
    (where `durable`).

    The temporary name keeps the suffixes of `path`, because image writers choose their format by suffix.

    Raises:
        ResourceError: the folder cannot be written or the disk is full; nothing half-written is left.
    """
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if durable and temporary.is_file():
            with temporary.open("rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())  # a power failure may keep the new name yet lose what was not on the disk
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError.of(
            "cannot be written", where=str(path), found=error.strerror or str(error), fix="Free disk space or choose another output folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the first error is the one that tells
            temporary.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under another name beside its place, then move it there; an empty one may be in that place.

    Raises:
        ResourceError: it cannot be written; nothing half-written is left.
    """
    check_writable(path.parent)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise ResourceError.of(
            "cannot be written", where=str(path), found=error.strerror or str(error), fix="Free disk space or choose another output folder."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Make a folder and try it, so that long work does not find out at its end.

    Raises:
        ResourceError: the folder cannot be made or written.
    """
    probe = folder / ".medseg-write-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
    except OSError as error:
        raise ResourceError.of(
            "cannot be written",
            where=str(folder),
            found=error.strerror or str(error),
            fix="Choose another folder with -o, or mend its permissions.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
