"""The one exception for a user's mistakes, and how it becomes an exit code."""

EXIT_CODE = 2


class UserError(Exception):
    """A mistake in a configuration, a data file, the environment or a launch.

    The message is one sentence that names the place, the wrong value and the remedy. The command line prints it without a
    traceback and exits with code 2; everything else that is raised is a defect of this package and keeps its traceback.

    Args:
        message: the sentence.
        local: whether only this process may have found it, as with a row that only this process read. Mistakes that all
            processes find are printed once.
    """

    def __init__(self, message: str, *, local: bool = False) -> None:
        super().__init__(message)
        self.local = local
