"""The picture of docs/how-adam-works.md is what `numba-adam climb` draws, and it shows real runs of Adam.

The committed files are compared by their points and their words, not byte by byte: other versions of Matplotlib write
other files. To draw them again: numba-adam climb --theme light --out docs/climb-light.svg, and the same with dark.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.climb.sheet import sheet_for
from numba_adam.climb.valleys import valley
from numba_adam.climb.walks import Plan, walk_plainly, walk_with_adam

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
POINTS_PER_INCH = 72
WALKS = ("gradient-descent", "adam")
ENLARGED = [f"{dial}-{step}" for dial in ("momentum", "terrain", "step") for step in range(1, 6)]
CURVES = ("curve-momentum_share", "curve-terrain_share")
RAVINE = Plan(valley("ravine"), (-9.0, 1.5), 36, 0.3, plain_lr=2 / 51)
MAP_BOTTOM = 5.75  # inches


def points(picture: ElementTree.ElementTree, name: str) -> np.ndarray:
    """Return the points of a named element, an array (n, 2)."""
    (group,) = [element for element in picture.iter() if element.get("id") == name]
    numbers = [NUMBER.findall(element.get("d")) for element in group.iter() if element.get("d")]
    return np.array([float(each) for one in numbers for each in one]).reshape(-1, 2)


def words(picture: ElementTree.ElementTree) -> list[str]:
    return ["".join(element.itertext()).strip() for element in picture.iter() if element.tag.endswith("}text")]


def committed(theme: str) -> ElementTree.ElementTree:
    return ElementTree.parse(ROOT / f"docs/climb-{theme}.svg")


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
def test_the_committed_picture_is_what_the_command_draws(theme: str, tmp_path: Path) -> None:
    assert main(["climb", "--theme", theme, "--out", str(tmp_path / "climb.svg")]) == 0
    ours, drawn = committed(theme), ElementTree.parse(tmp_path / "climb.svg")
    assert words(ours) == words(drawn)
    for name in (*WALKS, *ENLARGED, *CURVES):
        one, other = points(ours, name), points(drawn, name)
        np.testing.assert_allclose(one.min(axis=0), other.min(axis=0), atol=0.5, err_msg=name)
        np.testing.assert_allclose(one.max(axis=0), other.max(axis=0), atol=0.5, err_msg=name)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_lines_in_the_picture_follow_the_papers_update(theme: str) -> None:
    gradient = np.array([1.0, 50.0])
    plain = [np.array([-9.0, 1.5])]
    for _ in range(36):
        plain.append(plain[-1] - 2 / 51 * gradient * plain[-1])
    walked = adam((-9.0, 1.5), lambda place: gradient * place, 36, 0.3)
    picture = committed(theme)
    sheet = sheet_for(RAVINE, (walk_plainly(RAVINE), walk_with_adam(RAVINE)), MAP_BOTTOM)
    for name, places in zip(WALKS, (np.array(plain), walked), strict=True):
        inches = sheet.at(places)
        inches[:, 1] = float(picture.getroot().get("viewBox").split()[3]) / POINTS_PER_INCH - inches[:, 1]
        np.testing.assert_allclose(points(picture, name), POINTS_PER_INCH * inches, atol=0.01, err_msg=name)


def test_the_picture_states_the_corrections_of_the_first_steps() -> None:
    shown = words(committed("light"))
    for step in (1, 2, 3, 4, 5):
        momentum, terrain = 1 - 0.9**step, np.sqrt(1 - 0.999**step)
        for share in (momentum, terrain):
            held, factor = (f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in (100 * share, 1 / share))
            assert f"{held} % \N{MULTIPLICATION SIGN} {factor}" in shown
        assert f"dotted: {momentum / terrain:.2g} \N{MULTIPLICATION SIGN}" in shown


def test_plain_gradient_descent_has_its_best_learning_rate_in_the_ravine() -> None:
    """The slower direction shrinks by |1 - lr * curvature|, and no other rate makes this smaller."""
    rates = np.linspace(0.001, 2 / 50, 10_000)
    worst = np.maximum(np.abs(1 - rates), np.abs(1 - rates * 50))
    chosen = valley("ravine").plain_lr
    assert max(abs(1 - chosen), abs(1 - chosen * 50)) <= worst.min() + 1e-12


def test_in_the_ravine_gradient_descent_zigzags_and_adam_does_not() -> None:
    plain, walked = walk_plainly(RAVINE).places, walk_with_adam(RAVINE).places
    assert (plain[1:, 1] * plain[:-1, 1] < 0).all()  # every step crosses the floor
    assert np.count_nonzero(walked[1:, 1] * walked[:-1, 1] < 0) <= 4
    assert RAVINE.valley.height(walked[-1]) < RAVINE.valley.height(plain[-1]) / 5


def test_in_a_ravine_that_runs_diagonally_adam_has_no_advantage() -> None:
    turned = valley("ravine", angle_degrees=45)
    x, y = turned.start
    plan = Plan(turned, (float(x), float(y)), 36, 0.3, plain_lr=turned.plain_lr)
    plain, walked = walk_plainly(plan).places, walk_with_adam(plan).places
    assert turned.height(walked[-1]) > turned.height(plain[-1])
