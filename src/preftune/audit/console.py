"""The audit in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from preftune.audit.tables import KINDS, count, kind_of, mixture_table, share, truncation_table

STYLES = {"bad": "red", "mid": "yellow", "": ""}


def plain(text: str, style: str = "") -> Text:
    """Text of a dataset: neither rich's markup nor the terminal's control characters work in it."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), style=style)


def _table(source: dict[str, Any]) -> Table:
    table = Table(title=plain(source["label"]), title_justify="left")
    for head in ("split", "check", "what happens"):
        table.add_column(head)
    table.add_column("rows", justify="right")
    table.add_column("for example", overflow="fold")
    for split in source["splits"]:
        for name in ("read", "kept"):
            table.add_row(plain(split["split"]), f"rows {name}", "", count(split[name]), "")
        if split["drawn"] < split["kept"]:
            table.add_row(plain(split["split"]), "drawn (max_rows)", "", count(split["drawn"]), "")
        for found in split["reasons"]:
            tone, words = KINDS[kind_of(found)]
            examples = plain(", ".join(found["examples"][:2]))
            cells = plain(found["reason"]), Text(words, style=STYLES[tone]), count(found["count"]), examples
            table.add_row(plain(split["split"]), *cells)
        table.add_section()
    return table


def show_audit(data: dict[str, Any], console: Console, page: Path) -> None:
    """Prints the audit: a table a dataset, the mixture, the truncation, and where the page is.

    Args:
        data: From `audit.collect`.
        console: Where to.
        page: The HTML page.
    """
    for source in data["sources"]:
        console.print(_table(source))
        for notice in source["notices"]:
            console.print(plain("note  " + notice, "yellow"))
        for split in source["splits"]:
            if split["figures"]:
                found = split["figures"]["length_accuracy"]
                text = f"{split['split']}: the {found['which']} answer is chosen in {found['value']:.1%}"
                console.print(plain(f"{text} (95% interval {found['low']:.1%} to {found['high']:.1%})"))
    mixture = Table("", "pairs", Column(justify="right"), title="mixture", title_justify="left", show_header=False)
    for sign, what, pairs in mixture_table(data):
        mixture.add_row(sign, plain(what), count(pairs), style="bold" if sign == "=" else "")
    console.print(mixture)
    for name, pairs in data["mixture"]["by_source"].items():
        console.print(plain(f"  {name}: {count(pairs)} ({share(pairs, data['mixture']['train'])})"))
    for notice in data["mixture"]["notices"]:
        console.print(plain("note  " + notice, "yellow"))
    console.print(plain(f"truncation: {truncation_table(data['truncation'])['summary']}"))
    console.print(plain(f"page: {page}"), soft_wrap=True)
