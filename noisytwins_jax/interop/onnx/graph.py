"""Translation of a function of JAX into an ONNX graph, operation by operation.

The networks exist once, in `noisytwins_jax.models`; this translates what JAX traces of them. Whatever does not depend on the
inputs (spectral normalisation, gains of weights) is computed here, and the graph holds its result. Operations that these
networks do not use are not translated.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import helper, numpy_helper

OPSET = 18
_END = np.iinfo(np.int64).max  # of a slice: to the end
_SAME = ("stop_gradient", "optimization_barrier", "copy", "copy_p", "reduce_precision")
_ELEMENTWISE = {  # JAX's name → those of ONNX, one after the other
    "add": ("Add",),
    "sub": ("Sub",),
    "mul": ("Mul",),
    "div": ("Div",),
    "max": ("Max",),
    "min": ("Min",),
    "neg": ("Neg",),
    "exp": ("Exp",),
    "tanh": ("Tanh",),
    "sqrt": ("Sqrt",),
    "rsqrt": ("Sqrt", "Reciprocal"),
    "eq": ("Equal",),
    "lt": ("Less",),
    "gt": ("Greater",),
    "ge": ("GreaterOrEqual",),
    "square": (),
    "select_n": (),
    "convert_element_type": (),
}


class _Tensor(NamedTuple):
    """A tensor of the graph. Its axes of size 1 may stand for longer ones of JAX's array: ONNX repeats them where it must."""

    name: str
    shape: tuple[Any, ...]


def to_graph(
    function: Callable[..., Any],
    arguments: Sequence[jax.ShapeDtypeStruct],
    inputs: Mapping[str, np.dtype],
    output: str,
    name: str,
) -> Any:
    """Translate a function into an ``onnx.GraphProto``.

    Args:
      function: of arrays to one array; float32 inside.
      arguments: shapes and dtypes; one symbolic dimension, the leading one of the first argument, is the batch.
      inputs: name of each argument, and its dtype in the file where it differs from JAX's (int64 for int32).
      output: name of the result.
      name: of the graph.

    Raises:
      NotImplementedError: the function uses an operation that is not translated.
    """
    graph = _Graph(next(iter(inputs)))
    closed = jax.make_jaxpr(function)(*arguments)
    values = []
    for (key, dtype), argument in zip(inputs.items(), arguments, strict=True):
        cast = key if dtype == argument.dtype else graph.add("Cast", key, to=_onnx_type(argument.dtype))
        values.append(_Tensor(cast, argument.shape))
    (result,) = graph.translate(closed, values)
    (aval,) = closed.out_avals
    graph.nodes.append(helper.make_node("Identity", [graph.whole(result, aval)], [output]))

    def declare(key: str, dtype: np.dtype, shape: Sequence[Any]) -> Any:
        return helper.make_tensor_value_info(key, _onnx_type(dtype), [d if _known(d) else "batch" for d in shape])

    declared = [declare(key, dtype, x.shape) for (key, dtype), x in zip(inputs.items(), arguments, strict=True)]
    return helper.make_graph(
        graph.nodes, name, declared, [declare(output, aval.dtype, aval.shape)], initializer=graph.initializers
    )


