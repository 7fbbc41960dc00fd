"""`numba-adam climb`: draw plain gradient descent and Adam on their way down a valley.

`numba_adam.climb` walks and draws. May import the standard library and numba_adam.errors; the rest inside the
functions.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from numba_adam.errors import ConfigurationError

if TYPE_CHECKING:
    from numba_adam.climb.walks import Plan, Walk

_FORMATS = (".png", ".svg", ".pdf", ".gif")
_DESCRIPTION = """\
Draw two walks down one valley, seen from above: plain gradient descent, and Adam. A walker stands in fog and feels
only the slope. Plain gradient descent steps against it. Adam carries two compasses, for each coordinate a pair:

  momentum compass        exp_avg, where we've been: the average of the slopes. It gives the direction
  terrain compass         exp_avg_sq, how bumpy the road is: the average of their squares. It gives the length

The picture shows both at every step, and the first steps enlarged. Both averages begin at zero and are too small at
first. Bias correction divides them by what they hold so far: 1 - beta1^step and 1 - beta2^step. A file name that ends
in .gif makes a film of it, one frame for each step.

Adam is numba_adam.Adam, as in your programs. docs/how-adam-works.md explains the picture.

valleys:
"""
_EPILOG = """\
examples:
  numba-adam climb                                  the ravine: a zigzag and a walk; writes climb.png
  numba-adam climb --out climb.gif                  the same as a film
  numba-adam climb --angle 45                       turned: now both coordinates are equally bumpy
  numba-adam climb --betas 0 0.999                  without momentum
  numba-adam climb --valley plateau                 tiny slopes, the same strides: Adam's step has no unit
  numba-adam climb --valley bumps --plain-lr 0.5    dips that stop plain gradient descent
  numba-adam climb --lr 2 --steps 60                long strides: past the lowest point and back
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the description, the arguments and the examples."""
    from numba_adam.climb.valleys import SHAPES

    valleys = "".join(f"  {name:<24}{shape.summary}\n" for name, shape in SHAPES.items())
    parser.description, parser.epilog = _DESCRIPTION + valleys, _EPILOG
    own = "default: the valley's own"
    parser.add_argument("--valley", choices=SHAPES, default="ravine", help="which valley (default: %(default)s)")
    parser.add_argument("--steepness", metavar="S", type=float, help=f"the valley's number; see above ({own})")
    parser.add_argument(
        "--angle", metavar="DEGREES", type=float, default=0.0, help="turn the valley counter-clockwise (default: 0)"
    )
    parser.add_argument("--start", metavar=("X", "Y"), nargs=2, type=float, help=f"where both walks begin ({own})")
    parser.add_argument("--steps", metavar="N", type=int, help=f"how many steps each walk makes ({own})")
    parser.add_argument("--lr", metavar="LR", type=float, help=f"Adam's learning rate ({own})")
    parser.add_argument(
        "--betas",
        metavar=("BETA1", "BETA2"),
        nargs=2,
        type=float,
        default=(0.9, 0.999),
        help="how much of its past each compass keeps in a step (default: 0.9 0.999)",
    )
    parser.add_argument(
        "--eps", metavar="EPS", type=float, default=1e-8, help="added to the terrain compass (default: %(default)s)"
    )
    parser.add_argument(
        "--eps-mode",
        choices=("hat", "algorithm1"),
        default="hat",
        help="add it before or after the correction (default: %(default)s)",
    )
    parser.add_argument("--plain-lr", metavar="LR", type=float, help=f"learning rate of plain gradient descent ({own})")
    parser.add_argument(
        "--theme", choices=("light", "dark"), default="light", help="colours of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        "--output",
        metavar="FILE",
        type=_picture,
        default=Path("climb.png"),
        help="the file to write: .png, .svg, .pdf, or .gif for a film (default: %(default)s)",
    )


def _picture(text: str) -> Path:
    """Return the path if its suffix names a format that can be written."""
    if Path(text).suffix.lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"expected a file name that ends in {', '.join(_FORMATS)}, got {text!r}")
    return Path(text)


def run(arguments: argparse.Namespace) -> int:
    """Make both walks, write the picture or the film, and print where the walks ended.

    Raises:
        ConfigurationError: a number is out of range, or the file cannot be written.
        HyperparameterError: Adam refuses a hyperparameter.
    """
    import_module("matplotlib")  # report that it is missing before anything else
    from numba_adam.climb.movie import film
    from numba_adam.climb.picture import draw

    plan, path = _plan(arguments), arguments.out
    try:
        plain, adam = (film if path.suffix.lower() == ".gif" else draw)(plan, path, arguments.theme)
    except OSError as error:
        raise ConfigurationError(f"out: {path} cannot be written: {error.strerror or error}") from error
    print(_outcome("plain", plan.plain_lr, plan, plain))
    print(_outcome("adam", plan.lr, plan, adam))
    print(f"picture   {path}")
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan of the walks; the valley gives what the arguments leave out."""
    from numba_adam.climb.valleys import valley
    from numba_adam.climb.walks import Plan

    chosen = valley(arguments.valley, arguments.steepness, arguments.angle)
    x, y = chosen.start if arguments.start is None else arguments.start
    return Plan(
        chosen,
        (float(x), float(y)),
        chosen.shape.steps if arguments.steps is None else arguments.steps,
        chosen.shape.adam_lr if arguments.lr is None else arguments.lr,
        tuple(arguments.betas),
        arguments.eps,
        arguments.eps_mode,
        chosen.plain_lr if arguments.plain_lr is None else arguments.plain_lr,
    )


def _outcome(name: str, lr: float, plan: Plan, walk: Walk) -> str:
    """Return one line about a walk."""
    first, last = (float(height) for height in plan.valley.height(walk.places[[0, -1]]))
    steps = len(walk.places) - 1
    end = f"to {last:.4g} in {steps} steps" if steps == plan.steps else f"and off the map at step {steps}"
    return f"{name:<10}learning rate {lr:.4g}: from height {first:.4g} {end}"
