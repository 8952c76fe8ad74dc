"""Kernels in C++ for tables in CPU memory; same functions and meaning as :mod:`reference`.

Most rows of a large table occur once in a batch. Such rows share the gradient of their bag; only the sums of rows that
occur several times are written out. Most rows need not be read to find a table's factor either, since a row's largest
gradient and its accumulator bound its factor from below.

Work is spread over ``torch.get_num_threads()`` threads of PyTorch's own pool. Results do not depend on the number of
threads, on the instruction set, or on which tables are processed together. The GIL is released.

The library is built when the package is installed. If that failed, :func:`native_status` returns the reason. The
environment variable DLRM_MTL_ISA (``avx512``, ``avx2``, ``portable``) limits the instruction set.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrm_mtl.embeddings.kernels import arithmetic, reference
from dlrm_mtl.embeddings.kernels.layout import KINDS, RowGradients, TableGroup, Update, empty_gradients

LIBRARY = Path(__file__).with_name("_native.so")
BUILD_LOG = Path(__file__).with_name("_native.log")
"""Log that setup.py writes if the library cannot be built; its first line is the reason."""

INTERFACE = 4
"""Value of ``dlrm_mtl_interface()`` in a library that fits this file."""


def native_status() -> str | None:
    """Reason why the native kernels cannot be used here, in one sentence; None if they can."""
    return _load()[1]


def isa(name: str | None = None) -> str:
    """Instruction set in use, after switching to ``name`` if it is given.

    Args:
        name: ``portable``, ``avx2``, ``avx512``, or empty for the best one of this processor.

    Raises:
        ValueError: this processor, or this build, lacks it.
    """
    global _isa
    if name is not None or _isa is None:
        wanted = os.environ.get("DLRM_MTL_ISA", "") if name is None else name
        chosen = _native().dlrm_mtl_select(wanted.encode())
        if chosen is None:
            raise ValueError(f"no instruction set {wanted!r} here: choose portable, avx2, avx512 or nothing")
        _isa = chosen.decode()
    return _isa


_isa: str | None = None


class SharedRowGradients(RowGradients):
    """Row gradients that are written out only when :attr:`gradients` is read."""

    def __init__(
        self,
        group: TableGroup,
        rows: Tensor,
        table_offsets: Tensor,
        square_sums: Tensor,
        maxima: Tensor,
        values: Tensor,
        sums: Tensor,
        sources: Tensor,
        scales: Tensor | None,
    ) -> None:
        """See TouchedRows in csrc/layout.h."""
        self.rows = rows
        self.table_offsets = table_offsets
        self.square_sums = square_sums
        self.maxima = maxima
        self.values = values
        self.sums = sums
        self.sources = sources
        self.scales = scales
        self._group = group

    @cached_property
    def gradients(self) -> Tensor:  # type: ignore[override]
        """[sum of U_t * D_t] float32: concatenated gradients of the rows. Once read, these values are used, even if changed."""
        sizes = self.table_offsets.diff() * self._group.dims
        out = torch.empty(int(sizes.sum()))
        if len(out):
            touched = _touched(self, None)
            _call("dlrm_mtl_expand", _tables(self._group), touched, out.data_ptr())
        return out


def function(name: str) -> ctypes._NamedFuncPointer:
    """A function of the library that returns whether it succeeded, for other modules with structures of their own."""
    isa()
    chosen = getattr(_native(), name)
    chosen.restype = ctypes.c_bool
    return chosen  # type: ignore[no-any-return]


def part_function(part: str, interface: int, arguments: list[type]) -> ctypes._NamedFuncPointer | None:
    """The function ``dlrm_mtl_PART`` of the library, which returns whether it succeeded.

    Args:
        part: name of a part of the library with a version of its own, ``dlrm_mtl_PART_interface()``.
        interface: the version that the caller fits.
        arguments: types of the function's arguments.

    Returns:
        The function; None if the library cannot be used here, or its part has another version.
    """
    library = _load()[0]
    version = getattr(library, f"dlrm_mtl_{part}_interface", None)
    if version is None or version() != interface:
        return None
    chosen = getattr(library, f"dlrm_mtl_{part}")
    chosen.argtypes, chosen.restype = arguments, ctypes.c_bool
    return chosen  # type: ignore[no-any-return]


def lookup(group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None = None) -> Tensor:
    """Sum the rows of each bag, see :func:`reference.lookup`.

    Raises:
        IndexError: an id is not a row of its table.
        ValueError: offsets or weights do not fit the ids.
    """
    indices, offsets, bag_weights = _ids(group, indices, offsets, bags, bag_weights)
    out = torch.empty(bags, group.output_offsets()[-1])
    weights, means = _pointer(bag_weights), _pointer(group.means)
    batch = _Batch(indices.data_ptr(), offsets.data_ptr(), None, len(indices), bags, None, 0, weights, means)
    _call("dlrm_mtl_lookup", _tables(group), batch, out.data_ptr())
    return out


def lookup_unpooled(group: TableGroup, indices: Tensor, lengths: list[int]) -> Tensor:
    """Return one row per id, see :func:`reference.lookup_unpooled`.

    Raises:
        IndexError: an id is not a row of its table.
        ValueError: lengths do not fit the ids, or tables differ in width.
    """
    dim, starts = _unpooled(group, indices, lengths)
    indices = indices.to(torch.int64).contiguous()
    offsets, out = torch.arange(len(indices) + 1), torch.empty(len(indices), dim)
    batch = _Batch(indices.data_ptr(), None, starts.data_ptr(), len(indices), 0, None, 0, None, None)
    _call("dlrm_mtl_lookup_rows", _tables(group), batch, offsets.data_ptr(), out.data_ptr())
    return out


def call_arrange(columns: ctypes.Array[Any], out: Tensor, backward: int) -> None:
    """Move columns to or from ``out`` [B, W] float32, for :mod:`arrange`."""
    _call("dlrm_mtl_arrange", columns, len(columns), out.data_ptr(), out.shape[0], out.shape[1], backward)


sort_pooled = reference.sort_pooled
"""Sorting in advance does nothing on a CPU, which sorts in :func:`collect`."""


def collect(
    group: TableGroup,
    indices: Tensor,
    offsets: Tensor,
    bags: int,
    gradient: Tensor,
    bag_weights: Tensor | None = None,
    occurrences: object | None = None,
) -> RowGradients:
    """Sum the gradient of a lookup by row, see :func:`reference.collect`. Keeps no reference to ``gradient``.

    Raises:
        IndexError: an id is not a row of its table.
        ValueError: offsets, weights or gradient do not fit the ids.
    """
    indices, offsets, bag_weights = _ids(group, indices, offsets, bags, bag_weights)
    width = group.output_offsets()[-1]
    if gradient.shape != (bags, width):
        raise ValueError(f"gradient has the shape {list(gradient.shape)}, not [{bags}, {width}]")
    gradient = _floats(gradient, "gradient")
    boundaries = offsets[:: max(bags, 1)] if bags else offsets.new_zeros(len(group.feature_tables) + 1)
    counts = torch.zeros(group.tables, dtype=torch.int64).index_add_(0, group.feature_tables, boundaries.diff())
    batch = _Batch(
        indices.data_ptr(),
        offsets.data_ptr(),
        None,
        len(indices),
        bags,
        gradient.data_ptr(),
        width,
        _pointer(bag_weights),
        _pointer(group.means),
    )
    values = torch.empty(bags * width)
    return _collect(group, batch, counts, bags * len(group.feature_tables), values, bag_weights is not None)


def collect_unpooled(group: TableGroup, indices: Tensor, lengths: list[int], gradient: Tensor) -> RowGradients:
    """Sum the gradient of an unpooled lookup by row, see :func:`reference.collect_unpooled`.

    The result refers to ``gradient``, which must not be changed any more.

    Raises:
        IndexError: an id is not a row of its table.
        ValueError: lengths or gradient do not fit the ids.
    """
    dim, starts = _unpooled(group, indices, lengths)
    if gradient.shape != (len(indices), dim):
        raise ValueError(f"gradient has the shape {list(gradient.shape)}, not [{len(indices)}, {dim}]")
    return _collect_rows(group, indices, starts, gradient.reshape(-1))


def merge(group: TableGroup, parts: list[RowGradients]) -> RowGradients:
    """Add the gradients of several backward passes, see :func:`reference.merge`."""
    if len(parts) == 1:
        return parts[0]
    rows, gradients = [], []
    for table in range(group.tables):
        rows += [part.part(part.rows, table) for part in parts]
        gradients += [part.gradient(group, table).reshape(-1) for part in parts]
    if not rows:
        return empty_gradients(group)
    starts = torch.stack([part.table_offsets for part in parts]).sum(dim=0)
    return _collect_rows(group, torch.cat(rows), starts, torch.cat(gradients))


def grams(group: TableGroup, gradients: RowGradients, tasks: int) -> Tensor:
    """Inner products of the tasks' gradients, see :func:`reference.grams`. A bag's shared gradient is multiplied only once."""
    if not isinstance(gradients, SharedRowGradients) or "gradients" in vars(gradients):
        return reference.grams(group, gradients, tasks)
    result = []
    for index, dim in enumerate(group.dims.tolist()):
        sources = gradients.part(gradients.sources, index)
        squares = None if gradients.scales is None else gradients.part(gradients.scales, index).square()
        total = torch.zeros(tasks, tasks, dtype=torch.float64)
        for buffer, chosen, places in (
            (gradients.values, sources >= 0, sources),
            (gradients.sums, sources < 0, ~sources),
        ):
            places = places[chosen]
            if len(places):
                first = int(places.min())
                counts = torch.bincount((places - first) // dim, None if squares is None else squares[chosen])
                rows = buffer[first : first + len(counts) * dim].view(len(counts), dim)
                used = counts > 0
                if not used.all():  # a bag's gradient that no row shares may be uninitialised
                    rows, counts = rows[used], counts[used]
                total += reference.rows_gram(rows, tasks, counts)
        result.append(total)
    return torch.stack(result)


def factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """Largest factor of each table, see :func:`reference.factors`."""
    return _by_rule("dlrm_mtl_factors", group.tables, group, state, gradients, mean_squares, rule, lr)


def row_factors(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """Largest factor of each touched row, see :func:`reference.row_factors`."""
    return _by_rule("dlrm_mtl_row_factors", len(mean_squares), group, state, gradients, mean_squares, rule, lr)


def largest_moves(
    group: TableGroup, state: Tensor, gradients: RowGradients, mean_squares: Tensor, rule: Update, lr: float
) -> Tensor:
    """Largest change of any coordinate of each table, see :func:`reference.largest_moves`."""
    return _by_rule("dlrm_mtl_largest_moves", group.tables, group, state, gradients, mean_squares, rule, lr)


def apply(
    group: TableGroup,
    state: Tensor,
    gradients: RowGradients,
    mean_squares: Tensor,
    factor: Tensor,
    rule: Update,
    lr: float,
) -> None:
    """Update the touched rows in place, see :func:`reference.apply`."""
    factor = _floats(factor, "factor")
    if len(factor) != group.tables:
        raise ValueError(f"{len(factor)} factors for {group.tables} tables")
    touched = _touched(_shared(group, gradients), mean_squares)
    _call("dlrm_mtl_apply", _tables(group), touched, _update(rule, lr), _state(group, state, rule), factor.data_ptr())


def _by_rule(
    name: str,
    size: int,
    group: TableGroup,
    state: Tensor,
    gradients: RowGradients,
    mean_squares: Tensor,
    rule: Update,
    lr: float,
) -> Tensor:
    """Result [size] of a library function about the touched rows."""
    result = torch.empty(size)
    touched = _touched(_shared(group, gradients), mean_squares)
    _call(name, _tables(group), touched, _update(rule, lr), _state(group, state, rule), result.data_ptr())
    return result


def _unpooled(group: TableGroup, indices: Tensor, lengths: list[int]) -> tuple[int, Tensor]:
    """Common width of all tables, and the start of each table's ids, [T + 1]."""
    dims = set(group.dims.tolist())
    if len(dims) != 1:
        raise ValueError(f"unpooled tables of one group must have one width, not {sorted(dims)}")
    if len(lengths) != len(group.feature_tables) or sum(lengths) != len(indices) or min(lengths, default=0) < 0:
        raise ValueError(
            f"lengths {lengths} of {len(group.feature_tables)} features do not add up to {len(indices)} ids"
        )
    starts = torch.zeros(group.tables + 1, dtype=torch.int64)
    starts.index_add_(0, group.feature_tables + 1, torch.tensor(lengths, dtype=torch.int64))
    return dims.pop(), starts.cumsum(0)


