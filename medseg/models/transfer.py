"""Weights of one network as the start of another of its family, tensor by tensor.

A tensor is copied where name and shape are the same. Where it belongs to input channels or to the channels of heads, these find each other
by name, so that channels and classes may have come, gone, or changed places. Everything else stays as it was initialised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medseg.models.base import Head, ObjectHead
from medseg.record import Record

FAIR_SHARE = 0.5  # of the parameters: with fewer, the networks are different ones


class Meaning(Record):
    """What the channels of a network stand for.

    Attributes:
        kind: registered name of the family.
        channels: names of the input channels in order: those of the image, then what else the network is told.
        images: how many of them are the image's.
        heads: head -> names of its channels in order.
        inner: what names of tensors of the family's network begin with, where it is part of another; written where it is.
    """

    seldom: ClassVar[tuple[str, ...]] = ("inner",)

    kind: str
    channels: tuple[str, ...]
    images: int
    heads: dict[str, tuple[str, ...]]
    inner: str = ""

    @classmethod
    def of(cls, kind: str, images: Sequence[str], more: Sequence[str], heads: Sequence[Head], inner: str = "") -> Meaning:
        """From what a network is built with: names of the image's channels and of further ones, and heads; their channels, where they have
        no names, are named by place and number."""
        named = {head.name: head.names or tuple(f"{n + 1} of {head.channels}" for n in range(head.channels)) for head in heads}
        return cls(kind=kind, channels=(*images, *more), images=len(images), heads=named, inner=inner)


@dataclass(frozen=True)
class Port:
    """An axis of a tensor along which lie the input channels (no `heads`), or the channels of heads, one head after another."""

    axis: int
    heads: tuple[str, ...] = ()


class Transferred(Record):
    """What became of the tensors of a network.

    Attributes:
        copied: tensors that were taken as they are.
        adapted: tensor -> how it was made from the source's.
        fresh: tensor -> why it stays as it was initialised.
        left: tensors of the source for which the network has no place.
        share: of the network's parameters that come from the source.
    """

    copied: int
    adapted: dict[str, str]
    fresh: dict[str, str]
    left: int
    share: float


def ports(build: Callable[[int, tuple[Head, ...]], nn.Module], channels: int, heads: tuple[Head, ...]) -> dict[str, tuple[Port, ...]]:
    """Which tensors of a network belong to its input channels and heads, and along which axes.

    Found by building the network with one channel more on each side, so that it holds for any. Global random numbers stay as they are.
    """

    def shapes(channels: int, heads: tuple[Head, ...]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in build(channels, heads).state_dict().items()}

    def grown(other: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Tensors with one more entry along exactly one axis, and the axis."""
        found: dict[str, int] = {}
        for name, shape in plain.items():
            more = other.get(name, shape)
            axes = [axis for axis, (a, b) in enumerate(zip(shape, more, strict=False)) if a != b]
            if len(more) == len(shape) and len(axes) == 1 and more[axes[0]] == shape[axes[0]] + 1:
                found[name] = axes[0]
        return found

    with torch.random.fork_rng(devices=[]):
        plain = shapes(channels, heads)
        of_input = grown(shapes(channels + 1, heads))
        of_heads = {
            head.name: grown(shapes(channels, (*heads[:n], replace(head, channels=head.channels + 1, prior=(), names=()), *heads[n + 1 :])))
            for n, head in enumerate(heads)
            if not isinstance(head, ObjectHead)  # what it is made of is no map, and has no channels
        }
    result: dict[str, tuple[Port, ...]] = {}
    for name in plain:
        along: dict[int, list[str]] = {}
        for head, found in of_heads.items():
            if name in found:
                along.setdefault(found[name], []).append(head)
        both = [Port(axis, tuple(owners)) for axis, owners in along.items()]
        if name in of_input:
            both.append(Port(of_input[name]))
        if both:
            result[name] = tuple(both)
    return result


def transfer(
    fresh: Mapping[str, Tensor],
    meaning: Meaning,
    source: Mapping[str, Tensor],
    source_meaning: Meaning,
    of: Mapping[str, tuple[Port, ...]],
) -> tuple[dict[str, Tensor], Transferred]:
    """A new network's state with all that fits taken from a source's, and what became of each tensor.

    Input channels: by name; a new one of the image gets the mean of all the source's, and then all of these are scaled by the old number
    over the new one, so that responses keep their size. A new one that is not the image's begins at 0: the network does not see it until
    it learns to. Channels of heads: by name; a head with new ones stays as it was initialised.

    Args:
        fresh: the initialised network's state.
        meaning: of its channels.
        source: the state of the source.
        source_meaning: of its channels.
        of: `ports` of the network.
    """
    source = {_moved(name, source_meaning.inner, meaning.inner): tensor for name, tensor in source.items()}
    state: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    unused: dict[str, str] = {}
    copied = taken = total = 0
    for name, start in fresh.items():
        found = _adapted(start, source.get(name), of.get(name, ()), meaning, source_meaning)
        state[name] = start if found.tensor is None else found.tensor.to(start.dtype).reshape(start.shape).contiguous()
        counts = start.is_floating_point()
        total += start.numel() * counts
        if found.tensor is None:
            unused[name] = found.told
            continue
        taken += round(start.numel() * found.share) * counts
        if found.told:
            adapted[name] = found.told
        else:
            copied += 1
    share = math.floor(10_000 * taken / total) / 10_000 if total else 0.0
    return state, Transferred(copied=copied, adapted=adapted, fresh=unused, left=len(set(source) - set(fresh)), share=share)


