"""The two kinds of failure a user meets, each one message: what is wrong, where, what to do."""


class PreftuneError(Exception):
    """A failure that is told in one message, never in a stack trace.

    Args:
        error: What is wrong, in one sentence.
        where: File, row or key.
        advice: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, error: str, where: str = "", advice: str = "") -> None:
        self.error, self.where, self.advice = error, where, advice
        super().__init__(error, where, advice)  # all three, so that the exception survives pickling

    def __str__(self) -> str:
        text = f"{self.where}: {self.error}" if self.where else self.error
        return f"{text}\n  → {self.advice}" if self.advice else text

    def as_json(self) -> dict[str, str]:
        """The object that `--json` prints."""
        return {"error": self.error, "where": self.where, "advice": self.advice}


class UserError(PreftuneError):
    """The user's input is wrong (recipe, data, model): exit code 2, never retried."""

    exit_code = 2


class StepError(PreftuneError):
    """A step failed while running: exit code 1; a retry may help."""


class OutOfMemory(StepError):
    """A child ran out of memory. The same again would end the same way; less at a time may fit."""


class Hopeless(PreftuneError):
    """A sweep's trial that is far behind the others, ended while it runs. Not a fault: never retried."""