def _collect_rows(group: TableGroup, ids: Tensor, starts: Tensor, gradients: Tensor) -> RowGradients:
    """Sum gradients by row, one gradient for each id: ``ids`` [N] by table, ``starts`` [T + 1], ``gradients`` [N * D]."""
    ids, gradients = ids.to(torch.int64).contiguous(), _floats(gradients, "gradient")
    batch = _Batch(ids.data_ptr(), None, starts.data_ptr(), len(ids), 0, None, 0, None, None)
    return _collect(group, batch, starts.diff(), len(ids), gradients, False)


def _collect(
    group: TableGroup, batch: _Batch, counts: Tensor, payloads: int, values: Tensor, weighted: bool
) -> RowGradients:
    ids = batch.count
    keys = torch.empty(2 * ids, dtype=torch.int64)
    bag_of = torch.empty(ids if weighted else 0, dtype=torch.int32)
    payload_squares, payload_maxima = torch.empty(2, payloads)
    # A sum needs two ids. Pages of unused memory are never touched.
    sums = torch.empty(int(((counts.clamp(0, ids) // 2) * group.dims).sum()))
    rows, sources = torch.empty(2, ids, dtype=torch.int64)
    squares, maxima = torch.empty(2, ids)
    scales = torch.empty(ids) if weighted else None
    table_offsets = torch.empty(group.tables + 1, dtype=torch.int64)
    outputs = [keys, bag_of, payload_squares, payload_maxima, values, sums, rows, table_offsets, sources]
    pointers = [tensor.data_ptr() for tensor in outputs]
    collected = _Collected(*pointers, _pointer(scales), squares.data_ptr(), maxima.data_ptr())
    _call("dlrm_mtl_collect", _tables(group), batch, collected)
    touched = int(table_offsets[-1])
    return SharedRowGradients(
        group=group,
        rows=rows[:touched],
        table_offsets=table_offsets,
        square_sums=squares[:touched],
        maxima=maxima[:touched],
        values=values,
        sums=sums,
        sources=sources[:touched],
        scales=None if scales is None else scales[:touched],
    )


def _shared(group: TableGroup, gradients: RowGradients) -> SharedRowGradients:
    """The same gradients in the library's format."""
    if isinstance(gradients, SharedRowGradients) and "gradients" not in vars(gradients):
        return gradients
    values = _floats(gradients.gradients, "gradients")
    squares, maxima = torch.empty(2, len(gradients.rows))
    sources, measured, first = [torch.empty(0, dtype=torch.int64)], 0, 0
    for table, touched in enumerate(gradients.table_offsets.diff().tolist()):
        dim = int(group.dims[table])
        sources.append(torch.arange(first, first + touched * dim, dim))
        results = squares[measured:].data_ptr(), maxima[measured:].data_ptr()
        _call("dlrm_mtl_measure", _tables(group), values[first:].data_ptr(), dim, touched, *results)
        first, measured = first + touched * dim, measured + touched
    if first != len(values):
        raise ValueError(f"{len(values)} gradients, not {first}, for {len(gradients.rows)} touched rows")
    return SharedRowGradients(
        group=group,
        rows=gradients.rows.contiguous(),
        table_offsets=gradients.table_offsets,
        square_sums=gradients.square_sums,
        maxima=maxima,
        values=values,
        sums=torch.empty(0),
        sources=torch.cat(sources),
        scales=None,
    )


# ---- structures for the library, see csrc/layout.h ----


class _Tables(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("half", ctypes.c_int64),
        ("weight_offsets", ctypes.c_void_p),
        ("row_offsets", ctypes.c_void_p),
        ("dims", ctypes.c_void_p),
        ("feature_tables", ctypes.c_void_p),
        ("tables", ctypes.c_int64),
        ("features", ctypes.c_int64),
    ]


class _Problem(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int64), ("table", ctypes.c_int64), ("value", ctypes.c_int64)]


class _TouchedRows(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("rows", "table_offsets", "values", "sums", "sources", "scales", "maxima", "mean_squares")
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("ids", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("table_ids", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("bags", ctypes.c_int64),
        ("gradient", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("bag_weights", ctypes.c_void_p),
        ("means", ctypes.c_void_p),
    ]


class _Collected(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "keys",
            "bag_of",
            "payload_squares",
            "payload_maxima",
            "values",
            "sums",
            "rows",
            "table_offsets",
            "sources",
            "scales",
            "squares",
            "maxima",
        )
    ]


class _Update(ctypes.Structure):
    _fields_ = [
        *((field.name, ctypes.c_float if field.type == "float" else ctypes.c_int64) for field in fields(Update)),
        ("lr", ctypes.c_float),
    ]


def _tables(group: TableGroup) -> _Tables:
    weights = group.weights
    if weights.device.type != "cpu" or weights.dtype not in (torch.float32, torch.float16):
        raise TypeError(
            f"tables are {weights.dtype} on {weights.device}; these kernels need float32 or float16 on the CPU"
        )
    return _Tables(
        weights.data_ptr(),
        weights.numel(),
        weights.dtype == torch.float16,
        group.weight_offsets.data_ptr(),
        group.row_offsets.data_ptr(),
        group.dims.data_ptr(),
        group.feature_tables.data_ptr(),
        group.tables,
        len(group.feature_tables),
    )


def _touched(gradients: SharedRowGradients, mean_squares: Tensor | None) -> _TouchedRows:
    if mean_squares is not None and mean_squares.shape != gradients.rows.shape:
        raise ValueError(f"{len(mean_squares)} mean squares for {len(gradients.rows)} touched rows")
    tensors = [gradients.rows, gradients.table_offsets, gradients.values, gradients.sums, gradients.sources]
    touched = _TouchedRows(
        *(tensor.data_ptr() for tensor in tensors),
        _pointer(gradients.scales),
        gradients.maxima.data_ptr(),
        None,
    )
    touched.owner = gradients  # the structure holds only addresses
    if mean_squares is not None:
        touched.owner_of_squares = _floats(mean_squares, "mean_squares")
        touched.mean_squares = touched.owner_of_squares.data_ptr()
    return touched


def _update(rule: Update, lr: float) -> _Update:
    if rule.kind not in KINDS:
        raise ValueError(f"unknown rule {rule.kind!r}; known are {', '.join(KINDS)}")
    return _Update(**{**asdict(rule), "kind": KINDS.index(rule.kind), "lr": lr})


def _state(group: TableGroup, state: Tensor, rule: Update) -> int | None:
    if rule.kind == "sgd":
        return None
    rows = int(group.row_offsets[-1])
    if state.dtype != torch.float32 or len(state) != rows or not state.is_contiguous():
        raise ValueError(f"state is {list(state.shape)} {state.dtype}; {rows} float32 in a row are needed")
    return state.data_ptr()


def _ids(
    group: TableGroup, indices: Tensor, offsets: Tensor, bags: int, bag_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    expected = len(group.feature_tables) * bags + 1
    if len(offsets) != expected:
        raise ValueError(
            f"{len(offsets)} offsets, not {expected}, for {len(group.feature_tables)} features and {bags} bags"
        )
    if bag_weights is not None:
        if len(bag_weights) != len(indices):
            raise ValueError(f"{len(bag_weights)} weights for {len(indices)} ids")
        bag_weights = _floats(bag_weights, "bag_weights")
    return indices.to(torch.int64).contiguous(), offsets.to(torch.int64).contiguous(), bag_weights


def _floats(values: Tensor, name: str) -> Tensor:
    if values.dtype != torch.float32 or values.device.type != "cpu":
        raise TypeError(f"{name} is {values.dtype} on {values.device}, not float32 on the CPU")
    return values.detach().contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ---- the library ----


def _call(name: str, *arguments: ctypes.Structure | ctypes.Array[Any] | int | None) -> None:
    isa()
    problem = _Problem()
    passed = [ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument for argument in arguments]
    if not getattr(_native(), name)(*passed, torch.get_num_threads(), ctypes.byref(problem)):
        _raise(int(problem.kind), int(problem.table), int(problem.value))


def _raise(kind: int, table: int, value: int) -> None:
    if kind == 1:
        raise IndexError(f"id {value} is not a row of table {table}")
    if kind == 2:
        raise ValueError(f"offsets of table {table} descend or point outside of the ids")
    if kind == 3:
        raise ValueError(f"table {table}: {value} ids in one batch are too many for a table of its size")
    if kind == 5:
        raise ValueError(f"table {table} has dim {value}; these kernels need a multiple of 4")
    if kind == 6:
        raise ValueError(f"table {table} lies outside of the buffer, or features are not in the order of their tables")
    raise MemoryError("the sparse update found no memory")


def _native() -> ctypes.CDLL:
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"{reason}; dispatch.kernels_for() chooses the reference instead")
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    if not LIBRARY.exists():
        reason = (
            BUILD_LOG.read_text().partition("\n")[0]
            if BUILD_LOG.exists()
            else "they have not been built; install the package again"
        )
        return None, f"the native kernels are missing: {reason}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        found = library.dlrm_mtl_interface()
    except (OSError, AttributeError) as error:
        return None, f"the native kernels cannot be loaded: {error}"
    if found != INTERFACE:
        return None, f"the native kernels are of another version ({found}, not {INTERFACE}): install the package again"
    arithmetic.use_in(library)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.dlrm_mtl_select.argtypes, library.dlrm_mtl_select.restype = [ctypes.c_char_p], ctypes.c_char_p
    signatures: dict[str, list[type]] = {
        "dlrm_mtl_lookup": [pointer, pointer, pointer],
        "dlrm_mtl_lookup_rows": [pointer, pointer, pointer, pointer],
        "dlrm_mtl_collect": [pointer, pointer, pointer],
        "dlrm_mtl_arrange": [pointer, number, pointer, number, number, number],
        "dlrm_mtl_expand": [pointer, pointer, pointer],
        "dlrm_mtl_measure": [pointer, pointer, number, number, pointer, pointer],
        "dlrm_mtl_factors": [pointer, pointer, pointer, pointer, pointer],
        "dlrm_mtl_row_factors": [pointer, pointer, pointer, pointer, pointer],
        "dlrm_mtl_largest_moves": [pointer, pointer, pointer, pointer, pointer],
        "dlrm_mtl_apply": [pointer, pointer, pointer, pointer, pointer],
        "dlrm_mtl_apply_elements": [pointer, pointer, pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [*arguments, number, pointer], ctypes.c_bool
    return library, None
