"""`eplb formats`: what can be read and written."""

import click

from .. import terminal

_EPILOG = """\b
Example:
  eplb formats
"""


@click.command("formats", epilog=_EPILOG)
def command() -> None:
    """List the files that can be read and written; formats are found by content, not by name."""
    from eplb.formats import native
    from eplb.formats.maps import ENGINES
    from eplb.formats.traces import READERS

    click.echo("recordings, read")
    terminal.facts([(r.NAME, r.DESCRIPTION) for r in READERS if r is not native])
    click.echo("\nfiles of this project's own, read and written")
    terminal.facts([
        (native.NAME, native.DESCRIPTION),
        ("eplb-plan", "the plan file: JSON, one layer a line"),
    ])  # fmt: skip
    click.echo("\nplacement maps, written by export and read by import")
    terminal.facts([(name, engine.DESCRIPTION) for name, engine in ENGINES.items()])
