"""What the smoke runs measured: latency, placement, attention, utilization, loaded libraries.

Every run measures other numbers, so what lies within a run's noise is no difference. The gates
judge by the matrix's limits; here a figure only says where to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engines.diffing import changes
from engines.diffing.changes import Change, ChangeSeverity
from engines.diffing.machine import fits_pin
from engines.diffing.plans import Pair
from engines.diffing.proofs import change, grouped, judged
from engines.diffing.views import ABSENT, gpu_of
from planyard.core.results import (
    AttentionFigures,
    LatencyFigures,
    SmokeVerdict,
    UtilizationFigures,
)
from planyard.core.units import format_bytes

NOISE_SHARE = 0.05
"""P50 and peak memory within this share are the same."""
NOISE_MS = 0.05
NOISE_PERCENT = 5.0
_CPU = "CPUExecutionProvider"
_SHOWN = 4


def figure_changes(pair: Pair) -> list[Change]:
    """What was measured in the cells that both sides ran."""
    found = []
    for cell, (before, after) in judged(pair):
        if "not run" in (before.verdict, after.verdict):
            continue
        found += [
            *_latency_changes(pair, cell, before, after),
            *_placement_changes(pair, cell, before, after),
            *_attention_changes(pair, cell, before.attention, after.attention),
            *_utilization_changes(pair, cell, before.utilization, after.utilization),
        ]
    return found + _loaded_changes(pair)


def _latency_changes(
    pair: Pair, cell: str, before: SmokeVerdict, after: SmokeVerdict
) -> Iterator[Change]:
    here, there = (
        {(each.batch, each.concurrency): each for each in side.latency} for side in (before, after)
    )
    for key in sorted(here.keys() | there.keys()):
        one, other = here.get(key), there.get(key)
        batch, concurrency = key
        subject = f"P50 of {cell} at batch {batch}, {concurrency} at once"
        if one is None or other is None:
            values = (_ms(one), _ms(other))
            text = "timed now" if one is None else "not timed any more"
            yield _figure(pair, cell, "latency", subject, values, text, gone=other is None)
        elif (share := _slower(one, other)) is not None:
            text = f"{abs(share):.0%} {'slower' if share > 0 else 'faster'}"
            if one.reference_ms and other.reference_ms:
                text += ", the machine's own speed taken out"
            yield _figure(
                pair, cell, "latency", subject, (_ms(one), _ms(other)), text, gone=share > 0
            )


def _slower(before: LatencyFigures, after: LatencyFigures) -> float | None:
    """By which share the P50 is slower (or faster, below 0); None within the noise.

    Where both runs timed the reference load, P50 is taken in units of it.
    """
    scale = 1.0
    if before.reference_ms and after.reference_ms:
        scale = before.reference_ms / after.reference_ms
    more_ms = after.p50_ms * scale - before.p50_ms
    share = more_ms / before.p50_ms if before.p50_ms > 0 else 0.0
    return None if abs(share) <= NOISE_SHARE or abs(more_ms) <= NOISE_MS else share


def _ms(figures: LatencyFigures | None) -> str:
    return ABSENT if figures is None else f"{figures.p50_ms:.2f} ms"


def _figure(
    pair: Pair,
    cell: str,
    kind: str,
    subject: str,
    values: tuple[str, str],
    text: str,
    *,
    gone: bool,
) -> Change:
    severity: ChangeSeverity = "attention" if gone else "none"
    return change(
        pair, [cell], kind=kind, subject=subject, values=values, consequence=text, severity=severity
    )


def _placement_changes(
    pair: Pair, cell: str, before: SmokeVerdict, after: SmokeVerdict
) -> Iterator[Change]:
    """Where nodes ran, by provider and operator; and copies between host and device."""
    here, there = (
        Counter({(each.provider, each.operator): each.count for each in side.placement})
        for side in (before, after)
    )
    moved = sorted(key for key in here.keys() | there.keys() if here[key] != there[key])
    if moved:
        totals = [_by_provider(side) for side in (here, there)]
        if totals[0] == totals[1]:
            totals = [
                ", ".join(f"{key[1]} {side[key]}" for key in moved[:_SHOWN])
                for side in (here, there)
            ]
        seen = pair.after.gpus.get(gpu_of(cell))
        on_cpu = _more_on(here, there, provider=_CPU) and seen is not None and bool(seen.sm)
        shown = [f"{operator} {here[p, operator]} → {there[p, operator]}" for p, operator in moved]
        text = ", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else "")
        text = f"more nodes on the CPU: {text}" if on_cpu else f"nodes moved: {text}"
        yield _figure(
            pair, cell, "placement", f"nodes of {cell}", (totals[0], totals[1]), text, gone=on_cpu
        )
    if before.memcpy_nodes != after.memcpy_nodes:
        values = tuple(
            ABSENT if each is None else str(each)
            for each in (before.memcpy_nodes, after.memcpy_nodes)
        )
        more = after.memcpy_nodes is None or after.memcpy_nodes > (before.memcpy_nodes or 0)
        text = "more copies between host and device" if more else "fewer copies, or counted now"
        if after.memcpy_nodes is None:
            text = "nobody counted the copies between host and device"
        subject = f"copies in {cell}"
        yield _figure(pair, cell, "placement", subject, (values[0], values[1]), text, gone=more)


def _more_on(
    here: Counter[tuple[str, str]], there: Counter[tuple[str, str]], *, provider: str
) -> bool:
    """Whether some operator has more nodes on a provider than before."""
    return any(there[key] > here[key] for key in there if key[0] == provider)


def _by_provider(nodes: Counter[tuple[str, str]]) -> str:
    totals: Counter[str] = Counter()
    for (provider, _), number in nodes.items():
        totals[provider] += number
    texts = [f"{number} {provider}" for provider, number in sorted(totals.items())]
    return ", ".join(texts) or ABSENT


def _attention_changes(
    pair: Pair, cell: str, before: AttentionFigures | None, after: AttentionFigures | None
) -> Iterator[Change]:
    values = (_fused(before), _fused(after))
    if values[0] == values[1]:
        return
    left = [
        each.blocks - each.fused if each and each.fused is not None else None
        for each in (before, after)
    ]
    worse = left[1] is None or left[1] > (left[0] or 0)
    text = f"{left[1]} unfused" if left[1] is not None else "nobody counted fused attention"
    yield _figure(pair, cell, "attention", f"attention of {cell}", values, text, gone=worse)


def _fused(figures: AttentionFigures | None) -> str:
    if figures is None:
        return ABSENT
    fused = "unknown" if figures.fused is None else str(figures.fused)
    return f"{fused} of {figures.blocks} fused"


def _utilization_changes(
    pair: Pair, cell: str, before: UtilizationFigures | None, after: UtilizationFigures | None
) -> Iterator[Change]:
    if before is None or after is None:
        if before is not after:
            values = tuple(ABSENT if each is None else "sampled" for each in (before, after))
            text = "nobody watched the GPU" if after is None else "the GPU was watched"
            subject = f"utilization of {cell}"
            yield _figure(
                pair, cell, "utilization", subject, (values[0], values[1]), text, gone=after is None
            )
        return
    for what, here, there, worse in (
        ("GPU use", before.gpu_percent, after.gpu_percent, -1),
        ("throttling", before.throttled_percent, after.throttled_percent, 1),
    ):
        if (here is None) != (there is None) or abs((there or 0) - (here or 0)) > NOISE_PERCENT:
            less = there is None or ((there - (here or 0)) * worse > 0)
            values = tuple(ABSENT if each is None else f"{each:.0f} %" for each in (here, there))
            text = f"by {', '.join(after.throttled_by)}" if what == "throttling" else "on average"
            subject = f"{what} of {cell}"
            yield _figure(
                pair, cell, "utilization", subject, (values[0], values[1]), text, gone=less
            )
    yield from _utilization_rest(pair, cell, before, after)


def _utilization_rest(
    pair: Pair, cell: str, before: UtilizationFigures, after: UtilizationFigures
) -> Iterator[Change]:
    reasons = tuple(", ".join(sorted(each.throttled_by)) or "none" for each in (before, after))
    if reasons[0] != reasons[1]:
        worse = bool(set(after.throttled_by) - set(before.throttled_by))
        subject = f"throttling of {cell}"
        values = (reasons[0], reasons[1])
        yield _figure(pair, cell, "utilization", subject, values, "clocks held down by", gone=worse)
    peaks = (before.peak_memory_bytes, after.peak_memory_bytes)
    larger = max(peaks[0] or 0, peaks[1] or 0)
    if (peaks[0] is None) != (peaks[1] is None) or (
        abs((peaks[1] or 0) - (peaks[0] or 0)) > NOISE_SHARE * larger
    ):
        texts = tuple(ABSENT if each is None else format_bytes(each) for each in peaks)
        worse = peaks[1] is None or peaks[1] > (peaks[0] or 0)
        text = "more device memory" if worse else "less device memory"
        subject = f"peak memory of {cell}"
        yield _figure(pair, cell, "utilization", subject, (texts[0], texts[1]), text, gone=worse)


# Libraries in memory


def _loaded_changes(pair: Pair) -> list[Change]:
    def facts() -> Iterator[tuple[str, str, str, str]]:
        for cell, (before, after) in judged(pair):
            if "not run" in (before.verdict, after.verdict):
                continue
            for name in changes.union(before.loaded, after.loaded):
                here, there = (
                    side.loaded[name].version if name in side.loaded else ABSENT
                    for side in (before, after)
                )
                yield name, here, there, cell

    return grouped(pair, facts(), _loaded_change)


def _loaded_change(pair: Pair, name: str, before: str, after: str, cells: list[str]) -> Change:
    pins = {pair.after.gpus[gpu].pins.get(name, "") for gpu in pair.gpus} - {""}
    many = changes.count(len(cells), "cell")
    severity: ChangeSeverity = "none"
    text = f"loaded by {many}"
    if after == ABSENT:
        severity, text = "attention", f"not loaded any more by {many}"
    elif pins and not any(fits_pin(pin, after) for pin in pins):
        severity, text = "breaks", f"loaded by {many}, and {', '.join(sorted(pins))} is pinned"
    return change(
        pair,
        cells,
        kind="version",
        subject=f"{name} in memory",
        values=(before, after),
        consequence=text,
        severity=severity,
    )