def _moved(name: str, before: str, after: str) -> str:
    """A tensor's name where the family's network lies elsewhere; what does not belong to it keeps its name."""
    return after + name.removeprefix(before) if name.startswith(before) else name


@dataclass(frozen=True)
class _Found:
    """A tensor made from the source's, the share of its numbers that come from there, and how; or none, and why not."""

    tensor: Tensor | None
    told: str
    share: float = 1.0


def _adapted(start: Tensor, source: Tensor | None, along: tuple[Port, ...], mine: Meaning, theirs: Meaning) -> _Found:
    if source is None:
        return _Found(None, "the source has no such tensor")
    axes = {port.axis for port in along}
    alike = source.ndim == start.ndim and all(a in axes or n == m for a, (n, m) in enumerate(zip(start.shape, source.shape, strict=True)))
    if not alike:
        return _Found(None, f"shape {_by(start.shape)}, in the source {_by(source.shape)}")
    told: list[str] = []
    share = 1.0
    tensor = source
    for port in sorted(along, key=lambda port: bool(port.heads)):
        found = _rows(start, tensor, port, mine, theirs) if port.heads else _channels(tensor, port.axis, mine, theirs)
        if found.tensor is None:
            return found
        tensor, share = found.tensor, share * found.share
        if found.told:
            told.append(found.told)
    return _Found(tensor, "; ".join(told), share)


def _channels(source: Tensor, axis: int, mine: Meaning, theirs: Meaning) -> _Found:
    """A first layer for other input channels."""
    if source.shape[axis] != len(theirs.channels):
        return _Found(None, f"{source.shape[axis]} entries for {len(theirs.channels)} input channels of the source")
    places = _places(mine.channels, theirs.channels)
    if places == list(range(len(theirs.channels))):
        return _Found(source, "")
    mean = source.narrow(axis, 0, theirs.images).mean(axis)
    factor = theirs.images / mine.images
    parts: list[Tensor] = []
    new: list[str] = []
    unseen: list[str] = []
    for number, (name, place) in enumerate(zip(mine.channels, places, strict=True)):
        of_image = number < mine.images
        if place is None:
            (new if of_image else unseen).append(name)
        part = source.select(axis, place) if place is not None else mean if of_image else torch.zeros_like(mean)
        parts.append(part * factor if of_image and factor != 1 else part)
    known = [name for name, place in zip(mine.channels, places, strict=True) if place is not None]
    gone = [name for number, name in enumerate(theirs.channels) if number not in places]
    listed = (("channels by name", known), ("new, the mean of the source's", new), ("new, from 0", unseen), ("left out", gone))
    return _Found(torch.stack(parts, axis), "; ".join(f"{what}: {_listed(names)}" for what, names in listed if names))


def _rows(start: Tensor, source: Tensor, port: Port, mine: Meaning, theirs: Meaning) -> _Found:
    """A head's layer for other classes."""
    wanted = [(head, name) for head in port.heads for name in mine.heads[head]]
    shared = [head for head in port.heads if head in theirs.heads]
    layouts = [list(theirs.heads), shared] if len(port.heads) == len(mine.heads) else [shared, list(theirs.heads)]
    had = next(
        (rows for heads in layouts if len(rows := [(h, n) for h in heads for n in theirs.heads[h]]) == source.shape[port.axis]), None
    )
    if had is None or len(wanted) != start.shape[port.axis]:
        return _Found(None, "its rows are not the channels of heads")
    places = _places(wanted, had)
    if places == list(range(len(had))):
        return _Found(source, "")
    new = [name for (_, name), place in zip(wanted, places, strict=True) if place is None]
    if new:
        # Beside trained rows a fresh one is not heard: its class would not be predicted for hundreds of steps.
        return _Found(None, f"the source has no output {_listed(new)}, so all of the head begin alike")
    if start.shape[: port.axis] + start.shape[port.axis + 1 :] != source.shape[: port.axis] + source.shape[port.axis + 1 :]:
        return _Found(None, f"shape {_by(start.shape)}, in the source {_by(source.shape)}")
    tensor = torch.stack([source.select(port.axis, place) for place in places if place is not None], port.axis)
    return _Found(tensor, f"outputs by name: {_listed([name for _, name in wanted])}")


def _places(mine: Sequence[Any], theirs: Sequence[Any]) -> list[int | None]:
    """Where each of my names is among theirs, without regard to case; names that are not unique count by place, if there are equally many."""
    ours, others = [_plain(name) for name in mine], [_plain(name) for name in theirs]
    if len(set(ours)) < len(ours) or len(set(others)) < len(others):
        return list(range(len(ours))) if ours == others else [None] * len(ours)
    return [others.index(name) if name in others else None for name in ours]


def _plain(name: Any) -> Any:
    return tuple(_plain(part) for part in name) if isinstance(name, tuple) else name.strip().casefold()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
