"""How other libraries see an array: lazy where they ask politely, an error where they would compute unawares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from volara_expr.array.core import Array

__all__ = ["Interop"]


class Interop(Handle):
    """NumPy's protocols. `numpy.asarray` computes; ufuncs and the functions listed in `array.numpy_functions` stay lazy.

    There is no `__array_namespace__`: the array API standard demands functions that have no lazy form here (reshape, sort,
    matmul, arrays of unknown size), so libraries that ask for it would fail later and less clearly.
    """

    __slots__ = ()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a lazy array has no memory to share; it is computed into a new array")
        result = self._new(self.node).compute()
        return result if dtype is None else result.astype(dtype, copy=False)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        from volara_expr.array.numpy_functions import lazy_form

        return lazy_form(function)(*args, **kwargs)

    @property
    def real(self) -> Array:
        """The real part, as `numpy.real`.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1 + 2j, 3])).real.compute()
        array([1., 3.])
        """
        array = self._new(self.node)
        if array.dtype.kind != "c":
            return array
        return array.map_blocks(np.real, dtype=np.empty(0, array.dtype).real.dtype, name="numpy.real")

    @property
    def imag(self) -> Array:
        """The imaginary part, as `numpy.imag`; zeros for real numbers.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1 + 2j, 3])).imag.compute()
        array([2., 0.])
        """
        array = self._new(self.node)
        return array.map_blocks(np.imag, dtype=np.empty(0, array.dtype).real.dtype, name="numpy.imag")

    def __bool__(self) -> NoReturn:
        raise TypeError("the truth of a lazy array is not known; compute() it first, or use & | ~ and where() elementwise")

    def __iter__(self) -> NoReturn:
        raise TypeError("a lazy array is not iterated, for that would compute it piece by piece; use compute(), or index it")

    def __contains__(self, value: object) -> NoReturn:
        raise TypeError(f"whether a lazy array holds {value!r} is not known; ask (a == {value!r}).any().compute()")

    def _number(self) -> NoReturn:
        raise TypeError("a lazy array is no number before it is computed; use a.compute(), then float(...) or .item()")

    __float__ = __int__ = __complex__ = __index__ = _number
