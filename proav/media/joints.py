"""Packets in file order, with a mark at each joint: a place where the clock of a file starts anew.

Concatenated captures have a joint, and so have recordings that were stopped and started again. No packet is
decoded here; `demuxing.py` decodes. This module is private to `proav/media`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av

from proav.errors import MediaError

BACK_SECONDS = 0.5
"""If a clock goes back by more than this, it starts anew. If it goes back by less, data was sent twice."""
AHEAD_SECONDS = 30.0
"""If only one stream's clock jumps ahead by more than this, that stream has paused. If the clocks of all
streams jump, the clock of the file starts anew."""
WAIT_SECONDS = 5.0
"""How long a joint of one stream waits for the joint of the other, on the clock of the file. Multiplexers put
streams up to two seconds apart."""
MAX_LATE_SECONDS = 2.0
"""If a stream continues on the old clock for longer than this, it has no joint where the other has one."""
MIN_SKIPPED_SECONDS = 2.0
"""If only other tracks have packets for longer than this, that time is a stretch of its own. Multiplexers put
streams less far apart."""


@dataclass(frozen=True)
class Joint:
    """A new clock begins, or a stretch without the tracks that are read ends.

    starts: earliest time of each stream on the new clock, by the stream's index, in seconds.
    skipped_seconds: length of the stretch before the joint that held only packets of other tracks.
    """

    starts: dict[int, float]
    skipped_seconds: float = 0.0


def with_joints(
    packets: Iterable[av.Packet], time_bases: dict[int, Fraction], name: str
) -> Iterator[av.Packet | Joint]:
    """Yields the packets of the wanted streams, and a Joint before the first packet on a new clock.

    Packets of other streams are left out. If the file's beginning or end holds nothing else for more than
    MIN_SKIPPED_SECONDS, a Joint is yielded there, too.

    If packets of the old clock come after those of the new one, they are moved before the joint. A single
    packet with a stray time loses that time; its place is then guessed.

    packets: in file order.
    time_bases: seconds per tick of each wanted stream, by its index.
    name: of the file, for messages.
    Raises MediaError("bad_clock") if one stream starts anew and the other does not.
    """
    # floats: a Fraction takes ten times as long
    time_bases = {index: float(time_base) for index, time_base in time_bases.items()}
    last: dict[int, float] = {}
    # first and last time of each other stream since the last wanted packet
    others: dict[int, tuple[float, float]] = {}
    joining: _Joining | None = None
    for packet in packets:
        if not packet.size:
            continue
        index, dts = packet.stream_index, packet.dts
        if index not in time_bases:
            if dts is not None:
                time = float(dts * packet.time_base)
                others[index] = (others.get(index, (time, time))[0], time)
            continue
        time = None if dts is None else dts * time_bases[index]
        skipped = 0.0
        if others:
            skipped = _skipped(others)
            others.clear()
            if skipped and not last:
                yield Joint({}, skipped)
        if joining is not None:
            verdict = joining.take(packet, index, time, last)
            if verdict == "old":
                yield packet
            elif verdict in ("stray", "full"):
                yield from joining.released(stray=verdict == "stray")
                last = last if verdict == "stray" else dict(joining.last)
                joining = None
            if joining is not None:
                if joining.complete(len(time_bases)):
                    yield from joining.released()
                    last, joining = dict(joining.last), None
                continue
        if (
            time is not None
            and index in last
            and not last[index] - BACK_SECONDS <= time <= last[index] + AHEAD_SECONDS
        ):
            if time < last[index] or _all_behind(time, index, last):
                joining = _Joining(packet, index, time, last, time_bases, name, skipped)
                continue
        if time is not None:
            last[index] = time
        yield packet
    if joining is not None:
        yield from joining.released(stray=joining.num_packets == len(joining.last) == 1)
    if skipped := _skipped(others):
        yield Joint({}, skipped)


def _skipped(others: dict[int, tuple[float, float]]) -> float:
    seconds = max((last - first for first, last in others.values()), default=0.0)
    return seconds if seconds > MIN_SKIPPED_SECONDS else 0.0


def _all_behind(time: float, index: int, last: dict[int, float]) -> bool:
    """Whether every other stream is far behind this time.

    If one is not far behind, a pause of this stream explains the jump.
    """
    others = [value for other, value in last.items() if other != index]
    return bool(others) and all(time - value > AHEAD_SECONDS for value in others)


class _Joining:
    """Holds the packets of a new clock until that clock is certain and every stream has reached it."""

    def __init__(
        self,
        packet: av.Packet,
        index: int,
        time: float,
        old: dict[int, float],
        time_bases: dict[int, float],
        name: str,
        skipped: float,
    ) -> None:
        """packet: the first on the new clock.
        index: of its stream.
        time: of the packet, seconds.
        old: last time of each stream on the old clock, seconds.
        time_bases: seconds per tick of each stream.
        name: of the file, for messages.
        skipped: as Joint.skipped_seconds.
        """
        self._skipped = skipped
        self.first, self.last = index, {index: time}
        self.num_packets = 1
        self._begun = time
        self._back = time < old[index]
        self._old_end = max(old.values())
        self._old = dict(old)
        self._held = [packet]
        self._time_bases, self._name = time_bases, name

    def take(self, packet: av.Packet, index: int, time: float | None, old: dict[int, float]) -> str:
        """Says to which clock a packet belongs, and holds the packet if that is the new clock.

        packet, index: the packet and its stream.
        time: of the packet, in seconds; None if it has none.
        old: last time of each stream on the old clock; updated here.
        Returns "new": the packet is held. "old": it belongs to the old clock. "stray": only the first packet
        had a time on the new clock. "full": this packet belongs to yet another clock.
        """
        if index == self.first:
            if (
                time is not None
                and not self.last[index] - BACK_SECONDS <= time <= self.last[index] + AHEAD_SECONDS
            ):
                return "stray" if self.num_packets == 1 else "full"
            self.num_packets += 1
        elif index not in self.last:
            if time is None or (
                index in old
                and abs(time - self.last[self.first])
                >= min(abs(time - self._old_end), abs(time - old[index]))
            ):
                if time is not None:
                    old[index] = time
                    if self.num_packets > 1 and time - self._old_end > MAX_LATE_SECONDS:
                        said = (
                            f"the clock of one track starts anew after {self._old_end:.1f} s and that of "
                            "the other does not"
                        )
                        raise MediaError("bad_clock", f"{self._name}: {said}")
                return "old"
        elif (
            time is not None
            and not self.last[index] - BACK_SECONDS <= time <= self.last[index] + AHEAD_SECONDS
        ):
            return "full"
        if time is not None:
            self.last[index] = max(time, self.last.get(index, time))
        self._held.append(packet)
        return "new"

    def complete(self, num_streams: int) -> bool:
        return self.num_packets > 1 and (
            len(self.last) == num_streams or self.last[self.first] - self._begun > WAIT_SECONDS
        )

    def released(self, *, stray: bool = False) -> Iterator[av.Packet | Joint]:
        """Yields the joint, then the packets held.

        stray: there is no joint; the first packet loses its time.
        """
        if stray:
            self._held[0].pts = self._held[0].dts = None
        else:
            yield Joint(self._starts(), self._skipped)
        yield from self._held

    def _starts(self) -> dict[int, float]:
        starts: dict[int, float] = {}
        for packet in self._held:
            if packet.pts is not None:
                time = packet.pts * self._time_bases[packet.stream_index]
                starts[packet.stream_index] = min(time, starts.get(packet.stream_index, time))
        return starts
