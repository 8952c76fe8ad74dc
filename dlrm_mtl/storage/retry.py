"""Retry: an action on storage is repeated after an error, with a remark, and finally fails with one sentence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from dlrm_mtl.core.errors import UserError
from dlrm_mtl.storage.filesystems import first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")


def retry(
    action: Callable[[], T],
    place: str,
    pauses: Sequence[float],
    mistake: Callable[[Exception], UserError],
    *,
    done: str = "read",
    permanent: tuple[type[Exception], ...] = (FileNotFoundError,),
) -> T:
    """Result of ``action``, which is retried after an error of the storage.

    Args:
        action: function that reads or writes; storage errors are OSError and Arrow's.
        place: name of the file, for the remark.
        pauses: seconds before each retry; empty for no retry.
        mistake: makes the error from the last exception.
        done: past participle for the remark: ``read``, ``written`` or ``removed``.
        permanent: errors that are not retried.

    Raises:
        UserError: the result of ``mistake``.
    """
    for pause in (*pauses, None):
        try:
            return action()
        except (OSError, pa.ArrowException) as error:
            if pause is None or isinstance(error, permanent):
                raise mistake(error) from None
            logger.warning("%s: cannot be %s (%s); trying again in %g s", place, done, first_line(error), pause)
            time.sleep(pause)
    raise AssertionError
