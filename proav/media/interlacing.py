"""Makes interlaced pictures progressive (`Deinterlacer`).

In an interlaced picture every second row was taken half a frame later, so a moving edge looks like a comb.
FFmpeg's bwdif replaces the rows of the later field. The picture of the first field keeps the time stamp. This
module is private to `proav/media/pictures.py`.
"""

import av

MIN_SIDE = 16
"""Pixels. Smaller pictures are left as they are: bwdif needs some rows and columns of each plane."""


class Deinterlacer:
    """Returns one picture for each picture. Pictures not marked as interlaced pass unchanged.

    It costs nothing before the first interlaced picture. After that, each picture is returned one picture
    later, since bwdif uses both neighbours.
    """

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._kind: tuple | None = None

    def push(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Takes the next picture; returns what is ready."""
        if self._graph is None and not frame.interlaced_frame:
            return [frame]
        kind, finished = (frame.width, frame.height, frame.format.name), []
        if kind != self._kind:
            finished = self.finish()
            if not frame.interlaced_frame or min(frame.width, frame.height) < MIN_SIDE:
                return [*finished, frame]
            self._kind, self._graph = kind, _graph(frame)
        self._graph.vpush(frame)
        return finished + self._pull()

    def finish(self) -> list[av.VideoFrame]:
        """Returns the pictures still held, at the end of the stream."""
        if self._graph is None:
            return []
        self._graph.vpush(None)
        held = self._pull()
        self._graph = self._kind = None
        return held

    def _pull(self) -> list[av.VideoFrame]:
        frames = []
        while True:
            try:
                frames.append(self._graph.vpull())
            except (av.BlockingIOError, av.EOFError):  # no picture is ready, or the stream has ended
                return frames


def _graph(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")
    ).configure()
    return graph
