"""A hint to the processor: this word will be needed, have it on its way from memory."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WRITE, _KEEP, _DATA = 1, 3, 1
"""It will be written; it should stay in all caches; it is no code."""

_declare: Any = cgutils.get_or_insert_function


def _prefetch(typingctx: Any, array: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(view.data, [arguments[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        hint = _declare(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [place, *(number(n) for n in (_WRITE, _KEEP, _DATA))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
"""``prefetch(array, word)``: that word of a contiguous array, counted from its start.

Never fails, also outside of the array (LLVM Language Reference, "llvm.prefetch").
"""
