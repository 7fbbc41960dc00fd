"""`numba-adam climb`: the valleys, the walks, the pictures and films, and what it refuses."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from numba_adam.cli import main
from numba_adam.climb.valleys import SHAPES, valley
from numba_adam.climb.walks import Plan, walk_plainly, walk_with_adam

NAMES = tuple(SHAPES)


def plan_for(name: str, **changes) -> Plan:
    chosen = valley(name)
    x, y = chosen.start
    settings = {"plain_lr": chosen.plain_lr, "lr": chosen.shape.adam_lr, "steps": chosen.shape.steps} | changes
    return Plan(chosen, settings.pop("start", (float(x), float(y))), **settings)


@pytest.mark.parametrize("angle", [0.0, 30.0, -110.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_slope_of_each_valley_is_the_derivative_of_its_height(name: str, angle: float) -> None:
    chosen, step = valley(name, angle_degrees=angle), 1e-6
    for place in np.random.default_rng(0).uniform(-2, 2, (20, 2)):
        differences = [
            (chosen.height(place + each) - chosen.height(place - each)) / (2 * step) for each in step * np.eye(2)
        ]
        np.testing.assert_allclose(chosen.slope(place), differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_no_place_lies_below_the_lowest_one(name: str) -> None:
    chosen = valley(name, angle_degrees=20)
    places = np.random.default_rng(0).uniform(-8, 8, (20_000, 2))
    assert chosen.height(places).min() >= chosen.height(chosen.lowest)
    np.testing.assert_allclose(chosen.slope(chosen.lowest), 0, atol=1e-12)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.5, 0.9)])
@pytest.mark.parametrize(("eps_mode", "eps"), [("hat", 1e-8), ("algorithm1", 0.5), ("hat", 0.5)])
@pytest.mark.parametrize("name", NAMES)
def test_adam_walks_as_the_paper_has_it(name: str, eps_mode: str, eps: float, betas: tuple[float, float]) -> None:
    plan = plan_for(name, betas=betas, eps=eps, eps_mode=eps_mode, steps=8)
    place, mean, square = np.array(plan.start), np.zeros(2), np.zeros(2)
    for reading in walk_with_adam(plan).readings:
        np.testing.assert_allclose(reading.place, place, rtol=1e-9, atol=1e-12)
        grad = plan.valley.slope(place)
        mean, square = betas[0] * mean + (1 - betas[0]) * grad, betas[1] * square + (1 - betas[1]) * grad * grad
        shares = 1 - betas[0] ** reading.step, np.sqrt(1 - betas[1] ** reading.step)
        added = eps if eps_mode == "algorithm1" else eps / shares[1]
        moved = -plan.lr * (mean / shares[0]) / (np.sqrt(square) / shares[1] + added)
        np.testing.assert_allclose(reading.moved, moved, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(reading.momentum, mean / shares[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(reading.terrain, np.sqrt(square) / shares[1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose((reading.momentum_share, reading.terrain_share), shares, rtol=1e-9)
        place = place + moved


@pytest.mark.parametrize("name", NAMES)
def test_with_its_own_settings_adam_ends_lower_than_gradient_descent(name: str) -> None:
    plan = plan_for(name)
    ends = np.array([walk.places[-1] for walk in (walk_with_adam(plan), walk_plainly(plan))])
    adam, plain = plan.valley.height(ends) - plan.valley.height(plan.valley.lowest)
    assert adam < plain / 5


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_png_of_each_valley(name: str, theme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "walk.png"
    assert main(["climb", "--valley", name, "--theme", theme, "--output", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.size[0] == 1500
        red, green, blue = picture.convert("RGB").getpixel((2, picture.size[1] - 2))
    assert max(red, green, blue) < 40 if theme == "dark" else min(red, green, blue) == 255
    plain, adam, where = capsys.readouterr().out.splitlines()
    assert plain.startswith("plain     learning rate ")
    assert adam.startswith(f"adam      learning rate {SHAPES[name].adam_lr}: from height ")
    assert where == f"picture   {path}"


@pytest.mark.slow
def test_a_gif_has_a_frame_for_each_step(tmp_path: Path) -> None:
    path = tmp_path / "walk.gif"
    assert main(["climb", "--steps", "5", "--out", str(path)]) == 0
    with Image.open(path) as film:
        assert film.n_frames == 5
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append((np.asarray(film.convert("RGB")).astype(int), film.info["duration"]))
        assert film.info["loop"] == 0
    images = [image for image, _ in frames]
    assert all(np.abs(one - other).max() > 100 for one, other in itertools.pairwise(images))
    assert frames[-1][1] > 5 * frames[0][1]  # it rests at the end


@pytest.mark.slow
def test_a_film_of_a_long_walk_leaves_steps_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba_adam.climb.movie.MOST_FRAMES", 4)
    path = tmp_path / "walk.gif"
    assert main(["climb", "--steps", "50", "--out", str(path)]) == 0
    with Image.open(path) as film:
        assert film.n_frames == 4


def words(path: Path) -> str:
    texts = [element for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]
    return "\n".join("".join(text.itertext()).strip() for text in texts)


@pytest.mark.slow
def test_hyperparameters_of_ones_own_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "walk.svg"
    options = "--start -6 2 --steps 7 --lr 0.5 --betas 0.5 0.75 --eps 1e-6 --steepness 10 --angle 15 --plain-lr 0.01"
    assert main(["climb", *options.split(), "--out", str(path)]) == 0
    shown = words(path)
    assert "Two walks of 7 steps down one valley: the ravine" in shown
    assert "Adam, learning rate 0.5: " in shown
    assert "Plain gradient descent, learning rate 0.01: " in shown
    for share in ("50 % by 2", "75 % by 1.3", "88 % by 1.1"):  # 1 - 0.5**step
        assert share.replace("by", "\N{MULTIPLICATION SIGN}") in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options",
    [
        "--lr 1e308 --steps 5",
        "--plain-lr 1e308",
        "--plain-lr 0.05",
        "--start 0 0",
        "--lr 0",
        "--steps 1",
        "--steps 3000",
        "--valley banana --start 100 100",
        "--valley plateau --start 100 -100",
        "--steepness 1e-3",
        "--steepness 1e4",
        "--betas 0 0",
        "--eps 1e300",
    ],
)
def test_extreme_settings_are_drawn_without_warnings(options: str, tmp_path: Path) -> None:
    path = tmp_path / "walk.png"
    assert main(["climb", *options.split(), "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_walk_that_diverges_is_said_to_leave_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "walk.svg"
    assert main(["climb", "--plain-lr", "0.05", "--out", str(path)]) == 0
    assert "plain     learning rate 0.05: from height 96.75 and off the map at step 17" in capsys.readouterr().out
    assert "Plain gradient descent, learning rate 0.05: leaves the map at step 17" in words(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lr -1", "lr=-1.0: "),
        ("--betas 1 0.5", "betas[0]=1.0: "),
        ("--eps nan", "eps=nan: "),
        ("--steps 0", "steps: expected a whole number in [1, 10000], got 0"),
        ("--steps 10001", "steps: expected a whole number in [1, 10000], got 10001"),
        ("--start nan 0", "start: expected two numbers in [-100, 100], got (nan, 0.0)"),
        ("--start 0 101", "start: expected two numbers in [-100, 100], got (0.0, 101.0)"),
        ("--plain-lr 0", "plain-lr: expected a positive number, got 0.0"),
        ("--plain-lr inf", "plain-lr: expected a positive number, got inf"),
        ("--steepness 0", "steepness: expected a number in [0.001, 10000], got 0.0"),
        ("--steepness nan", "steepness: expected a number in [0.001, 10000], got nan"),
        ("--angle 400", "angle: expected degrees in [-360, 360], got 400.0"),
        ("--out nowhere/walk.png", "out: nowhere/walk.png cannot be written: No such file or directory"),
        ("--out nowhere/walk.gif --steps 1", "out: nowhere/walk.gif cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["climb", *options.split()]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"numba-adam: {message}")
    assert (shown.out, shown.err.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])


@pytest.mark.parametrize(
    "options", ["--valley hill", "--out walk.bmp", "--out walk", "--theme red", "--start 1", "--steps 2.5"]
)
def test_an_invalid_option_is_a_usage_error(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["climb", *options.split()])
    assert exit_info.value.code == 2
    assert options.split()[0] in capsys.readouterr().err


def test_the_help_explains_the_compasses_and_every_valley(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["climb", "--help"])
    shown = capsys.readouterr().out
    for word in ("momentum compass", "terrain compass", "1 - beta1^step", *NAMES):
        assert word in shown
