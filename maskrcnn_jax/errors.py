"""The error that means: what the user gave is wrong, not the program."""


class InputError(ValueError):
  """Wrong input: one line saying what, where, and what to do about it.

  `main` prints the message without a traceback and exits with status 2.  Any
  other exception is a failure while running and exits with status 1.
  """


class SaveError(RuntimeError):
  """Saving failed; what was saved before is as it was."""
