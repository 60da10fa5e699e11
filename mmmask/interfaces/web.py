"""Files behind web addresses, downloaded once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from iopath.common.file_io import PathHandler, get_cache_dir
from tqdm import tqdm

SECONDS = 30.0
"""Longest time that a server may send nothing."""
SLOWEST = 1000
"""Bytes per second that a download must reach, `SECONDS` aside."""
ROOM = 2**28
"""Bytes that a download leaves free on the disk: an endless one must not fill it."""
CHUNK = 2**20
KNOWN_ENDING = 60


class WebHandler(PathHandler):
    """Downloads what an address stands for, once, into the folder `mmmask` of iopath's cache.

    iopath's own handler names the file in its cache by the path alone, so that two hosts share it and `..` leaves the
    cache, and waits for a server for ever. Here the name is a digest of the whole address.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://", "ftp://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:  # noqa: ANN401 - iopath's
        self._check_kwargs(kwargs)
        folder = os.path.join(get_cache_dir(), "mmmask")
        kept = os.path.join(folder, _name(path))
        if force or not os.path.isfile(kept):
            os.makedirs(folder, exist_ok=True)
            # of its own, as several threads and processes may fetch the same file; the last one stays
            partial = f"{kept}.{uuid.uuid4().hex}.partial"
            try:
                with open(partial, "wb") as file:
                    _fetch(path, file)
                os.replace(partial, kept)
            except TimeoutError as error:
                raise TimeoutError(f"the server sent nothing for {SECONDS:g} seconds") from error
            except (HTTPException, ValueError) as error:
                raise OSError(f"{type(error).__name__}: {error}") from error
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(partial)
        return kept

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:  # noqa: ANN401
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise OSError(f"{path}: can be read only")
        return open(self._get_local_path(path), mode, buffering)


def _name(address: str) -> str:
    """Name in the cache: a digest, then the last part of the address, whose ending tells what the file is."""
    digest = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    try:
        last = urlsplit(address).path.rpartition("/")[2]
    except ValueError:  # such as brackets that do not match; the server will not be found either
        last = ""
    return f"{digest}_{re.sub(r'[^A-Za-z0-9._-]', '_', last)[-KNOWN_ENDING:]}"


def _fetch(address: str, file: IO[bytes]) -> None:
    started, received, folder = time.monotonic(), 0, os.path.dirname(file.name)
    with urlopen(address, timeout=SECONDS) as response:
        announced = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=announced or None, desc=address, unit="B", unit_scale=True, delay=5, disable=None) as bar:
            while part := response.read1(CHUNK):
                received += len(part)
                if time.monotonic() - started > SECONDS + received / SLOWEST:
                    raise OSError(f"the server is too slow: {received} bytes in {time.monotonic() - started:.0f} s")
                if shutil.disk_usage(folder).free < ROOM:
                    raise OSError(f"the disk of {folder} is nearly full; FVCORE_CACHE names another folder")
                file.write(part)
                bar.update(len(part))
    if received < announced or not received:
        raise OSError(f"the connection ended after {received} of {announced} bytes")
