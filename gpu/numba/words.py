"""Words of marks: which of 64 values are large, as the bits of one integer, for numba's compiled
functions.

LLVM turns no loop into this by itself. So the comparison of 64 values is written out in LLVM's own
language; it becomes the vector instructions of whatever processor it is compiled for. Places are
not checked against the arrays' bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WORD = 64
"""Values of a word."""
AHEAD, LINE = 1024, 16
"""How many values ahead memory is asked for, as processors do not by themselves beyond a page; and
values of a cache line.
"""

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), WORD), ir.VectorType(_INT, WORD)
_MAGNITUDES = ir.Constant(_INTS, [0x7FFFFFFF] * WORD)


@intrinsic
def mark(_typing: Any, v: Any, first: Any, cut: Any) -> Any:
    """uint64: bit i says whether the magnitude's bits of v[first + i] reach the cut.

    v is float32, contiguous; `first` int64, `cut` int32.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = _load(builder, _place(context, builder, signature, args, 0, args[1]), write=0)
        return _marks(builder, values, args[2])

    return types.uint64(v, first, cut), generate


@intrinsic
def add_and_mark(_typing: Any, v: Any, gradient: Any, first: Any, cut: Any) -> Any:
    """`mark` of v[first : first + WORD] after the gradient there has been added to it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        v, gradient = (_place(context, builder, signature, args, n, args[2]) for n in (0, 1))
        values = builder.fadd(_load(builder, v, write=1), _load(builder, gradient, write=0))
        builder.store(values, builder.bitcast(v, _FLOATS.as_pointer()), align=4)
        return _marks(builder, values, args[3])

    return types.uint64(v, gradient, first, cut), generate


def _place(
    context: Any, builder: ir.IRBuilder, signature: Any, args: Any, n: int, first: ir.Value
) -> ir.Value:
    """A pointer to value number `first` of the n-th argument."""
    array = context.make_array(signature.args[n])(context, builder, args[n])
    return builder.gep(array.data, [first])


def _load(builder: ir.IRBuilder, place: ir.Value, write: int) -> ir.Value:
    """A word's values, which may lie anywhere; those further on are asked for."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    for line in range(0, WORD, LINE):
        later = builder.bitcast(builder.gep(place, [_LONG(AHEAD + line)]), byte)
        builder.call(
            prefetch, [later, _INT(write), _INT(3), _INT(1)]
        )  # data, to stay in all caches
    return builder.load(builder.bitcast(place, _FLOATS.as_pointer()), align=4)


def _marks(builder: ir.IRBuilder, values: ir.Value, cut: ir.Value) -> ir.Value:
    """The word of a vector of values."""
    none = ir.Constant(_INTS, ir.Undefined)
    cuts = builder.shuffle_vector(
        builder.insert_element(none, cut, _INT(0)), none, ir.Constant(_INTS, None)
    )
    magnitudes = builder.and_(builder.bitcast(values, _INTS), _MAGNITUDES)
    return builder.bitcast(builder.icmp_signed(">=", magnitudes, cuts), _LONG)


@intrinsic
def ones(_typing: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""
    return _count(word), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def lowest(_typing: Any, word: Any) -> Any:
    """The number of a uint64's lowest set bit; 64 where none is."""
    none = ir.Constant(ir.IntType(1), 0)
    return _count(word), lambda context, builder, signature, args: builder.cttz(args[0], none)


def _count(word: Any) -> Any:
    """The signature of what counts bits."""
    return types.uint64(word) if word == types.uint64 else None
