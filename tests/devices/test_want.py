"""What is said where devices cannot be had."""

from __future__ import annotations

from trn.devices.inventory import Device
from trn.devices.want import Holder, Want, busy


def core(number: int) -> Device:
    return Device(f"cpu:{number}", "cpu", None, None, f"cpu-{number}")


def test_of_many_holders_the_first_are_named_in_one_readable_line() -> None:
    mine, other = Holder("j-1", "one"), Holder("j-2", "two")
    held = [(core(number), mine) for number in range(60)] + [(core(60), other)]
    said = busy(Want(cpus=64), held, 3).message
    assert said == (
        "expected 64 cores, 3 of them free: cpu:0, cpu:1, cpu:2, cpu:3 and 56 more are held by job j-1 of run one; "
        "cpu:60 is held by job j-2 of run two."
    )
    crowd = [(core(number), Holder(f"j-{number}", "x")) for number in range(128)]
    assert busy(Want(cpus=128), crowd, 0).message.endswith("cpu:3 is held by job j-3 of run x and 124 more.")
