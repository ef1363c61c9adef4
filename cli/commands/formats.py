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
    from eplb.formats.traces import READERS

    rows = [(reader.NAME, f"read       {reader.DESCRIPTION}") for reader in READERS]
    rows += [
        ("eplb", "written    traces by `eplb gen`: .npz, .json, .json.gz; routes as .npz only"),
        ("eplb-plan", "read, written  the plan file: JSON, one layer a line"),
    ]
    terminal.facts(rows)
