"""The picture of docs/how-adam-works.md matches tools/draw_ravine.py, which shows real runs of Adam.

The committed files are compared by their points and their words, not byte by byte: other versions of Matplotlib write
other files.
"""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
POINTS_PER_INCH = 72
WALKS = ("gradient-descent", "adam")


@pytest.fixture(scope="module")
def ravine():
    spec = importlib.util.spec_from_file_location("draw_ravine", ROOT / "tools/draw_ravine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh(ravine, tmp_path_factory):
    return {path.name: ElementTree.parse(path) for path in ravine.draw(tmp_path_factory.mktemp("ravine"))}


def points(picture: ElementTree.ElementTree, name: str) -> np.ndarray:
    """Return the points of a named element, an array (n, 2)."""
    (group,) = [element for element in picture.iter() if element.get("id") == name]
    numbers = [NUMBER.findall(element.get("d")) for element in group.iter() if element.get("d")]
    return np.array([float(each) for one in numbers for each in one]).reshape(-1, 2)


def words(picture: ElementTree.ElementTree) -> list[str]:
    return ["".join(element.itertext()).strip() for element in picture.iter() if element.tag.endswith("}text")]


def names(ravine) -> list[str]:
    return [*WALKS, *(f"{dial}-{step}" for dial in ("momentum", "terrain", "step") for step in ravine.SHOWN)]


def adam(start, gradient, steps: int, lr: float) -> np.ndarray:
    """Adam as the paper has it, in plain NumPy."""
    place, mean, square, places = np.array(start), np.zeros(2), np.zeros(2), [np.array(start)]
    for step in range(1, steps + 1):
        grad = gradient(place)
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad * grad
        place = place - lr * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step))
        places.append(place)
    return np.array(places)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_committed_picture_matches_the_script(ravine, fresh, theme):
    committed, drawn = ElementTree.parse(ROOT / f"docs/ravine-{theme}.svg"), fresh[f"ravine-{theme}.svg"]
    assert words(committed) == words(drawn)
    for name in names(ravine):
        ours, theirs = points(committed, name), points(drawn, name)
        np.testing.assert_allclose(ours.min(axis=0), theirs.min(axis=0), atol=0.5, err_msg=name)
        np.testing.assert_allclose(ours.max(axis=0), theirs.max(axis=0), atol=0.5, err_msg=name)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_lines_in_the_picture_match_the_runs(ravine, theme):
    committed = ElementTree.parse(ROOT / f"docs/ravine-{theme}.svg")
    for name, places in zip(WALKS, (ravine.walk_plainly(), ravine.walk_with_adam()[0]), strict=True):
        inches = np.array([ravine.at(place) for place in places])
        inches[:, 1] = float(committed.getroot().get("viewBox").split()[3]) / POINTS_PER_INCH - inches[:, 1]
        np.testing.assert_allclose(points(committed, name), POINTS_PER_INCH * inches, atol=0.01, err_msg=name)


def test_adam_in_the_picture_follows_the_paper(ravine):
    expected = adam(ravine.START, ravine.slope, ravine.STEPS, ravine.ADAM_LR)
    np.testing.assert_allclose(ravine.walk_with_adam()[0], expected, rtol=1e-6, atol=1e-8)


def test_the_compasses_give_the_step(ravine):
    for reading in ravine.walk_with_adam()[1]:
        step = -ravine.ADAM_LR * reading.momentum / reading.terrain
        np.testing.assert_allclose(reading.moved, step, rtol=1e-6, atol=1e-9)


def test_plain_gradient_descent_has_its_best_learning_rate(ravine):
    """The slower direction shrinks by |1 - lr * curvature|, and no other rate makes this smaller."""
    rates = np.linspace(0.001, 2 / ravine.STEEPNESS, 10_000)
    worst = np.maximum(np.abs(1 - rates), np.abs(1 - rates * ravine.STEEPNESS))
    best = max(abs(1 - ravine.PLAIN_LR), abs(1 - ravine.PLAIN_LR * ravine.STEEPNESS))
    assert best <= worst.min() + 1e-12


def test_in_the_ravine_gradient_descent_zigzags_and_adam_does_not(ravine):
    plain, walked = ravine.walk_plainly(), ravine.walk_with_adam()[0]
    assert (plain[1:, 1] * plain[:-1, 1] < 0).all()  # every step crosses the floor
    assert np.count_nonzero(walked[1:, 1] * walked[:-1, 1] < 0) <= 4
    assert ravine.loss(walked[-1]) < ravine.loss(plain[-1]) / 5
