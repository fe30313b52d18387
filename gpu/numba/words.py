"""What numba's functions take from LLVM: words of marks, one integer whose bits say which of 64
values are large, and arrays by their address.

LLVM does not generate words from a loop. So the comparison of 64 values is written in LLVM's
intermediate language, which becomes vector instructions of the processor that it is compiled for.
Positions are not checked against the arrays' bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WORD = 64
"""Values in a word."""
AHEAD = 1024
"""How many values ahead memory is prefetched, since processors do not prefetch beyond a page."""
LINE = 16
"""Values in a cache line."""

_INT = ir.IntType(32)
_LONG = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), WORD)
_INTS = ir.VectorType(_INT, WORD)
_MAGNITUDES = ir.Constant(_INTS, [0x7FFFFFFF] * WORD)


@intrinsic
def mark(_typing: Any, v: Any, first: Any, cut: Any) -> Any:
    """uint64: bit i says whether the magnitude of v[first + i] reaches the cut.

    v is float32, contiguous; `first` int64, `cut` int32.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = _load(builder, _pointer(context, builder, signature, args, 0, args[1]), write=0)
        return _marks(builder, values, args[2])

    return types.uint64(v, first, cut), generate


@intrinsic
def add_and_mark(_typing: Any, v: Any, gradient: Any, first: Any, cut: Any) -> Any:
    """`mark` of v[first : first + WORD] after the gradient there has been added to it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        v, gradient = (_pointer(context, builder, signature, args, n, args[2]) for n in (0, 1))
        values = builder.fadd(_load(builder, v, write=1), _load(builder, gradient, write=0))
        builder.store(values, builder.bitcast(v, _FLOATS.as_pointer()), align=4)
        return _marks(builder, values, args[3])

    return types.uint64(v, gradient, first, cut), generate


def _pointer(
    context: Any, builder: ir.IRBuilder, signature: Any, args: Any, n: int, first: ir.Value
) -> ir.Value:
    """A pointer to value number `first` of the n-th argument."""
    array = context.make_array(signature.args[n])(context, builder, args[n])
    return builder.gep(array.data, [first])


def _load(builder: ir.IRBuilder, pointer: ir.Value, write: int) -> ir.Value:
    """Load the values of a word, at any alignment, and prefetch those further ahead."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    for line in range(0, WORD, LINE):
        later = builder.bitcast(builder.gep(pointer, [_LONG(AHEAD + line)]), byte)
        # data (1) that shall stay in all caches (3)
        builder.call(prefetch, [later, _INT(write), _INT(3), _INT(1)])
    return builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


def _marks(builder: ir.IRBuilder, values: ir.Value, cut: ir.Value) -> ir.Value:
    """The word for a vector of values."""
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
    """The number of a uint64's lowest set bit; 64 if none is set."""
    none = ir.Constant(ir.IntType(1), 0)
    return _count(word), lambda context, builder, signature, args: builder.cttz(args[0], none)


def _count(word: Any) -> Any:
    """The signature of a function that counts bits."""
    return types.uint64(word) if word == types.uint64 else None


@intrinsic
def pointer_to(_typing: Any, address: Any) -> Any:
    """A pointer from an int64, for `numba.carray`."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate
