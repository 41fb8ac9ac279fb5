"""Augmentation moves image, labels and prompts together."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from samadapt.data.types import IGNORED, Sample
from samadapt.prompts.annotations import given_prompts
from samadapt.training import augment as changes
from samadapt.training.augment import CONTRAST, CROP, HUE, SATURATION, flip, turn, turn90

PLACES = ["flip", "rotate90", "rotate", "scale", "zoom", "crop"]
VALUES = ["intensity", "noise", "bias_field", "colour"]
ALL = [*PLACES, *VALUES]


def augment(sample, *options):
    return changes.augment([sample], *options)[0]


def vary(sample, *options):
    return changes.vary([sample], *options)[0]


def crop(sample, rng):
    return changes.crop([sample], rng)[0]


def shade(image, *options):
    return changes.shade(image[None], *options)[0]


def sample():
    labels = np.zeros((10, 20), np.int16)
    labels[2:5, 12:18] = 1
    image = np.repeat((labels * 200).astype(np.uint8)[..., None], 3, axis=2)
    boxes = np.array([[12, 2, 18, 5]], np.float32)
    points = np.array([[12.5, 3.5], [0.5, 9.5]], np.float32)
    return Sample("a", 0, image, labels, boxes, points, np.array([1, 0]))


def test_a_flip_moves_everything_and_twice_is_nothing():
    flipped = flip(sample())
    assert np.array_equal(flipped.image[..., 0] > 0, flipped.labels > 0)
    assert np.flatnonzero(flipped.labels.any(0)).tolist() == [2, 3, 4, 5, 6, 7]
    assert flipped.boxes.tolist() == [[2, 2, 8, 5]]
    assert flipped.points.tolist() == [[7.5, 3.5], [19.5, 9.5]]
    assert given_prompts(flipped).truth.sum() == 18
    assert flipped.image.flags.c_contiguous
    twice = flip(flipped)
    for name in ("image", "labels", "boxes", "points", "point_labels"):
        assert np.array_equal(getattr(twice, name), getattr(sample(), name))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_move_everything_and_four_are_nothing(turns):
    turned = turn90(sample(), turns)
    assert turned.labels.shape == ((20, 10) if turns % 2 else (10, 20))
    assert np.array_equal(turned.labels, np.rot90(sample().labels, turns))
    assert np.array_equal(turned.image[..., 0] > 0, turned.labels > 0)
    left, top, right, bottom = turned.boxes[0].astype(int)
    inside = np.zeros_like(turned.labels, dtype=bool)
    inside[top:bottom, left:right] = True
    assert np.array_equal(inside, turned.labels > 0), "the box is where its object is"
    column, row = turned.points[0].astype(int)
    assert turned.labels[row, column] == 1
    back = turn90(turned, 4 - turns)
    for name in ("image", "labels", "boxes", "points", "point_labels"):
        assert np.array_equal(getattr(back, name), getattr(sample(), name))


def test_colour_changes_hue_and_saturation_within_their_ranges_and_no_label():
    from skimage.color import rgb2hsv

    rng = np.random.default_rng(0)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4], image[4:] = (180, 90, 90), (90, 90, 150)
    before, hues, factors, spans = rgb2hsv(image), [], [], []
    for _ in range(60):
        after = rgb2hsv(shade(image, ["colour"], rng))
        hues.append((after[0, 0, 0] - before[0, 0, 0] + 0.5) % 1 - 0.5)
        factors.append(after[0, 0, 1] / before[0, 0, 1])
        spans.append(np.ptp(shade(image, ["colour"], rng).astype(float)) / np.ptp(image))
    assert max(map(abs, hues)) < HUE + 0.01
    assert min(hues) < -HUE / 2, "in both directions"
    assert max(hues) > HUE / 2
    most = SATURATION * CONTRAST**2  # contrast moves the saturation as well
    assert 1 / most < min(factors) < 0.9
    assert 1.1 < max(factors) < most
    assert max(spans) > 1.15


@pytest.mark.parametrize("channels", [4, 6])
def test_colour_of_other_channels_changes_the_contrast_of_all_alike(channels):
    rng = np.random.default_rng(0)
    image = np.stack(
        [np.full((6, 6), 40 * (1 + k % 3), np.uint8) for k in range(channels)], axis=-1
    )
    changed = shade(image, ["colour"], rng)
    assert changed.shape == image.shape
    shift = changed[0, 0].astype(float) - image[..., :].mean()
    before = image[0, 0] - image.mean()
    assert np.allclose(shift, before * (shift[0] / before[0]), atol=1.5)


def test_zoom_has_the_wider_range_and_takes_the_place_of_scale():
    def share(names, seed):
        return float((augment(scan(), names, np.random.default_rng(seed)).labels == 3).mean())

    plain = float((scan().labels == 3).mean())
    scaled = [share(["scale"], seed) / plain for seed in range(80)]
    zoomed = [share(["zoom"], seed) / plain for seed in range(80)]
    assert min(scaled) > 1.25**-2 * 0.9
    assert min(zoomed) < 0.35
    assert len({round(value, 3) for value in zoomed}) > 10


def test_half_of_the_slices_are_changed_and_none_without_a_name():
    rng = np.random.default_rng(0)
    changed = [bool(augment(sample(), ["flip"], rng).labels[2, 2]) for _ in range(200)]
    assert 70 < sum(changed) < 130
    assert not any(augment(sample(), [], rng).labels[2, 2] for _ in range(20))


def is_flipped(changed):
    return bool(changed.labels[2, 2])


def test_a_variant_depends_on_seed_slice_and_number_alone():
    slices = [replace(sample(), case=case, index=index) for case in "abcd" for index in range(9)]

    def drawn(seed, variant):
        return [is_flipped(vary(item, ["flip"], seed, variant)) for item in slices]

    assert not any(drawn(0, 0))
    assert drawn(0, 1) == drawn(0, 1)
    assert len({tuple(drawn(seed, number)) for seed in range(3) for number in (1, 2)}) == 6
    assert 8 < sum(drawn(0, 1)) < 28
    turned = next(item for item in slices if is_flipped(vary(item, ["flip"], 0, 1)))
    changed, by_hand = vary(turned, ["flip"], 0, 1), flip(turned)
    for name in ("image", "labels", "boxes", "points", "point_labels"):
        assert np.array_equal(getattr(changed, name), getattr(by_hand, name))


def scan(case="a", index=0):
    """Three classes of odd numbers, as bright as their number, and a background."""
    rng = np.random.default_rng(index)
    labels = np.zeros((41, 60), np.int16)
    labels[8:18, 30:50], labels[20:36, 10:22], labels[24:30, 14:40] = 3, 7, 250
    grey = np.where(labels > 0, labels, rng.integers(0, 2, labels.shape)).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    return Sample(case, index, image, labels)


def whole(sample):
    """All bytes of a sample."""
    return b"|".join(np.ascontiguousarray(part).tobytes() for part in (sample.image, sample.labels))


@pytest.mark.parametrize("names", [*([name] for name in ALL), ALL])
def test_the_same_bytes_from_the_same_seed_in_any_order(names):
    slices = [scan(case, index) for case in "ab" for index in range(6)]
    forth = {(s.case, s.index): whole(vary(s, names, 3, 1)) for s in slices}
    back = {(s.case, s.index): whole(vary(s, names, 3, 1)) for s in reversed(slices)}
    assert forth == back
    changed = [s for s in slices if forth[s.case, s.index] != whole(s)]
    assert 2 <= len(changed) <= len(slices)
    others = {(s.case, s.index): whole(vary(s, names, 3, 2)) for s in slices}
    assert others != forth
    assert all(whole(vary(s, names, 3, 0)) == whole(s) for s in slices)


@pytest.mark.parametrize("names", [ALL, PLACES])
def test_object_numbers_move_with_the_labels(names):
    sample = scan()
    numbered = replace(sample, instances=np.int32(1000) * sample.labels.astype(np.int32))
    moved = 0
    for number in range(1, 20):
        changed = vary(numbered, names, 0, number)
        assert changed.instances.dtype == np.int32
        assert np.array_equal(changed.instances, 1000 * changed.labels.astype(np.int32))
        moved += changed.instances.shape != sample.labels.shape or bool(
            (changed.labels != sample.labels).any()
        )
    assert moved > 5


@pytest.mark.parametrize("names", [ALL, PLACES, VALUES])
def test_no_new_label_and_no_new_shape_of_bytes(names):
    for number in range(1, 25):
        changed = vary(scan(), names, 0, number)
        assert set(np.unique(changed.labels)) <= {0, 3, 7, 250}
        assert changed.labels.dtype == np.int16
        assert changed.image.dtype == np.uint8
        assert changed.image.shape == (*changed.labels.shape, 3)
        assert changed.image.flags.c_contiguous
        assert changed.labels.flags.c_contiguous
        assert (changed.image == changed.image[..., :1]).all(), "grey stays grey"
        if names == VALUES:
            assert np.array_equal(changed.labels, scan().labels)
        elif names == PLACES:  # image and labels went together, but for a border of mixed pixels
            assert (np.abs(changed.image[..., 0] - changed.labels.astype(int)) < 3).mean() > 0.85


@pytest.mark.parametrize(("degrees", "factor"), [(12, 1.0), (-15, 1.2), (0, 0.83), (91, 1.0)])
def test_a_turn_is_that_of_scipy(degrees, factor):
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (33, 48, 3), dtype=np.uint8)
    sample = Sample("a", 0, image, (image[..., 0] // 50).astype(np.int16))
    turned = turn(sample, degrees, factor)
    angle = np.deg2rad(degrees)
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / factor
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre - back @ centre
    for channel in range(3):
        plane = image[..., channel].astype(float)
        expected = affine_transform(plane, back, offset, order=1, mode="grid-constant")
        assert np.abs(turned.image[..., channel] - expected).max() <= 0.51
    nearest = affine_transform(sample.labels, back, offset, order=0, mode="grid-constant")
    assert (turned.labels == nearest).mean() > 0.98  # ties and the border's last half pixel


def test_given_prompts_turn_with_the_object():
    labels = np.zeros((40, 60), np.int16)
    labels[8:18, 30:50] = 1
    image = np.repeat((labels * 200).astype(np.uint8)[..., None], 3, axis=2)
    boxes, points = np.array([[30, 8, 50, 18]], np.float32), np.array([[31.5, 9.5]], np.float32)
    given = Sample("a", 0, image, labels, boxes, points, np.array([1]))
    for degrees, factor in ((10, 1.2), (-15, 0.8), (0, 1.25), (90, 1)):
        turned = turn(given, degrees, factor)
        rows, columns = np.nonzero(turned.labels)
        x0, y0, x1, y1 = turned.boxes[0]
        assert x0 - 0.6 <= columns.min() < columns.max() <= x1 - 0.4
        assert y0 - 0.6 <= rows.min() < rows.max() <= y1 - 0.4
        x, y = turned.points[0].astype(int)
        assert turned.labels[y, x] == 1
    cut = crop(given, np.random.default_rng(1))
    assert cut.boxes.tolist() != boxes.tolist()
    x, y = cut.points[0].astype(int)
    assert cut.labels[y, x] == 1


def test_a_crop_keeps_a_class_and_most_of_the_image():
    shapes, rng = set(), np.random.default_rng(0)
    for _ in range(60):
        sample = scan()
        cut = crop(sample, rng)
        shapes.add(cut.labels.shape)
        assert cut.labels.any()
        assert all(
            CROP * a - 0.5 <= b <= a for a, b in zip((41, 60), cut.labels.shape, strict=True)
        )
        places = [
            (r, c)
            for r in range(42 - cut.labels.shape[0])
            for c in range(61 - cut.labels.shape[1])
            if np.array_equal(
                sample.labels[r : r + cut.labels.shape[0], c : c + cut.labels.shape[1]], cut.labels
            )
        ]
        assert places, "a crop is a window of the slice"
    assert len(shapes) > 30
    empty = replace(scan(), labels=np.zeros((41, 60), np.int16))
    assert crop(empty, rng).labels.size > 0


def test_a_change_that_leaves_nothing_to_train_on_is_not_made():
    corner = np.zeros((41, 60), np.int16)
    corner[0, 0] = 1  # any turn moves it out
    sample = replace(scan(), labels=corner)
    lost = [vary(sample, ["rotate"], 0, number).labels.any() for number in range(1, 30)]
    assert not all(lost)
    kept = [
        vary(sample, ["rotate"], 0, number, lambda s: bool(s.labels.any())).labels.any()
        for number in range(1, 30)
    ]
    assert all(kept)
    point = replace(sample, points=np.array([[0.5, 0.5]], np.float32), point_labels=np.array([1]))
    for number in range(1, 30):
        inside = vary(point, ["rotate", "crop"], 0, number).points
        assert (inside >= 0).all()


def test_values_change_as_they_are_named():
    rng = np.random.default_rng(0)
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 48, axis=0)
    grey = np.repeat(ramp, 3, axis=2)
    brighter = shade(grey, ["intensity"], rng)
    assert (np.diff(brighter[0, :, 0].astype(int)) >= 0).all(), "the order of values stays"
    assert (brighter == brighter[:1]).all()
    flat = np.full((200, 220, 3), 128, np.uint8)
    noisy = shade(flat, ["noise"], np.random.default_rng(2)).astype(float)
    assert 0.5 < noisy.std() < 0.055 * 255
    assert abs(noisy.mean() - 128) < 1
    uneven = shade(flat, ["bias_field"], np.random.default_rng(2)).astype(float)
    assert np.abs(np.diff(uneven, axis=0)).max() <= 12, "smooth"
    assert np.ptp(uneven) > 20
    colour = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert not (shade(colour, ["noise"], rng)[..., 0] == colour[..., 0]).all()


def test_flips_alone_are_those_of_earlier_runs():
    """The features that an earlier version stored are found again."""
    drawn = [is_flipped(vary(replace(sample(), index=i), ["flip"], 0, 1)) for i in range(12)]
    expected = []
    for index in range(12):
        identity = hashlib.sha256(f"a\0{index}".encode()).digest()
        words = np.frombuffer(identity, np.uint32).tolist()
        expected.append(bool(np.random.default_rng([0, 1, *words]).random() < 0.5))
    assert drawn == expected


def stack_of(*images):
    """Slices of one volume: the same labels, other values."""
    return [replace(sample(), index=i, image=image) for i, image in enumerate(images)]


@pytest.mark.parametrize("grey", [True, False])
def test_the_slices_of_a_stack_change_alike_but_for_noise(grey):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (10, 20, 1 if grey else 3), dtype=np.uint8)
    image = np.broadcast_to(image, (10, 20, 3))
    without = [name for name in ALL if name != "noise"]
    moved = 0
    for number in range(1, 12):
        first, *others = changes.vary(stack_of(image, image, image), without, 0, number)
        moved += not np.array_equal(first.labels, sample().labels)
        for other in others:
            assert np.array_equal(first.image, other.image)
            assert np.array_equal(first.labels, other.labels)
    assert moved > 3
    one, two = changes.shade(np.stack([image, image]), ["noise"], rng)
    assert not np.array_equal(one, two)


def test_a_stack_keeps_what_any_of_its_slices_is_trained_on():
    """No slice is turned if one of them cannot be; slices without an object do not count."""
    empty = replace(sample(), labels=np.zeros((10, 20), np.int16), boxes=None, points=None)
    corner = replace(empty, labels=np.zeros((10, 20), np.int16))
    corner.labels[0, 0] = 1
    kept = [0, 0]
    for number in range(1, 30):
        found = changes.vary([empty, corner], ["rotate"], 0, number, lambda s: bool(s.labels.any()))
        assert found[1].labels.any()
        alone = changes.vary([corner], ["rotate"], 0, number)[0]
        same = np.array_equal(found[0].image, empty.image)
        kept[bool(alone.labels.any())] += not same
        assert same or alone.labels.any()
    assert kept[0] == 0
    assert kept[1] > 0


def test_ignored_pixels_move_with_the_image_and_draw_no_crop():
    """The picture marks where ignored pixels moved; crops are drawn around classes only."""
    labels = np.zeros((40, 60), np.int16)
    labels[5:15, 10:25] = IGNORED
    labels[30:34, 50:54] = 1
    image = np.repeat(np.where(labels == IGNORED, 200, 0)[..., None], 3, axis=2).astype(np.uint8)
    sample = Sample("a", 0, image, labels)
    for changed in (flip(sample), turn(sample, 12.0, 1.1), turn(sample, -8.0, 0.9)):
        assert changed.labels.dtype == np.int16
        assert set(np.unique(changed.labels)) == {IGNORED, 0, 1}
        marked = changed.image[..., 0] > 100
        assert ((changed.labels == IGNORED) ^ marked).mean() < 0.02
    for seed in range(20):
        (cut,) = changes.crop([sample], np.random.default_rng(seed))
        assert (cut.labels == 1).any()
