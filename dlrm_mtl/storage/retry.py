"""Retry: an action on storage is repeated after an error, with a remark, and then given up in one sentence."""

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
    """The result of ``action``, which is repeated after an error of the storage.

    Args:
        action: reads or writes something; storage errors are OSError and Arrow's.
        place: what is read or written, for the remark.
        pauses: seconds before each repetition; none for no repetition.
        mistake: makes the error of the last attempt.
        done: what happens to ``place``: ``read``, ``written`` or ``removed``.
        permanent: errors that no repetition helps.

    Raises:
        UserError: what ``mistake`` made.
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
