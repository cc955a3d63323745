"""Made-up objects and predictions of them, by arithmetic on integers alone: other programs, and any version of NumPy, see the same ones."""

import numpy as np


class Dice:
    """A linear congruential generator."""

    def __init__(self, seed):
        self.state = seed

    def throw(self, sides):
        self.state = (1103515245 * self.state + 12345) % 2**31
        return (self.state >> 16) % sides


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def scene(shape, count, seed):
    """Truth and prediction as label maps: objects that moved, shrank or grew, that are split, merged, missed or invented."""
    dice = Dice(seed)
    truth, prediction = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i in range(1, count + 1):
        centre = [dice.throw(n) for n in shape]
        radius = 2 + dice.throw(5)
        truth[ball(shape, centre, radius)] = 3 * i
        kind = dice.throw(10)
        there = [c + dice.throw(3) - 1 for c in centre]
        if kind == 0:
            continue
        mask = ball(shape, there, max(1, radius + dice.throw(3) - 1))
        prediction[mask] = 7 * (i - (kind == 1) * (i > 1))
        if kind == 2:
            prediction[mask & (np.indices(shape)[0] < there[0])] = 1000 + i
        if kind == 3:
            prediction[ball(shape, [dice.throw(n) for n in shape], 2)] = 2000 + i
    return truth, prediction


def panoptic_scene(shape, count, seed):
    """The same as codes class * 65536 + value: three classes of things, and stuff of class 4 but for a border where truth, or prediction, has
    nothing; and which codes of the truth are crowds, one per class at most."""
    truth, prediction = scene(shape, count, seed)
    coded = []
    for labels, step, border in ((truth, 3, np.s_[:12]), (prediction, 7, np.s_[:, 55:])):
        codes = np.where(labels == 0, 4 << 16, (1 + labels // step % 3 << 16) + labels)
        codes[border] = np.where(labels[border] == 0, 0, codes[border])
        coded.append(codes)
    found = [int(code) for code in np.unique(coded[0]) if code and code % 65536 // 3 in (4, 8, 15)]
    return *coded, [code for i, code in enumerate(found) if class_of(code) not in [class_of(c) for c in found[:i]]]


def class_of(codes):
    return codes >> 16


def detection_scene(shape, count, seed):
    """Objects of the truth as (mask, class, crowd), and detections that overlap each other as (mask, class, score); scores repeat."""
    dice = Dice(seed)
    truth, found = [], []
    for _ in range(count):
        centre = [dice.throw(n) for n in shape]
        radius, cls = 2 + dice.throw(5), 1 + dice.throw(2)
        truth.append((ball(shape, centre, radius), cls, dice.throw(12) == 0))
        for _ in range(dice.throw(4)):
            moved = ball(shape, [c + dice.throw(3) - 1 for c in centre], max(1, radius + dice.throw(3) - 1))
            found.append((moved, cls if dice.throw(8) else 3 - cls, (20 + dice.throw(80)) / 100))
    found += [(ball(shape, [dice.throw(n) for n in shape], 3), 1 + dice.throw(2), dice.throw(60) / 100) for _ in range(count // 4)]
    return truth, found
