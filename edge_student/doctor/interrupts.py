"""Which core the network interrupts. Comm takes the lowest cores of a run, so that is where they should come.

An interrupt on a core that trains stops its thread, and all threads of an OpenMP team wait for the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_student.doctor.cores import show_cores, these
from edge_student.doctor.finding import Finding, note, ok, unknown, warning
from edge_student.host.counters import InterruptRow, Machine, parse_interrupt_rows
from edgekd.cli.cores import parse_cores

_CHECK = "cores.interrupts"
_GATEWAY = 0x2  # RTF_GATEWAY; a default route through a tunnel may have none
_WORTH_NAMING = 0.01  # of the interface's interrupts: links that go up and down have interrupts of their own, which hardly come


@dataclass(frozen=True, slots=True, kw_only=True)
class NicInterrupt:
    """One interrupt of the interface: how often it came on each core, where it may come, and where it comes now, if known."""

    number: str
    counts: dict[int, int]
    allowed: frozenset[int] | None
    effective: frozenset[int] | None

    @property
    def cores(self) -> frozenset[int]:
        """Where it comes: what the kernel says, else where it may and can only come, else where it has come most."""
        if self.effective:
            return self.effective
        if self.allowed and len(self.allowed) == 1:
            return self.allowed
        return frozenset([max(self.counts, key=lambda core: self.counts[core])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """The interface of the default route; no name if there is no such route.

    `has_device` is false for one end of a veth pair, a bridge or a tunnel; `is_readable` says whether /proc/interrupts is.
    """

    name: str
    has_device: bool
    is_readable: bool
    interrupts: tuple[NicInterrupt, ...]


def read_nic(machine: Machine) -> Nic:
    """What the files below the machine's root say."""
    name = _default_interface(machine)
    text = machine.text("proc/interrupts")
    rows = parse_interrupt_rows(text or "")
    device = machine.root / "sys/class/net" / name / "device"
    # A virtio interface hangs below the PCI device that has the interrupts.
    numbers = {entry.name for folder in (device, device.resolve().parent) for entry in folder.glob("msi_irqs/*")} if name else set()
    has_device = bool(name) and device.exists()
    names = [name, device.resolve().name]
    ours = [row for row in rows if has_device and row.label.isdigit() and (row.label in numbers or _is_of(row, names))]
    return Nic(
        name=name,
        has_device=has_device,
        is_readable=text is not None,
        interrupts=tuple(_read_interrupt(machine, row) for row in ours),
    )


def _default_interface(machine: Machine) -> str:
    """The interface of the default route with the lowest metric, of IPv4 before IPv6; empty if there is none."""
    routes = [line.split() for line in (machine.text("proc/net/route") or "").splitlines()[1:]]
    found = [(int(row[6]), row[0]) for row in routes if len(row) > 7 and row[1] == row[7] == "00000000"]
    if not found:
        routes = [line.split() for line in (machine.text("proc/net/ipv6_route") or "").splitlines()]
        found = [
            (int(row[5], 16), row[9])
            for row in routes
            if len(row) > 9 and row[0] == "0" * 32 and row[1] == "00" and int(row[8], 16) & _GATEWAY
        ]
    return min(found)[1] if found else ""


def _is_of(row: InterruptRow, names: Sequence[str]) -> bool:
    """Whether an interrupt is named after the interface or its device: eth0, eth0-rx-1, virtio2-input.0, 2490000.ether_qos.rx0."""
    return any(word == name or (word.startswith(name) and word[len(name)] in "-.:_@") for word in row.words for name in names)


def _read_interrupt(machine: Machine, row: InterruptRow) -> NicInterrupt:
    lists: dict[str, frozenset[int] | None] = {}
    for file in ("smp_affinity_list", "effective_affinity_list"):
        try:
            lists[file] = parse_cores(machine.text(f"proc/irq/{row.label}/{file}") or "")
        except ValueError:
            lists[file] = None
    return NicInterrupt(
        number=row.label, counts=row.counts, allowed=lists["smp_affinity_list"], effective=lists["effective_affinity_list"]
    )


def find_interrupts(nic: Nic, chosen: Sequence[int]) -> Finding:
    """Whether comm or training has them, on the cores of a run."""
    if not nic.name:
        return unknown(
            _CHECK,
            "no interface has a default route, so it is not known whose interrupts matter",
            "look in /proc/interrupts which core those of the interface to the teacher come on; it should be the lowest of a run",
        )
    total = sum(sum(irq.counts.values()) for irq in nic.interrupts)
    busy = [irq for irq in nic.interrupts if sum(irq.counts.values()) > _WORTH_NAMING * total]
    if not busy or not chosen:
        why = "it has none of its own in /proc/interrupts, as WiFi and USB behind another controller"
        why = why if nic.has_device else "it is no hardware, but a tunnel, a bridge or a container's end of one"
        why = why if nic.is_readable else "/proc/interrupts cannot be read"
        return unknown(
            _CHECK,
            f"which core the interrupts of {nic.name} come on is not known: {why}",
            "look in /proc/interrupts of the host for its controller (mmc, xhci); it should be on the lowest core of a run",
            interface=nic.name,
        )
    details = {
        "interface": nic.name,
        "interrupts": {
            irq.number: {
                "cores": sorted(irq.cores),
                "counts": {str(core): count for core, count in irq.counts.items()},
                "smp_affinity": None if irq.allowed is None else sorted(irq.allowed),
            }
            for irq in busy
        },
    }
    cores = sorted(frozenset().union(*(irq.cores for irq in busy)))
    where = f"the interrupts of {nic.name} come on {'core' if len(cores) == 1 else 'cores'} {show_cores(cores)}"
    in_the_way = sorted(set(cores) & set(chosen[1:]))
    if not in_the_way:
        whose = f"core {chosen[0]} is the first that comm gets" if chosen[0] in cores else "a run has no thread there"
        return ok(_CHECK, f"{where}; {whose}", **details)
    wrong = [irq.number for irq in busy if not irq.cores.isdisjoint(in_the_way)]
    remedy = "; ".join(f"echo {chosen[0]} | sudo tee /proc/irq/{number}/smp_affinity_list" for number in wrong[:4])
    remedy = f"`{remedy}`{' and so on' if len(wrong) > 4 else ''}, and stop irqbalance if it runs"
    if in_the_way[-1] in chosen[: len(chosen) // 2]:
        text = f"{where}, which comm has only under a policy that gives it that many; else they stop training"
        return note(_CHECK, text, remedy, **details)
    text = f"{where}; {these(in_the_way)} training's, which every one of them stops"
    return warning(_CHECK, text, remedy, **details)
