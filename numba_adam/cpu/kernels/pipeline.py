"""The passes that compile a kernel: those of Numba's that our sources need, and a faster merge. Imports Numba.

Numba's own pipeline has thirty passes for each function, among them passes for closures, `with` blocks, exceptions and
whole-array expressions, none of which a kernel has. They took a sixth of the time of a compilation.

Numba inlines a function's IR (see `compile.merged`) level by level, and copies it twice at each level. Here the
innermost functions are merged directly into the kernel, without copies: Numba's way took a seventh of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.inline_closurecall import InlineWorker
from numba.core.ir_utils import get_definition, guard, simplify_CFG
from numba.core.postproc import PostProcessor
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)


class _Worker(InlineWorker):  # type: ignore[misc]
    """Numba's inliner of one call, for functions whose IR is new and belongs to nobody else."""

    def __init__(self, state: Any) -> None:
        super().__init__(state.typingctx, state.targetctx, state.locals, state.pipeline, state.flags, validator=None)
        self._compiler_pipeline = lambda _: _manager(_READ)

    def run_untyped_passes(self, func: Any, enable_ssa: bool = False) -> Any:
        """Return the IR of a function, whose blocks are their own copies."""
        of_caller = self.flags.enable_ssa  # which Numba changes
        found = super().run_untyped_passes(func, enable_ssa)
        self.flags.enable_ssa = of_caller
        for block in found.blocks.values():
            block.__deepcopy__ = lambda _, own=block: own
        return found


@register_pass(mutates_CFG=True, analysis_only=False)
class _Merge(FunctionPass):  # type: ignore[misc]
    """Replaces each call of a `merged` function by its IR."""

    _name = "numba_adam_merge"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        """Merge calls, and the calls within what was merged, until none is left; say whether there were any."""
        worker, caller, is_changed = _Worker(state), state.func_ir, False
        blocks = list(caller.blocks.values())
        while blocks:
            block = blocks.pop()
            found = _first_merged_call(caller, block)
            if found is not None:
                index, function = found
                new = worker.inline_function(caller, block, index, function)[-1]
                blocks += [each for _, each in new]
                is_changed = True
        if is_changed:
            for label in compute_cfg_from_blocks(caller.blocks).dead_nodes():
                del caller.blocks[label]
            PostProcessor(caller).run()
            caller.blocks = simplify_CFG(caller.blocks)
        return is_changed


def _first_merged_call(caller: Any, block: Any) -> tuple[int, Any] | None:
    """Return where a block first calls a `merged` function, and the function; None if it calls none."""
    for index, statement in enumerate(block.body):
        if isinstance(statement, ir.Assign) and isinstance(statement.value, ir.Expr) and statement.value.op == "call":
            called: Any = getattr(guard(get_definition, caller, statement.value.func), "value", None)
            if getattr(called, "targetoptions", {}).get("inline") == "always":
                return index, called.py_func
    return None


_READ = (TranslateByteCode, FixupArgs, IRProcessing, RewriteSemanticConstants, DeadBranchPrune, GenericRewrites)
_MERGE = (_Merge, DeadBranchPrune, ReconstructSSA, DeadBranchPrune)
_TYPE = (NopythonTypeInference, PreLowerStripPhis)
_LOWER = (IRLegalization, AnnotateTypes, NativeLowering, NoPythonBackend)


def _manager(passes: Iterable[Any]) -> Any:
    """Return Numba's object for a row of passes."""
    manager = PassManager("numba_adam")
    for each in passes:
        manager.add_pass(each)
    manager.finalize()
    return manager


def kernel_pipeline() -> Any:
    """Return the passes of a kernel without `prange`, or of a function that kernels call."""
    return _manager((*_READ, *_MERGE, *_TYPE, *_LOWER))