class _Graph:
    """The nodes and initializers so far; a value is an array of JAX or NumPy if known, otherwise a `_Tensor`."""

    def __init__(self, batched_input: str) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._batched_input, self._stored = batched_input, {}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or of its outputs."""
        names = [f"{op}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def store(self, array: Any) -> str:
        """Return the name of an initializer with this content."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = f"constant_{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(array, self._stored[key]))
        return self._stored[key]

    def integers(self, *values: Any) -> str:
        """Store a vector of sizes or positions; -1 for the batch."""
        return self.store(np.array([x if _known(x) else -1 for x in values], np.int64))

    def name(self, value: Any) -> str:
        """Return the name of a value as it is, with axes of size 1 that stand for longer ones."""
        return value.name if isinstance(value, _Tensor) else self.store(value)

    def whole(self, value: Any, aval: Any) -> str:
        """Return the name of a value with all axes of JAX's shape."""
        missing = [a != b for a, b in zip(value.shape, aval.shape, strict=True)]
        if not any(missing):
            return self.name(value)
        sizes = [b if needed else 1 for needed, b in zip(missing, aval.shape, strict=True)]
        if all(map(_known, sizes)):
            return self.add("Expand", self.name(value), self.integers(*sizes))
        batch = self.add("Shape", self._batched_input, start=0, end=1)
        parts = [self.integers(size) if _known(size) else batch for size in sizes]
        return self.add("Expand", self.name(value), self.add("Concat", *parts, axis=0))

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        """Add a reshape; at most one axis may be the batch."""
        return self.add("Reshape", name, self.integers(*shape))

    def transpose(self, name: str, permutation: Sequence[int]) -> str:
        """Add a transpose."""
        return self.add("Transpose", name, perm=list(permutation))

    def translate(self, closed: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
        """Translate equations and return the values of the results."""
        jaxpr = closed.jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *values], strict=True))

        def read(atom: Any) -> Any:
            aval = atom.aval
            return np.asarray(atom.val, aval.dtype) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            for variable, value in zip(equation.outvars, self._translate_one(equation, inputs), strict=True):
                known[variable] = value
        return [read(atom) for atom in jaxpr.outvars]

    def _translate_one(self, equation: Any, values: list[Any]) -> Sequence[Any]:
        op, params = equation.primitive.name, equation.params
        avals, results = [atom.aval for atom in equation.invars], [variable.aval for variable in equation.outvars]
        constant = not any(isinstance(value, _Tensor) for value in values)
        if inner := _inner(params):
            if params.get("name") == "leaky_relu" and not constant and not isinstance(values[1], _Tensor):
                return [_Tensor(self.add("LeakyRelu", values[0].name, alpha=float(values[1])), values[0].shape)]
            return self.translate(inner, values)
        if op in _SAME:
            return values
        if op == "cond" and not isinstance(values[0], _Tensor):  # a form by platform
            return self.translate(params["branches"][int(values[0])], values[1:])
        if op == "broadcast_in_dim":
            return [self._broadcast(values[0], results[0], params)]
        if constant and all(_known(d) for x in (*avals, *results) for d in x.shape):
            values = [jnp.broadcast_to(value, x.shape) for value, x in zip(values, avals, strict=True)]
            outputs = equation.primitive.bind(*values, **params)
            return outputs if equation.primitive.multiple_results else [outputs]
        if op in _ELEMENTWISE:
            axes = zip(*(x.shape for x in values if x.shape), strict=True)  # scalars go with every shape
            shape = tuple(next((d for d in sizes if not _is_one(d)), 1) for sizes in axes)
            return [_Tensor(self._elementwise(op, values, results[0]), shape)]
        if not hasattr(self, f"_{op}"):
            raise NotImplementedError(f"JAX's {op} is not translated into ONNX.")
        names = getattr(self, f"_{op}")(values, avals, results, params)
        names = [names] if isinstance(names, str) else names
        return [_Tensor(name, x.shape) for name, x in zip(names, results, strict=True)]

    def _elementwise(self, op: str, values: list[Any], result: Any) -> str:
        names = [self.name(value) for value in values]
        if op == "select_n":
            which, if_false, if_true = names
            return self.add("Where", which, if_true, if_false)
        if op == "convert_element_type":
            return self.add("Cast", names[0], to=_onnx_type(result.dtype))
        if op == "square":
            return self.add("Mul", names[0], names[0])
        first, *others = _ELEMENTWISE[op]
        name = self.add(first, *names)
        for other in others:
            name = self.add(other, name)
        return name

    def _broadcast(self, value: Any, result: Any, params: Mapping[str, Any]) -> Any:
        """Insert axes of size 1 and leave their repetition to whatever needs it."""
        shape = [1] * len(result.shape)
        for axis, size in zip(params["broadcast_dimensions"], value.shape, strict=True):
            shape[axis] = size
        if not isinstance(value, _Tensor):
            return jnp.reshape(value, shape)
        return value if tuple(shape) == value.shape else _Tensor(self.reshape(value.name, shape), tuple(shape))

    # One method for each operation of JAX, by its name: (values, their shapes, shapes of the results, parameters) → names.

    def _reshape(self, values, avals, results, params) -> str:
        return self.reshape(self.whole(values[0], avals[0]), results[0].shape)

    _squeeze = _reshape

    def _transpose(self, values, avals, results, params) -> str:
        return self.transpose(self.whole(values[0], avals[0]), params["permutation"])

    def _concatenate(self, values, avals, results, params) -> str:
        return self.add("Concat", *map(self.whole, values, avals), axis=params["dimension"])

    def _stack(self, values, avals, results, params) -> str:
        axis = self.integers(params["axis"])
        parts = [self.add("Unsqueeze", self.whole(value, x), axis) for value, x in zip(values, avals, strict=True)]
        return self.add("Concat", *parts, axis=params["axis"])

    def _split(self, values, avals, results, params) -> list[str]:
        sizes = self.integers(*params["sizes"])
        return self.add(
            "Split", self.whole(values[0], avals[0]), sizes, axis=params["axis"], outputs=len(params["sizes"])
        )

    def _slice(self, values, avals, results, params) -> str:
        name, starts, ends = self.whole(values[0], avals[0]), params["start_indices"], params["limit_indices"]
        return self._sliced(name, starts, ends, params["strides"] or (1,) * len(starts))

    def _sliced(self, name: str, starts: Sequence[int], ends: Sequence[Any], strides: Sequence[int]) -> str:
        ends = [end if _known(end) else _END for end in ends]
        positions = (starts, ends, range(len(ends)), strides)
        return self.add("Slice", name, *(self.integers(*values) for values in positions))

    def _gather(self, values, avals, results, params) -> str:
        dims, sizes = params["dimension_numbers"], params["slice_sizes"]
        if not isinstance(values[1], _Tensor) and values[1].size == len(dims.start_index_map):  # one slice, as w[:, 2]
            starts, ends = [0] * len(sizes), list(sizes)
            for axis, start in zip(dims.start_index_map, np.asarray(values[1]).ravel().tolist(), strict=True):
                starts[axis], ends[axis] = start, start + sizes[axis]
            return self.reshape(
                self._sliced(self.whole(values[0], avals[0]), starts, ends, [1] * len(sizes)), results[0].shape
            )
        if dims.start_index_map != (0,) or dims.collapsed_slice_dims != (0,) or sizes[1:] != avals[0].shape[1:]:
            raise NotImplementedError("A gather that is no look-up of rows is not translated into ONNX.")
        rows = self.reshape(self.whole(values[1], avals[1]), avals[1].shape[:-1])
        return self.add("Gather", self.whole(values[0], avals[0]), rows, axis=0)

    def _pad(self, values, avals, results, params) -> str:
        name, shape, config = self.whole(values[0], avals[0]), avals[0].shape, params["padding_config"]
        between = [interior for _, _, interior in config]
        if any(between):  # each pixel in a group of its own, filled up
            groups = [d for size, n in zip(shape, between, strict=True) for d in ((size, 1) if n else (size,))]
            fill = [d for n in between for d in ((0, n) if n else (0,))]
            name = self._padded(self.reshape(name, groups), [0] * len(fill), fill, values[1])
            name = self.reshape(name, [size * (n + 1) if n else size for size, n in zip(shape, between, strict=True)])
        low, high = [low for low, _, _ in config], [high - interior for _, high, interior in config]
        return self._padded(name, low, high, values[1])

    def _padded(self, name: str, low: Sequence[int], high: Sequence[int], fill: Any) -> str:
        return self.add("Pad", name, self.integers(*low, *high), self.name(fill)) if any((*low, *high)) else name

    def _dot_general(self, values, avals, results, params) -> str:
        """Multiply matrices, whose axes it orders (batch, free, contracted) and (batch, contracted, free)."""
        (contracted, batch) = params["dimension_numbers"]
        free = [
            [axis for axis in range(len(x.shape)) if axis not in (*c, *b)]
            for x, c, b in zip(avals, contracted, batch, strict=True)
        ]
        if any(len(c) != 1 for c in contracted) or len(free[1]) != 1 or (batch[0] and len(free[0]) != 1):
            raise NotImplementedError("A product over several axes is not translated into ONNX.")
        orders = [*batch[0], *free[0], *contracted[0]], [*batch[1], *contracted[1], *free[1]]
        names = [
            name if order == [*range(len(order))] else self.transpose(name, order)
            for name, order in zip(map(self.whole, values, avals), orders, strict=True)
        ]
        return self.add("MatMul", *names)

    def _reduce_sum(self, values, avals, results, params) -> str:
        return self._reduce("ReduceSum", values, avals, params)

    def _reduce_max(self, values, avals, results, params) -> str:
        return self._reduce("ReduceMax", values, avals, params)

    def _reduce(self, op: str, values: list[Any], avals: list[Any], params: Mapping[str, Any]) -> str:
        return self.add(op, self.whole(values[0], avals[0]), self.integers(*params["axes"]), keepdims=0)

    def _reduce_window_max(self, values, avals, results, params) -> str:
        """Take maxima of windows of ``[N, H, W, C]``."""
        name = self.transpose(self.whole(values[0], avals[0]), (0, 3, 1, 2))
        window, strides = (list(params[key][1:3]) for key in ("window_dimensions", "window_strides"))
        if any(map(any, params["padding"])) or len(avals[0].shape) != 4:
            raise NotImplementedError("Maxima of padded windows are not translated into ONNX.")
        return self.transpose(self.add("MaxPool", name, kernel_shape=window, strides=strides), (0, 2, 3, 1))

    def _conv_general_dilated(self, values, avals, results, params) -> str:
        if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
            raise NotImplementedError("A transposed convolution is not translated into ONNX.")
        dims, pads = params["dimension_numbers"], params["padding"]
        x = self.transpose(self.whole(values[0], avals[0]), dims.lhs_spec)
        if isinstance(values[1], _Tensor):
            weight = self.transpose(self.whole(values[1], avals[1]), dims.rhs_spec)
        else:
            weight = self.store(np.broadcast_to(values[1], avals[1].shape).transpose(dims.rhs_spec))
        y = self.add(
            "Conv",
            x,
            weight,
            group=params["feature_group_count"],
            strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]),
            pads=[before for before, _ in pads] + [after for _, after in pads],
        )
        return self.transpose(y, np.argsort(dims.out_spec).tolist())


def _known(size: Any) -> bool:
    return isinstance(size, int | np.integer)


def _is_one(size: Any) -> bool:
    return _known(size) and size == 1


def _onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _inner(params: Mapping[str, Any]) -> ClosedJaxpr | None:
    """Return the function that an operation calls, None if it calls none."""
    for value in params.values():
        if isinstance(value, ClosedJaxpr):
            return value
        if isinstance(value, Jaxpr):
            return ClosedJaxpr(value, ())
    return None
