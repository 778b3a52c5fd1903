"""Weights in safetensors files, and files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyattn.extras import needs
from pyattn.tensor import Array


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the name ``path`` when the block ends without an error.

    Raises OSError at once when the folder does not exist or cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; expected a file name")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    # Not tempfile: its files are readable by their owner only, whatever the umask says.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a temporary folder; what is written there moves beside ``path`` at the end.

    It does when the block ends without an error. The file ``path`` itself comes last; where it and
    another file replace old ones, the old one is removed first, so that nobody reads files that do
    not belong together.

    Raises OSError at once when the folder does not exist or cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; expected a file name")
    folder = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    folder.mkdir()
    try:
        yield folder / target.name
        others = [file for file in folder.iterdir() if file.name != target.name]
        for file in (*others, folder / target.name):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        if any((target.parent / file.name).exists() for file in others):
            target.unlink(missing_ok=True)
        for file in (*others, folder / target.name):
            file.replace(target.parent / file.name)
    finally:
        shutil.rmtree(folder)


def save(values: Mapping[str, Array] | Any, path: str | os.PathLike[str]) -> None:
    """Write the parameters of a module, or a mapping of names to arrays, as safetensors.

    Raises TypeError for a dtype that the format does not have, and OSError where the file cannot
    be written; a file that was there stays as it was.
    """
    needs("safetensors", "models")
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    named = values if isinstance(values, Mapping) else values.parameters()
    arrays = {}
    for name, array in named.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(array, np.ndarray):
            raise TypeError(
                f"save: expected names and arrays; got {name!r}: {type(array).__name__}"
            )
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    try:
        data = to_bytes(arrays)
    except (SafetensorError, KeyError) as error:
        raise TypeError(f"save: an array's dtype has no form in safetensors: {error}") from error
    with atomic_write(path) as file:
        file.write(data)


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read every array of a safetensors file.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is not a complete safetensors file, or holds a dtype that NumPy does not have.
    """
    needs("safetensors", "models")
    import ml_dtypes  # noqa: F401 -- gives NumPy the dtype bfloat16
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"load: there is no file {file}")
    try:
        return dict(load_file(file))
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"load: {file} is not a readable safetensors file: {error}") from error
