"""The exceptions that end a command in one sentence: a user's mistake, and the loss of another process."""

EXIT_CODE = 2


class UserError(Exception):
    """A mistake in a configuration, a data file, the environment or a launch.

    The message is one sentence that names the place, the wrong value and the remedy. The command line prints it without a
    traceback and exits with code 2; any other exception is a defect of this package and keeps its traceback.

    Args:
        message: the sentence.
        local: True if only this process may have found the mistake, as in a row that only this process read. Mistakes that
            all processes find are printed once.
    """

    def __init__(self, message: str, *, local: bool = False) -> None:
        super().__init__(message)
        self.local = local


class PeerLostError(RuntimeError):
    """Communication failed because another process of the job has ended or is out of reach.

    Args:
        message: the sentence for the user; empty where another process tells the cause.
    """
