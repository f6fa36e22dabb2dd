"""One attempt at a step, as a context manager: a generator yields one after another."""

from types import TracebackType


class Attempt:
    """Keeps the error of the step, for the generator, which decides what follows."""

    error: Exception | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None
