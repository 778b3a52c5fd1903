from collections.abc import Sequence
from typing import Any

import numpy as np

Buffer = bytes | bytearray | memoryview

def split(
    text: Buffer, depth: int, envelope: int
) -> tuple[str, tuple[int, int], bytes, list[tuple[int, int]]]: ...
def read(
    text: Buffer,
    begin: int,
    end: int,
    shape: Sequence[int],
    out: np.ndarray[Any, np.dtype[Any]] | None,
) -> tuple[str, int, int, tuple[int, int]]: ...
