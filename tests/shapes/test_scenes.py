"""Facts about scenes: geometry, keys, splits, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

import t2i.shapes
from t2i.errors import ConfigError, DataError
from t2i.shapes import (
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    Split,
    composition_key,
    needs_skill,
    sample_scene,
    split_of,
)
from t2i.shapes.scenes import IMAGE_SIZE_PX, RADIUS_PX, opposite, relation_between

KINDS = [Group(shape, colour) for shape in SHAPES for colour in COLOURS]


def _draw(split: Split, count: int, seed: int = 0, max_objects: int = MAX_OBJECTS) -> list[Scene]:
    return [sample_scene(seed, index, split, max_objects) for index in range(count)]


def _reach(group: Group) -> float:
    return 1.05 * RADIUS_PX[str(group.size)]


def test_public_names_are_sorted_and_exist() -> None:
    names = t2i.shapes.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(t2i.shapes, name) for name in names)


def test_a_scene_is_a_function_of_its_arguments() -> None:
    assert _draw("train", 50) == _draw("train", 50)
    assert _draw("train", 50) != _draw("train", 50, seed=1)


def test_objects_lie_inside_the_picture_and_never_touch() -> None:
    for scene in _draw("train", 3000):
        placed = [
            (x, y, _reach(group))
            for group, points in zip(scene.groups, scene.positions, strict=True)
            for x, y in points
        ]
        assert all(min(x, y) - reach >= 1.5 for x, y, reach in placed)
        assert all(max(x, y) + reach <= IMAGE_SIZE_PX - 1.5 for x, y, reach in placed)
        for (x1, y1, reach1), (x2, y2, reach2) in itertools.combinations(placed, 2):
            assert max(abs(x1 - x2), abs(y1 - y2)) >= reach1 + reach2 + 2


def test_positions_show_the_relation() -> None:
    for scene in _draw("train", 2000):
        if scene.relation is not None:
            assert relation_between(*scene.positions) == scene.relation


def test_groups_differ_and_numbers_stay_in_bounds() -> None:
    for max_objects in range(1, MAX_OBJECTS + 1):
        for scene in _draw("train", 500, max_objects=max_objects):
            numbers = [group.number or 0 for group in scene.groups]
            assert sum(numbers) <= max_objects
            assert len(numbers) == 1 or max(numbers) <= 2
            assert len({(group.shape, group.colour) for group in scene.groups}) == len(scene.groups)


def test_every_number_and_attribute_is_drawn() -> None:
    scenes = _draw("train", 1000)
    single = {scene.groups[0].number for scene in scenes if len(scene.groups) == 1}
    assert single == {1, 2, 3, 4}
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    assert {scene.groups[0].colour for scene in scenes} == set(COLOURS)


def test_composition_key_does_not_depend_on_the_direction_of_reading() -> None:
    for scene in _draw("train", 500):
        if scene.relation is not None:
            turned = Scene(scene.groups[::-1], opposite(scene.relation), scene.background)
            assert composition_key(turned) == composition_key(scene)


def test_composition_key_tells_which_group_is_where() -> None:
    first, second = Group("circle", "red", "small", 1), Group("square", "blue", "large", 2)
    assert composition_key(Scene((first, second), "left of", "gray")) == ("red", "circle", "left of", "blue", "square")
    assert composition_key(Scene((first, second), "right of", "gray"))[2:] == ("left of", "red", "circle")
    assert composition_key(Scene((second,), None, "gray")) == ("blue", "square", "large", 2)


def test_splits_share_no_composition_over_every_seed_tried() -> None:
    held_out = {composition_key(scene) for seed in range(3) for scene in _draw("heldout", 800, seed)}
    trained = {composition_key(scene) for seed in range(3) for scene in _draw("train", 1500, seed)}
    assert held_out
    assert not held_out & trained


def test_about_one_composition_in_eight_is_held_out() -> None:
    pairs = [(a, b) for a, b in itertools.permutations(KINDS, 2)]
    two = [
        Scene((replace(a, size="small", number=1), replace(b, size="small", number=1)), relation, "gray")
        for (a, b), relation in itertools.product(pairs, ("left of", "above"))
    ]
    one = [
        Scene((replace(kind, size=size, number=number),), None, "gray")
        for kind, size, number in itertools.product(KINDS, SIZES, (1, 2, 3, 4))
    ]
    for scenes in (one, two):
        share = sum(split_of(scene) == "heldout" for scene in scenes) / len(scenes)
        assert 0.08 < share < 0.17


def test_the_smallest_world_has_both_splits() -> None:
    assert {split_of(scene) for scene in _draw("heldout", 30, max_objects=1)} == {"heldout"}


def test_json_gives_the_scene_back() -> None:
    partial = Scene((Group("circle"), Group(colour="red", number=2)))
    for scene in [*_draw("train", 100), partial]:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


@pytest.mark.parametrize("values", [{}, {"groups": [{"form": "circle"}]}, {"groups": 3}])
def test_other_json_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(DataError, match="its keys are groups, relation, background, positions"):
        Scene.from_json(values)


def test_values_outside_the_world_are_refused() -> None:
    with pytest.raises(DataError, match="shape: found 'hexagon', expected one of circle"):
        Group("hexagon")
    with pytest.raises(DataError, match="number is 0"):
        Group(number=0)
    with pytest.raises(DataError, match="no groups"):
        Scene(())
    with pytest.raises(DataError, match="joins exactly two"):
        Scene((Group("circle"),), "above")
    with pytest.raises(DataError, match="one per object"):
        Scene((Group("circle", number=2),), positions=(((3.0, 4.0),),))
    with pytest.raises(DataError, match="partial"):
        composition_key(Scene((Group("circle"),)))
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        sample_scene(0, 0, "train", max_objects=5)


def test_a_relation_needs_a_clear_direction() -> None:
    assert relation_between([(10, 30)], [(50, 33)]) == "left of"
    assert relation_between([(30, 50)], [(33, 10)]) == "below"
    assert relation_between([(10, 10)], [(50, 50)]) is None
    assert relation_between([(10, 32), (60, 32)], [(50, 32)]) is None


@pytest.mark.parametrize(
    ("groups", "skills"),
    [
        ((Group("star", "red", "small", 1),), set()),
        ((Group("star", "red", "small", 3),), {"counting"}),
        ((Group("star", "red", "small", 1), Group("circle", "blue", "small", 1)), {"colour", "spatial"}),
        ((Group("star", "red", "small", 1), Group("circle", "red", "small", 1)), {"spatial"}),
        ((Group("star", "red", "small", 1), Group("star", "blue", "small", 1)), {"spatial"}),
        ((Group("star", "red", "small", 2), Group("circle", "blue", "small", 1)), {"counting", "spatial"}),
    ],
)
def test_skills_that_a_scene_tests(groups: tuple[Group, ...], skills: set[str]) -> None:
    scene = Scene(groups, "left of" if len(groups) == 2 else None, "black")
    assert {skill for skill in ("colour", "counting", "spatial") if needs_skill(scene, skill)} == skills
