"""The clips on a data set's page: some of each label, those with extreme scores, some that filters leave out,
and copies.

The choice of segments depends on the index alone, so that the same data set gives the same page. Their number
does not grow with the data set. The rest of the page is in `data_page.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav.config import Config
from proav.data.prepare.filtering import REASONS, hash_words
from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from proav.media.container import Clip
from proav.reports.kit.page import Markup, counted, element, number, warning
from proav.reports.run_files import ClipPlayers

MAX_SPREAD, MAX_COPIES = 6, 2
ENDS = (
    ("Most in step", "sync", -1),
    ("Least in step", "sync", 0),
    ("Most shot cuts", "cuts", -1),
    ("Most motion", "motion", -1),
    ("Least motion", "motion", 0),
    ("Quietest", "rms", 0),
)
"""Segments that are shown for their scores: title, score, and which end of the sorted score."""


def clip_sections(config: Config, folder: str, segments: pa.Table) -> list[tuple[str, str, list[Markup]]]:
    """(id, title, children) of the sections with players.

    folder: the data folder.
    segments: the whole index of a finished data set.
    """
    try:
        store = SegmentStore(folder)
    except UserError as error:
        return [("segments", "Segments", [warning(f"The shards cannot be opened: {error}")])]
    show = _Cards(ClipPlayers(config), store, config.clip.num_frames)
    used = store.indices()
    spread = _spread_over_labels(segments, used)
    ends = _ends_of_scores(segments, used, set(spread))
    note = (
        f"{counted(len(spread), 'segment')} of {number(len(used))} in use, spread over the labels; "
        "the clip in the middle of each, as the models see it."
    )
    sections = [
        (
            "segments",
            "Segments",
            [element("p", note, class_="note"), _grid(show.card(index) for index in spread)],
        )
    ]
    if ends:
        text = "Segments in use with the lowest or highest scores: a filter would leave these out first."
        cards = [show.card(index, title=title, around_cut=title == "Most shot cuts") for title, index in ends]
        sections.append(("ends", "Ends of the scores", [element("p", text, class_="note"), _grid(cards)]))
    left_out = _one_of_each_reason(segments)
    if left_out:
        text = (
            "One segment for each reason. They stay stored: other filters bring them back without decoding "
            "anything again."
        )
        cards = [
            show.card(index, title=reason.replace("_", " ").capitalize(), around_cut=reason == "shot_cuts")
            for reason, index in left_out
        ]
        sections.append(
            ("left-out", "Left out by filters", [element("p", text, class_="note"), _grid(cards)])
        )
    copies = _copies(segments)
    if copies:
        text = "A segment that was left out as a copy, beside the one that stays."
        pairs = [show.pair(kept, copy, name) for kept, copy, name in copies]
        sections.append(
            ("copies", "Copies", [element("p", text, class_="note"), element("div", pairs, class_="pairs")])
        )
    return sections


def file_name(source: str) -> str:
    return str(source).rstrip("/").rsplit("/", 1)[-1]


def _grid(cards: Iterable[Markup]) -> Markup:
    return element("div", list(cards), class_="grid")


def _spread_over_labels(segments: pa.Table, used: np.ndarray) -> list[int]:
    """Up to MAX_SPREAD of the used segments, spread evenly over their order by label."""
    codes = (
        segments.column("label").take(pa.array(used)).combine_chunks().dictionary_encode().indices.to_numpy()
    )
    ordered = used[np.argsort(codes, kind="stable")]
    count = min(MAX_SPREAD, len(ordered))
    return [int(ordered[place * len(ordered) // count]) for place in range(count)]


def _ends_of_scores(segments: pa.Table, used: np.ndarray, shown: set[int]) -> list[tuple[str, int]]:
    """(title, segment with the lowest or highest score). Of segments with equal scores, the first is taken.

    used: segments in use.
    shown: segments that are shown already. They are not chosen again; the chosen ones are added.
    """
    found = []
    for title, score, end in ENDS:
        values = _cut_counts(segments)[used] if score == "cuts" else segments.column(score).to_numpy()[used]
        values = values.astype(np.float64)
        allowed = np.isfinite(values) & ~np.isin(used, list(shown))
        if score == "cuts":
            allowed &= values > 0
        if not allowed.any():
            continue
        best = int(used[np.argmax(np.where(allowed, values if end else -values, -np.inf))])
        found.append((title, best))
        shown.add(best)
    return found


def _cut_counts(segments: pa.Table) -> np.ndarray:
    return pc.list_value_length(segments.column("shot_starts")).fill_null(0).to_numpy()


def _one_of_each_reason(segments: pa.Table) -> list[tuple[str, int]]:
    """(reason, first segment left out for it), without copies: those are shown beside their original."""
    found = []
    for reason in REASONS:
        place = pc.index(segments.column("dropped"), reason).as_py()
        if place >= 0 and "duplicate" not in reason:
            found.append((reason, place))
    return found


def _copies(segments: pa.Table) -> list[tuple[int, int, str]]:
    """(kept segment, its copy, kind) of the first copies that were left out.

    The kept segment is found by its checksum, or for near copies by the nearest hashes. A copy whose original
    was left out too is not shown.
    """
    kept = np.flatnonzero(pc.equal(segments.column("dropped"), "").to_numpy())
    checksums, found = segments.column("checksum"), []
    originals = checksums.take(kept)
    for copy in np.flatnonzero(pc.equal(segments.column("dropped"), "duplicate").to_numpy()).tolist():
        place = pc.index(originals, checksums[copy]).as_py()
        if place >= 0:
            found.append((int(kept[place]), copy, "The same bytes"))
            break
    near = np.flatnonzero(pc.equal(segments.column("dropped"), "near_duplicate").to_numpy())
    for copy in near[:MAX_COPIES].tolist():
        differing = np.zeros(len(kept), np.int64)
        for hashes in ("picture_hash", "sound_hash"):
            words = hash_words(segments.column(hashes))
            differing += np.bitwise_count(words[kept] ^ words[copy]).sum(axis=1, dtype=np.int64)
        best = int(np.argmin(differing))
        words = f"Alike: {differing[best]} of 512 bits of their fingerprints differ"
        found.append((int(kept[best]), copy, words))
    return found


@dataclass(frozen=True)
class _Cards:
    """Cards with players for segments of one store; `num_frames` is the length of a clip."""

    players: ClipPlayers
    store: SegmentStore
    num_frames: int

    def card(self, index: int, *, title: str | None = None, around_cut: bool = False) -> Markup:
        row = self.store.rows[index]
        start, frames = self._window(row, around_cut)
        label = row["label"] or "without a label"
        heading = f"{title}: {label}" if title else label
        tags = [
            file_name(row["source"]),
            f"from {row['start_seconds'] + start / row['fps']:.1f} s",
            row["split"],
            *_score_tags(row),
        ]
        text = element("figcaption", element("h3", heading), _tags(tags), class_="text")
        return element(
            "figure",
            self._player(row, index, start, frames, f"Segment of {file_name(row['source'])}, {heading}"),
            text,
            class_="card player",
        )

    def pair(self, kept: int, copy: int, name: str) -> Markup:
        rows = [self.store.rows[index] for index in (kept, copy)]
        start = min(self._window(row, False)[0] for row in rows)
        sides = []
        for side, index, row in zip(("In use", "Left out"), (kept, copy), rows, strict=True):
            frames = min(self.num_frames, row["num_frames"] - start)
            caption = element(
                "figcaption",
                f"{side}: {file_name(row['source'])}, from {row['start_seconds'] + start / row['fps']:.1f} s",
            )
            content = self._player(
                row,
                index,
                start,
                frames,
                f"{side}: {file_name(row['source'])}",
                title=f"Sound {side.lower()}",
            )
            sides.append(element("figure", caption, content, class_="player"))
        buttons = [
            element("button", f"Play both, hear the one {heard}", type="button", aria_pressed="false")
            for heard in ("in use", "left out")
        ]
        content = [element("h3", name), element("div", buttons), element("div", sides, class_="sides")]
        return element("div", content, class_="card pair", role="group", aria_label=name)

    def _window(self, row: dict, around_cut: bool) -> tuple[int, int]:
        """(first frame, frames) of the shown clip: in the middle, or around the first shot cut."""
        frames = min(self.num_frames, row["num_frames"])
        middle = row["shot_starts"][0] if around_cut and row["shot_starts"] else row["num_frames"] // 2
        return min(max(0, middle - frames // 2), row["num_frames"] - frames), frames

    def _player(
        self, row: dict, index: int, start: int, frames: int, description: str, *, title: str = ""
    ) -> Markup | list[Markup]:
        """A player for a stretch of a segment, or a warning that it cannot be read.

        row: the segment's row of the index.
        index: its number in the store.
        start, frames: first frame and number of frames.
        description: text alternative.
        title: heading of the strip.
        """
        try:
            window = self.store.window(index, start, frames)
        except (UserError, OSError) as error:
            return element("div", warning(f"Segment {row['id']} cannot be shown: {error}"), class_="text")
        clip = Clip(
            video=window["video"],
            audio=np.clip(window["audio"], -1, 1),
            fps=row["fps"],
            sample_rate=row["sample_rate"],
        )
        return self.players.from_clip(
            clip, window["mel"].astype(np.float32), description=description, title=title
        )


def _tags(tags: list[str]) -> Markup:
    return element("ul", [element("li", tag) for tag in tags], class_="tags")


def _score_tags(row: dict) -> list[str]:
    """The scores of a segment in words."""
    loudness = 20 * np.log10(max(row["rms"], 1e-5))
    tags = [
        "silent" if row["silent"] else f"{loudness:.0f} dB".replace("-", "−"),
        f"motion {row['motion']:.3f}",
    ]
    if np.isfinite(row["sync"]):
        tags.append(f"synchrony {row['sync']:.2f}".replace("-", "−"))
    if row["shot_starts"]:
        tags.append(counted(len(row["shot_starts"]), "shot cut"))
    shares: tuple[tuple[str, Callable[[float], bool]], ...] = (
        ("black", lambda share: share > 0),
        ("frozen", lambda share: share >= 0.05),
    )
    tags += [f"{round(100 * row[name])} % {name}" for name, told in shares if told(row[name])]
    return tags
