"""Tiles: sums of products that stay in vector registers for a whole loop, for numba's functions.

LLVM vectorises only the innermost of nested loops, and would load and store the sums at every step
of it. Here the vectors are written in LLVM's intermediate language: a tile is ROWS * columns
vectors of sums, and one step of its loop loads `ROWS` and `columns` factors and adds all their
products. With `COLUMNS` columns the registers are full: 4 * 6 of 32 with AVX-512, 4 * 3 of 16
without.

What a tile reads and writes is not checked against the arrays' bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gpu.numba.cache import target

_FEATURES = target()[2].split(",")
"""Features of the processor that numba compiles for, which need not be this one."""
_WIDE = "+avx512f" in _FEATURES
BYTES = 64 if _WIDE else 32 if "+avx" in _FEATURES else 16
"""Bytes of a vector."""
ROWS = 4
"""Rows of a tile."""
COLUMNS = 6 if _WIDE else 3
"""Columns of a tile."""
OUTPUT_MULTIPLE = 16
"""Numbers of outputs are rounded up to this, a multiple of the length of every vector."""


class _Tile:
    """The sums of a tile, and the instructions that compute them."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Type, itemsize: int, columns: int) -> None:
        self.builder, self.itemsize, self.lanes = builder, itemsize, BYTES // itemsize
        self.vector = ir.VectorType(value, self.lanes)
        zero = ir.Constant(self.vector, None)
        self.sums = [
            [cgutils.alloca_once_value(builder, zero) for _ in range(columns)] for _ in range(ROWS)
        ]

    def at(self, values: ir.Value, vector: int = 0) -> ir.Value:
        """Return a pointer to vector number `vector` after `values`."""
        start = self.builder.bitcast(values, self.vector.as_pointer())
        return self.builder.gep(start, [_int(vector)])

    def load(self, values: ir.Value, vector: int = 0) -> ir.Value:
        """Return the vector at `values`, at any alignment."""
        return self.builder.load(self.at(values, vector), align=self.itemsize)

    def repeat(self, value: ir.Value) -> ir.Value:
        """Return a vector with one value in every lane."""
        none = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(none, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(
            first, none, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        )

    def add_products(self, rows: list[ir.Value], columns: list[ir.Value]) -> None:
        """Add the product of every row's and every column's vector to its sums."""
        for j, column in enumerate(columns):
            for i, row in enumerate(rows):
                product = self.builder.fmul(row, column, flags=["contract"])
                total = self.builder.fadd(
                    self.builder.load(self.sums[i][j]), product, flags=["contract"]
                )
                self.builder.store(total, self.sums[i][j])

    def total(self, i: int, j: int) -> ir.Value:
        """Return the sum over the lanes of one vector of sums."""
        value = self.vector.element
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.itemsize}"
        reduce = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(value, [value, self.vector]), name
        )
        return self.builder.call(
            reduce, [value(-0.0), self.builder.load(self.sums[i][j])], fastmath=["reassoc"]
        )


def _int(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def _correlate_tile(vectors: int) -> Callable[..., None]:
    """Return a tile for ROWS channels of so many vectors of outputs."""

    @intrinsic
    def tile(_typing: Any, x: Any, first: Any, offsets: Any, w: Any, sums: Any) -> Any:
        """Write sums[i, first + p] = sum over the taps t of x[first + offsets[t] + p] * w[t, i].

        x is a row of values, offsets int64 [T], w [T, ROWS], sums [ROWS, outputs]; all contiguous.
        """

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            x, offsets, w, sums = (
                context.make_array(signature.args[n])(context, builder, args[n])
                for n in (0, 2, 3, 4)
            )
            first, outputs = args[1], builder.extract_value(sums.shape, 1)
            tile = _Tile(
                builder,
                context.get_value_type(signature.args[0].dtype),
                signature.args[0].dtype.bitwidth // 8,
                vectors,
            )
            with cgutils.for_range(builder, offsets.nitems) as taps:
                start = builder.gep(
                    x.data,
                    [builder.add(first, builder.load(builder.gep(offsets.data, [taps.index])))],
                )
                weights = builder.gep(w.data, [builder.mul(taps.index, _int(ROWS))])
                rows = [
                    tile.repeat(builder.load(builder.gep(weights, [_int(i)]))) for i in range(ROWS)
                ]
                tile.add_products(rows, [tile.load(start, j) for j in range(vectors)])
            for i, row in enumerate(tile.sums):
                target = builder.gep(sums.data, [builder.add(first, builder.mul(outputs, _int(i)))])
                for j, vector in enumerate(row):
                    builder.store(builder.load(vector), tile.at(target, j), align=tile.itemsize)
            return context.get_dummy_value()

        return types.void(x, first, offsets, w, sums), generate

    return tile


correlate_wide = _correlate_tile(COLUMNS)
"""A tile for COLUMNS vectors of outputs."""
correlate_narrow = _correlate_tile(1)
"""A tile for one vector of outputs."""


@intrinsic
def add_weight_tile(
    _typing: Any, x: Any, dy: Any, offsets: Any, starts: Any, outputs: Any, sums: Any
) -> Any:
    """Add to sums[i, j] the products x[n, offsets[j] + p] * dy[n, starts[i] + p].

    They are summed over all n and over p < outputs. x and dy are [N, values], offsets int64
    [COLUMNS], starts int64 [ROWS], sums [ROWS, COLUMNS]; all contiguous.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        x, dy, offsets, starts, sums = (
            context.make_array(signature.args[n])(context, builder, args[n])
            for n in (0, 1, 2, 3, 5)
        )
        tile = _Tile(
            builder,
            context.get_value_type(signature.args[0].dtype),
            signature.args[0].dtype.bitwidth // 8,
            COLUMNS,
        )
        offsets = [builder.load(builder.gep(offsets.data, [_int(j)])) for j in range(COLUMNS)]
        starts = [builder.load(builder.gep(starts.data, [_int(i)])) for i in range(ROWS)]
        count, *sizes = (
            builder.extract_value(x.shape, 0),
            *(builder.extract_value(array.shape, 1) for array in (x, dy)),
        )
        with cgutils.for_range(builder, count) as images:
            starts_of = zip((x, dy), sizes, strict=True)
            image, slopes = (
                builder.gep(array.data, [builder.mul(images.index, size)])
                for array, size in starts_of
            )
            with cgutils.for_range(builder, builder.udiv(args[4], _int(tile.lanes))) as steps:
                first = builder.mul(steps.index, _int(tile.lanes))
                rows = [
                    tile.load(builder.gep(slopes, [builder.add(start, first)])) for start in starts
                ]
                columns = [
                    tile.load(builder.gep(image, [builder.add(offset, first)]))
                    for offset in offsets
                ]
                tile.add_products(rows, columns)
        for i in range(ROWS):
            for j in range(COLUMNS):
                target = builder.gep(sums.data, [_int(i * COLUMNS + j)])
                builder.store(builder.fadd(builder.load(target), tile.total(i, j)), target)
        return context.get_dummy_value()

    return types.void(x, dy, offsets, starts, outputs, sums), generate
