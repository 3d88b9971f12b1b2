"""The verb `devices`: what there is to compute on, what it is doing, and who holds it.

It looks once and holds nothing; a job may take a device in the next moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from trn.devices import Device, Holder, Inventory, holders, inventory
from trn.doors.lines import size
from trn.doors.listing import json_option
from trn.doors.text import clean_line
from trn.records import pretty_json

__all__ = ["devices_command"]

Json = dict[str, Any]


@click.command(name="devices")
@json_option
def devices_command(as_json: bool) -> None:
    """Show the accelerators and cores that a job started here may use, what they are doing, and who holds them.

    They are those that CUDA_VISIBLE_DEVICES and this process's affinity leave, counted in their order: what is called
    cuda:0 here is what --devices cuda:0 means. Held are devices that a job has leased; others may be busy all the
    same, with programs that ask nobody.
    """
    found, held = inventory(os.environ), holders(os.environ)
    if as_json:
        click.echo(pretty_json(_document(found, held)), nl=False)
        return
    rows = [("DEVICE", "NAME", "MEMORY FREE", "BUSY", "POWER", "HELD BY"), *_rows(found, held)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))
    for kind, reason in found.reasons.items():
        click.echo(clean_line(f"no {kind}: {reason}"), err=True)
    for reason in sorted({reason for one in found.accelerators for reason in one.reasons.values()}):
        click.echo(clean_line(f"not known: {reason}"), err=True)


def _document(found: Inventory, held: Mapping[str, Holder]) -> Json:
    devices = [one.to_json() | {"holder": asdict(held[one.key]) if one.key in held else None} for one in found.devices]
    return {"devices": devices, "reasons": dict(found.reasons)}


def _rows(found: Inventory, held: Mapping[str, Holder]) -> Iterator[tuple[str, ...]]:
    for one in found.accelerators:
        yield (*_cells(one), _told(held.get(one.key)))
    cores = found.of("cpu")
    busy = [one.utilisation_pct for one in cores if one.utilisation_pct is not None]
    mine = [one for one in cores if one.key in held]
    count = "1 core" if len(cores) == 1 else f"{len(cores)} cores"
    usage = f"{sum(busy) / len(busy):.0f}%" if busy else "-"
    yield ("cpu", count, "-", usage, "-", f"{len(mine)} of them" if mine else "nobody")
    for one in mine:
        yield (*_cells(one), _told(held[one.key]))


def _cells(one: Device) -> tuple[str, ...]:
    free, total = one.memory_free_bytes, one.memory_total_bytes
    return (
        one.id,
        clean_line(one.name or "-"),
        "-" if free is None or total is None else f"{size(free)} of {size(total)}",
        "-" if one.utilisation_pct is None else f"{one.utilisation_pct:.0f}%",
        "-" if one.power_w is None else f"{one.power_w:.0f} W",
    )


def _told(holder: Holder | None) -> str:
    return "nobody" if holder is None else clean_line(str(holder))
