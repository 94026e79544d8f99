"""The command line. Importing it loads no library that a verb needs; verbs load their own."""


def main() -> None:
    """Run ``raypipe`` with the arguments of this process and exit."""
    from raypipe.cli._app import app

    app(prog_name="raypipe")
