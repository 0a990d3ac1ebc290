"""Check which cores handle the network interrupts. They should be on the lowest core of a run, which comm gets first.

An interrupt on a training core delays its thread, and all threads of an OpenMP team wait for the slowest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_student.doctor.cores import show_cores, these
from edge_student.doctor.finding import Finding, note, ok, unknown, warning
from edge_student.host.counters import InterruptRow, Machine, parse_interrupt_rows
from edgekd.cli.cores import parse_cores

_CHECK = "cores.interrupts"
_GATEWAY = 0x2  # RTF_GATEWAY; a default route through a tunnel may lack this flag
_MIN_SHARE = 0.01  # of the interface's interrupts; leaves out rare ones, for example for changes of the link state


@dataclass(frozen=True, slots=True, kw_only=True)
class NicInterrupt:
    """One interrupt of the interface: its count per core, its allowed cores, and its current (effective) cores, if known."""

    number: str
    counts: dict[int, int]
    allowed: frozenset[int] | None
    effective: frozenset[int] | None

    @property
    def cores(self) -> frozenset[int]:
        """Return the cores that handle it: effective cores, else a single allowed core, else the core with the highest count."""
        if self.effective:
            return self.effective
        if self.allowed and len(self.allowed) == 1:
            return self.allowed
        return frozenset([max(self.counts, key=lambda core: self.counts[core])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """The interface of the default route. `name` is empty without a default route.

    `has_device` is false for a veth pair, a bridge or a tunnel. `is_readable` is whether /proc/interrupts can be read.
    """

    name: str
    has_device: bool
    is_readable: bool
    interrupts: tuple[NicInterrupt, ...]


def read_nic(machine: Machine) -> Nic:
    """Read the interface of the default route and its interrupts from the files below the machine's root."""
    name = _default_interface(machine)
    text = machine.text("proc/interrupts")
    rows = parse_interrupt_rows(text or "")
    device = machine.root / "sys/class/net" / name / "device"
    # The interrupts of a virtio interface belong to its parent, a PCI device.
    numbers = {entry.name for folder in (device, device.resolve().parent) for entry in folder.glob("msi_irqs/*")} if name else set()
    has_device = bool(name) and device.exists()
    names = [name, device.resolve().name]
    matching = [row for row in rows if has_device and row.label.isdigit() and (row.label in numbers or _is_of(row, names))]
    return Nic(
        name=name,
        has_device=has_device,
        is_readable=text is not None,
        interrupts=tuple(_read_interrupt(machine, row) for row in matching),
    )


def _default_interface(machine: Machine) -> str:
    """Return the interface of the default route with the lowest metric, IPv4 before IPv6. Empty without a default route."""
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
    """Return whether the name of an interrupt starts with the interface or its device: eth0-rx-1, virtio2-input.0, 2490000.qos."""
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


def check_interrupts(nic: Nic, chosen: Sequence[int]) -> Finding:
    """Check whether the network interrupts are on cores of comm or of training. `chosen` are the cores of a run, sorted."""
    if not nic.name:
        return unknown(
            _CHECK,
            "no interface has a default route, so the interface to the teacher is not known",
            "find the interface to the teacher in /proc/interrupts, and move its interrupts to the lowest core of a run",
        )
    total = sum(sum(irq.counts.values()) for irq in nic.interrupts)
    busy = [irq for irq in nic.interrupts if sum(irq.counts.values()) > _MIN_SHARE * total]
    if not chosen:
        return unknown(
            _CHECK,
            f"the cores of the interrupts of {nic.name} were not compared with those of a run, which may not use --cores",
            "choose other --cores first",
            interface=nic.name,
        )
    if not busy:
        return unknown(
            _CHECK,
            f"the cores of the interrupts of {nic.name} are not known: {_why_unknown(nic)}",
            "find its controller (mmc or xhci) in /proc/interrupts of the host, and move the interrupt to the lowest core of a run",
            interface=nic.name,
        )
    return _judge(nic, busy, chosen)


def _why_unknown(nic: Nic) -> str:
    if not nic.is_readable:
        return "/proc/interrupts cannot be read"
    if not nic.has_device:
        return "it is a tunnel, a bridge or a container interface, without hardware"
    return "it has no line in /proc/interrupts, as is usual for WiFi and USB adapters"


def _judge(nic: Nic, busy: Sequence[NicInterrupt], chosen: Sequence[int]) -> Finding:
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
    text = f"{'core' if len(cores) == 1 else 'cores'} {show_cores(cores)} {'handles' if len(cores) == 1 else 'handle'}"
    text += f" the interrupts of {nic.name}"
    training = sorted(set(cores) & set(chosen[1:]))
    if not training:
        reason = f"comm gets core {chosen[0]} first" if chosen[0] in cores else "a run does not use it"
        return ok(_CHECK, f"{text}; {reason}", **details)
    misplaced = [irq.number for irq in busy if not irq.cores.isdisjoint(training)]
    commands = "; ".join(f"echo {chosen[0]} | sudo tee /proc/irq/{number}/smp_affinity_list" for number in misplaced[:4])
    more = ", and the same for the other interrupts" if len(misplaced) > 4 else ""
    remedy = f"run `{commands}`{more}; stop irqbalance if it is active"
    if training[-1] in chosen[: len(chosen) // 2]:
        return note(_CHECK, f"{text}; they delay training unless the policy gives these cores to comm", remedy, **details)
    return warning(_CHECK, f"{text}; {these(training)} used for training, which every interrupt delays", remedy, **details)
