"""One attempt at a step, as a context manager: a generator yields one after another."""


class Attempt:
    """Keeps the error of the step, for the generator, which decides what follows."""

    error: Exception | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None
