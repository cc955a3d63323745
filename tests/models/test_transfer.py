from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from medseg import registry
from medseg.device import Machine
from medseg.models.base import Head, find_network
from medseg.models.nnunet import NnUNetSettings
from medseg.models.transfer import Meaning, Port, ports, transfer
from medseg.models.unet import UNetSettings

WINDOW = (64, 64)
ORGANS = Head("organs", 3, (-0.1, -2.0, -3.0), ("background", "liver", "spleen"))
TUMOUR = Head("tumour", 1, (-4.0,), ("tumour",))
SUPERVISED = UNetSettings(
    features=(8, 12, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3, encoder=(1, 1, 1), decoder=(1, 1), residual=True,
    skip="concat", deep_supervision=1,
)  # fmt: skip
RESIDUAL = NnUNetSettings(
    features=(8, 12, 16), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3, residual=True, encoder=(1, 2, 2), decoder=(1, 1),
    deep_supervision=1, precision="full",
)  # fmt: skip


def settings_of(kind):
    return {"supervised": SUPERVISED, "residual": RESIDUAL}.get(kind) or find_network(kind).configure(
        WINDOW, (1.0, 1.0), Machine("cpu", 4)
    ).settings


KINDS = [*registry.networks.names(), "supervised", "residual"]


class Made:
    """A network with names for what goes in and comes out."""

    def __init__(self, kind, channels, heads, seed=0, more=()):
        self.settings = settings_of(kind)
        self.family = find_network(self.settings.kind)
        self.channels, self.heads = (*channels, *more), heads
        torch.manual_seed(seed)
        self.network = self.family.build(self.settings, len(self.channels), heads).eval()
        with torch.no_grad():
            for parameter in self.network.parameters():  # zeros and ones of fresh norms would hide what is not transferred
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.state = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.meaning = Meaning.of(self.settings.kind, channels, more, heads)

    def begin(self, source):
        of = ports(partial(self.family.build, self.settings), len(self.channels), self.heads)
        state, told = transfer(self.state, self.meaning, source.state, source.meaning, of)
        self.network.load_state_dict(state)
        return told

    @torch.no_grad()
    def outputs(self, image):
        maps = self.network(torch.cat([image[name] for name in self.channels], 1))
        return {(h.name, name): maps[h.name][0][:, i] for h in self.heads for i, name in enumerate(h.names)}


def images(*names, seed=0):
    torch.manual_seed(seed)
    return {name: torch.randn(1, 1, *WINDOW) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_computes_the_same(kind):
    source, target = Made(kind, ("t1", "t2"), (ORGANS, TUMOUR)), Made(kind, ("t1", "t2"), (ORGANS, TUMOUR), seed=1)
    told = target.begin(source)
    assert (told.adapted, told.fresh, told.left, told.share) == ({}, {}, 0, 1.0)
    assert told.copied == len(source.state)
    assert all(torch.equal(tensor, source.state[name]) for name, tensor in target.network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_channels_and_classes_that_change_places_or_leave_keep_their_meaning(kind):
    """What a network says of a class that both know is the same, to rounding."""
    source = Made(kind, ("t1", "t2"), (ORGANS, TUMOUR))
    fewer = replace(ORGANS, channels=2, prior=(), names=("Spleen", "background"))
    target = Made(kind, ("T2", "t1 "), (fewer,), seed=1)
    told = target.begin(source)
    image = images("t1", "t2")
    ours, theirs = target.outputs(image | {"T2": image["t2"], "t1 ": image["t1"]}), source.outputs(image)
    torch.testing.assert_close(ours["organs", "Spleen"], theirs["organs", "spleen"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["organs", "background"], theirs["organs", "background"], atol=1e-4, rtol=1e-4)
    assert told.fresh == {}
    assert told.share == 1
    assert set(told.adapted.values()) == {"outputs by name: Spleen, background", "channels by name: T2, t1 "}


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_a_new_class_begins_afresh(kind):
    """Trained rows beside a fresh one would not let its class be predicted."""
    source = Made(kind, ("t1",), (ORGANS,))
    more = replace(ORGANS, channels=ORGANS.channels + 1, prior=(), names=(*ORGANS.names, "kidney"))
    target = Made(kind, ("t1",), (more,), seed=1)
    target.state = {name: tensor.clone() for name, tensor in target.network.state_dict().items()}
    told = target.begin(source)
    assert set(told.fresh.values()) == {"the source has no output kidney, so all of the head begin alike"}
    for name, now in target.network.named_parameters():
        assert torch.equal(now, target.state[name]) == (name in told.fresh)
    assert 0.9 < told.share < 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_channel_leaves_the_size_of_responses(kind):
    """Where all channels show the same, three of them say what two did."""
    source, target = Made(kind, ("a", "b"), (TUMOUR,)), Made(kind, ("c", "b", "a"), (TUMOUR,), seed=1)
    told = target.begin(source)
    (image,) = images("a").values()
    shown = dict.fromkeys("abc", image)
    torch.testing.assert_close(target.outputs(shown)["tumour", "tumour"], source.outputs(shown)["tumour", "tumour"], atol=1e-3, rtol=1e-3)
    assert set(told.adapted.values()) == {"channels by name: b, a; new, the mean of the source's: c"}
    assert told.share == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_ports_are_found_and_random_numbers_are_left_alone(kind):
    settings = settings_of(kind)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = ports(partial(find_network(settings.kind).build, settings), 2, (ORGANS, TUMOUR))
    assert torch.equal(torch.get_rng_state(), before)
    inputs = {name for name, along in found.items() if Port(1) in along}
    heads = {head: {name for name, along in found.items() if any(head in port.heads for port in along)} for head in ("organs", "tumour")}
    expected = {"unet": 1, "nnunet": 1, "segresnet": 1, "swinunetr": 3, "supervised": 1, "residual": 1}
    assert len(inputs) == expected[kind]
    levels = {"supervised": 2, "residual": 2, "nnunet": settings.deep_supervision + 1 if kind == "nnunet" else 0}.get(kind, 1)
    assert len(heads["organs"]) == len(heads["tumour"]) == 2 * levels
    assert not inputs & heads["organs"]


def test_unrelated_outputs_stay_fresh_and_say_why():
    source, target = Made("segresnet", ("a",), (Head("image", 1, (), ("a",)),)), Made("segresnet", ("a",), (ORGANS,), seed=1)
    told = target.begin(source)
    assert set(told.fresh.values()) == {"the source has no output background, liver, spleen, so all of the head begin alike"}
    assert len(told.fresh) == 2
    for name in told.fresh:
        assert torch.equal(target.network.state_dict()[name], target.state[name])
    plain, other = Made("unet", ("a",), (Head("image", 1, (), ("a",)),)), Made("unet", ("a",), (ORGANS,), seed=1)
    told = other.begin(plain)
    assert told.fresh == dict.fromkeys(("heads.organs.0.weight", "heads.organs.0.bias"), "the source has no such tensor")
    assert told.left == 2


def test_heads_without_names_count_by_place_where_they_are_as_wide():
    two, three = Head("x", 2), Head("x", 3)
    source, same, wider = Made("unet", ("a",), (two,)), Made("unet", ("a",), (two,), seed=1), Made("unet", ("a",), (three,), seed=1)
    assert same.begin(source).share == 1.0
    assert set(wider.begin(source).fresh) == {"heads.x.0.weight", "heads.x.0.bias"}


def test_other_shapes_are_named():
    source, target = Made("supervised", ("a",), (TUMOUR,)), Made("supervised", ("a",), (TUMOUR,), seed=1)
    target.settings = SUPERVISED.model_copy(update={"features": (8, 12, 24)})
    target.network = target.family.build(target.settings, 1, (TUMOUR,))
    target.state = target.network.state_dict()
    told = target.begin(source)
    assert told.fresh["enter.2.conv.weight"] == "shape 24 x 12 x 3 x 3, in the source 16 x 12 x 3 x 3"
    assert 0 < told.share < 1


def test_only_the_channel_there_is_is_the_same_under_any_name():
    source, target = Made("unet", ("MR",), (TUMOUR,)), Made("unet", ("MRI",), (TUMOUR,), seed=1)
    told = target.begin(source)
    assert told.adapted == {"enter.0.conv.weight": "new, the mean of the source's: MRI; left out: MR"}
    (image,) = images("MR").values()
    names = {"MR": image, "MRI": image}
    torch.testing.assert_close(target.outputs(names)["tumour", "tumour"], source.outputs(names)["tumour", "tumour"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_input_beside_the_image_is_not_seen_at_first(kind):
    source, target = Made(kind, ("a", "b"), (TUMOUR,)), Made(kind, ("b", "a"), (TUMOUR,), seed=1, more=("prior",))
    told = target.begin(source)
    image = images("a", "b", "prior")
    torch.testing.assert_close(target.outputs(image)["tumour", "tumour"], source.outputs(image)["tumour", "tumour"], atol=1e-4, rtol=1e-4)
    assert set(told.adapted.values()) == {"channels by name: b, a; new, from 0: prior"}
    target.state = dict(target.network.state_dict())
    again = Made(kind, ("a", "b"), (TUMOUR,), seed=2)
    assert set(again.begin(target).adapted.values()) == {"channels by name: a, b; left out: prior"}
    torch.testing.assert_close(again.outputs(image)["tumour", "tumour"], source.outputs(image)["tumour", "tumour"], atol=1e-4, rtol=1e-4)
