"""Options that several verbs have together: a dataclass whose fields are options, in the place of one parameter of a verb."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints

from medseg.commands.options import Device, Devices, Epochs, Resume, Set, Time, Workers, parse_edits, parse_time


@dataclass(frozen=True)
class Course:
    """How any training of a plan is run."""

    time: Time = None
    epochs: Epochs = None
    resume: Resume = False
    edits: Set = None
    device: Device = "auto"
    devices: Devices = 1
    workers: Workers = None

    def arguments(self) -> dict[str, Any]:
        """As `medseg.train` and `medseg.pretrain` take them."""
        return {
            "seconds": parse_time(self.time),
            "epochs": self.epochs,
            "resume": self.resume,
            "edits": parse_edits(self.edits),
            "device": self.device,
            "devices": self.devices,
            "workers": self.workers,
        }


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the fields of each dataclass among its parameters as options of its own, where typer sees them."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(verb).items() if is_dataclass(kind)}
    parameters = sorted(_parameters(verb), key=lambda one: one.default is not Parameter.empty)

    @functools.wraps(verb)
    def spreading(**given: Any) -> None:
        made = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        verb(**given, **made)

    spreading.__dict__["__signature__"] = inspect.Signature(parameters)
    spreading.__annotations__ = {one.name: one.annotation for one in parameters}
    return spreading


def _parameters(verb: Callable[..., None]) -> Iterator[Parameter]:
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if not is_dataclass(group := hints[name]):
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=group)
            continue
        inner = get_type_hints(group, include_extras=True)
        for one in fields(group):
            default = Parameter.empty if one.default is MISSING else one.default
            yield Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=inner[one.name])
