"""Runs the `autoopt` command within a test, and holds it to never show a traceback."""

from click.testing import CliRunner

from autoopt.cli import main


def run(*arguments, code=0):
    """The result of a command line, which must end with `code` and without a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result
