"""Every derived size of a run, as values with methods: frames, samples, mel columns, patches, planes, tokens.

Not here: FLOPs and parameters (`proav/costs`). Letters used through the package: B clips, T frames, C
channels, H and W rows and columns, M mel bins, S mel columns within a frame, P planes, N rows and columns of
a plane, L tokens, D latent channels.
"""

from dataclasses import dataclass

MODALITIES = ("video", "audio")
"""The columns of every [B, 2] tensor, such as the times or what is given."""
PLANES = ("HW", "WT", "HT")
"""One modality's planes, named by the axes they keep. T is always the first axis of WT and HT."""
PLANES_PER_MODALITY = len(PLANES)

PLANE_NAMES = tuple(f"{modality[0]}_{plane}" for modality in MODALITIES for plane in PLANES)
"""The order of the six planes in the stack: v_HW, v_WT, v_HT, a_HW, a_WT, a_HT."""


@dataclass(frozen=True)
class ClipGeometry:
    """Shape and rates of one clip. Picture and sound share one clock.

    num_frames: T. fps: frames a second. height, width: H and W, pixels. sample_rate: of the sound, Hz.
    mel_bins: M. n_fft, hop: window and step of the mel columns, in samples of the sound.
    """

    num_frames: int
    fps: int
    height: int
    width: int
    sample_rate: int
    mel_bins: int
    n_fft: int
    hop: int

    @classmethod
    def from_config(cls, config) -> "ClipGeometry":
        clip, mel = config.clip, config.mel
        return cls(
            clip.num_frames,
            clip.fps,
            clip.height,
            clip.width,
            clip.sample_rate,
            mel.num_bins,
            mel.n_fft,
            mel.hop,
        )

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.fps

    @property
    def num_samples(self) -> int:
        """Sound samples of a clip."""
        return self.num_frames * self.samples_per_frame

    @property
    def mel_steps(self) -> int:
        """Mel columns of a frame, S."""
        return self.samples_per_frame // self.hop

    @property
    def mel_shape(self) -> tuple[int, int, int]:
        """Native mel grid of a clip, (T, M, S)."""
        return self.num_frames, self.mel_bins, self.mel_steps

    @property
    def tile(self) -> tuple[int, int]:
        """How often a mel value is repeated along (H, W) in the mel image."""
        return self.height // self.mel_bins, self.width // self.mel_steps


@dataclass(frozen=True)
class LatentGeometry:
    """Shape of MDSA's planes, of their stack, and of ST-DiT's tokens."""

    num_frames: int
    plane_size: int
    channels: tuple[int, ...]
    """Channels of each of the six planes, in the order of PLANE_NAMES."""
    token_patch: int

    @classmethod
    def from_config(cls, config) -> "LatentGeometry":
        channels = tuple(config.mdsa.channels(modality)[plane] for modality in MODALITIES for plane in PLANES)
        return cls(config.clip.num_frames, config.mdsa.plane_size, channels, config.stdit.patch_size)

    @property
    def stack_channels(self) -> int:
        """Channels D of the stack: those of its widest plane. In narrower planes the rest is zero."""
        return max(self.channels)

    @property
    def plane_shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each plane of one modality, as MDSA makes them."""
        n, t = self.plane_size, self.num_frames
        return {"HW": (n, n), "WT": (t, n), "HT": (t, n)}

    @property
    def stack_shape(self) -> tuple[int, int, int, int]:
        """(D, 6, N, N): the six planes of both modalities. A time axis shorter than N is resized to N."""
        return self.stack_channels, len(PLANE_NAMES), self.plane_size, self.plane_size

    @property
    def token_patches(self) -> tuple[int, ...]:
        """Rows and columns of cells in a token of each plane.

        It is token_patch in the widest plane. In a plane with at most a quarter of its channels it is
        doubled, and doubled again for each further factor of four, if it still divides the plane's side. A
        token thus holds more than a quarter of the values of a token of the widest plane.
        """
        return tuple(self._token_patch(own) for own in self.channels)

    def _token_patch(self, channels: int) -> int:
        side = self.token_patch
        most = self.stack_channels * self.token_patch**2
        while channels * (2 * side) ** 2 <= most and self.plane_size % (2 * side) == 0:
            side *= 2
        return side

    @property
    def token_sides(self) -> tuple[int, ...]:
        """Tokens along the side of each plane."""
        return tuple(self.plane_size // patch for patch in self.token_patches)

    @property
    def num_tokens(self) -> int:
        return sum(side**2 for side in self.token_sides)

    @property
    def values_per_token(self) -> int:
        """Numbers in a token of the widest plane; no other plane's tokens hold more."""
        return self.stack_channels * self.token_patch**2

    def channels_per_plane(self, modality: str) -> dict[str, int]:
        """{plane: channels} of one modality."""
        first = MODALITIES.index(modality) * PLANES_PER_MODALITY
        return dict(zip(PLANES, self.channels[first : first + PLANES_PER_MODALITY], strict=True))

    def values_per_stream(self, modality: str) -> int:
        """Numbers that MDSA keeps of one modality of a clip: rows x columns x channels, over its planes."""
        channels = self.channels_per_plane(modality)
        return sum(rows * columns * channels[name] for name, (rows, columns) in self.plane_shapes.items())

    @property
    def values_per_clip(self) -> int:
        """Numbers that MDSA keeps of a clip, both modalities."""
        return sum(self.values_per_stream(modality) for modality in MODALITIES)

    @property
    def channel_mask(self) -> tuple[tuple[bool, ...], ...]:
        """[6 planes][D]: whether a channel of the stack is one of the plane's own."""
        return tuple(tuple(index < own for index in range(self.stack_channels)) for own in self.channels)


@dataclass(frozen=True)
class StreamGeometry:
    """What one modality's encoder reads: a clip of images, cut into N x N patches."""

    channels: int
    num_frames: int
    rows: int
    columns: int
    plane_size: int

    @property
    def patch(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return self.rows // self.plane_size, self.columns // self.plane_size

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(C, T, rows, columns)."""
        return self.channels, self.num_frames, self.rows, self.columns


def stream_geometries(config) -> dict[str, StreamGeometry]:
    """{"video": ..., "audio": ...}: what the two encoders read.

    The audio stream is the mel grid, native or tiled to H x W.
    """
    clip, mdsa = ClipGeometry.from_config(config), config.mdsa
    video = StreamGeometry(3, clip.num_frames, clip.height, clip.width, mdsa.plane_size)
    if mdsa.audio_input == "native":
        audio = StreamGeometry(1, clip.num_frames, clip.mel_bins, clip.mel_steps, mdsa.plane_size)
    else:
        audio = StreamGeometry(mdsa.audio_channels, clip.num_frames, clip.height, clip.width, mdsa.plane_size)
    return {"video": video, "audio": audio}


def wide_tokens(config) -> str | None:
    """What to say if tokens hold more numbers than ST-DiT is wide; else None.

    The prediction for a token of v numbers is a linear map of `width` features, which are normalized. So in
    v - width directions or more it is the same for all samples. A flow's noise stays there. With ddpm it is
    even enlarged, as the predicted noise is too small (docs/experiments.md, "Tokens wider than ST-DiT").
    """
    latents, width = LatentGeometry.from_config(config), config.stdit.shape[1]
    values = latents.values_per_token
    if values <= width:
        return None
    smaller = [
        patch
        for patch in range(1, latents.token_patch)
        if latents.plane_size % patch == 0 and latents.stack_channels * patch**2 <= width
    ]
    ways = [f"stdit.patch_size={max(smaller)}"] if smaller else []
    ways += [f"an ST-DiT of width {values} or more", "fewer mdsa.plane_channels in the widest plane"]
    return (
        f"WIDE TOKENS: a token holds {values} numbers, and ST-DiT is {width} wide. It cannot predict "
        f"{values - width} of their directions, so samples will be grainy; choose {', or '.join(ways)}"
    )


def check_geometry(config) -> None:
    """Raises ValueError, naming the keys, if sizes do not fit together."""
    _check_mel(config)
    _check_planes(config)
    _check_modules(config)
    clip, frames, n = config.clip, config.clip.num_frames, config.mdsa.plane_size
    _require(
        n % config.stdit.patch_size == 0,
        f"stdit.patch_size={config.stdit.patch_size} does not divide mdsa.plane_size={n}",
    )
    given = config.diffusion.continue_frames
    _require(
        given is None or given < frames,
        f"diffusion.continue_frames={given} leaves nothing of clip.num_frames={frames} to make; "
        f"expected at most {frames - 1}",
    )
    segment_frames = int(config.data.segment_seconds * clip.fps)
    _require(
        segment_frames >= frames,
        f"data.segment_seconds={config.data.segment_seconds} holds {segment_frames} frames at "
        f"clip.fps={clip.fps}, less than a clip of {frames}; expected at least {frames / clip.fps:g}",
    )


def _check_mel(config) -> None:
    """The mel images: whole columns and frames, and a transform that can be inverted."""
    clip, mel = config.clip, config.mel
    _require(
        clip.sample_rate % clip.fps == 0,
        f"clip.sample_rate={clip.sample_rate} is not a whole number of samples per frame at "
        f"clip.fps={clip.fps}; expected a multiple of clip.fps",
    )
    per_frame = clip.sample_rate // clip.fps
    _require(
        per_frame % mel.hop == 0,
        f"mel.hop={mel.hop} does not divide the {per_frame} samples of a frame "
        f"(clip.sample_rate / clip.fps); expected a divisor, such as {_divisor_near(per_frame, mel.hop)}",
    )
    steps = per_frame // mel.hop
    _require(
        clip.width % steps == 0,
        f"mel.hop={mel.hop} gives {steps} mel columns a frame, which do not tile clip.width={clip.width}; "
        "choose mel.hop so that the columns divide the width",
    )
    _require(
        clip.height % mel.num_bins == 0,
        f"mel.num_bins={mel.num_bins} does not divide clip.height={clip.height}",
    )
    _require(
        2 * mel.hop <= mel.n_fft,
        f"mel.hop={mel.hop}: windows of mel.n_fft={mel.n_fft} overlap too little to be inverted; "
        f"expected mel.hop of at most {mel.n_fft // 2}",
    )
    _require(
        mel.min_hz < mel.max_hz <= clip.sample_rate / 2,
        f"mel.min_hz={mel.min_hz}, mel.max_hz={mel.max_hz}: "
        f"expected min_hz < max_hz <= {clip.sample_rate / 2} (half of clip.sample_rate)",
    )
    _require(
        mel.floor_log10 < mel.ceiling_log10,
        f"mel.floor_log10={mel.floor_log10} must be below mel.ceiling_log10={mel.ceiling_log10}",
    )


def _check_planes(config) -> None:
    """The planes divide pictures and mel images, and hold every frame."""
    clip, mel, mdsa = config.clip, config.mel, config.mdsa
    frames, n = clip.num_frames, mdsa.plane_size
    steps = clip.sample_rate // clip.fps // mel.hop
    for key in ("height", "width"):
        _require(
            getattr(clip, key) % n == 0,
            f"mdsa.plane_size={n} does not divide clip.{key}={getattr(clip, key)}",
        )
        _require(getattr(clip, key) % 2 == 0, f"clip.{key}={getattr(clip, key)} must be even (H.264 video)")
    _require(
        frames <= n,
        f"clip.num_frames={frames} does not fit mdsa.plane_size={n}: planes keep every frame; "
        f"expected mdsa.plane_size of at least {frames}",
    )
    if mdsa.audio_input == "native":
        _require(
            mel.num_bins % n == 0 and steps % n == 0,
            f"mel images of {mel.num_bins} bins x {steps} columns do not split into mdsa.plane_size={n} "
            "patches a side; write mdsa.audio_input=tiled",
        )
    if mdsa.refiner.enabled:
        cells = mdsa.refiner.patch * 2 ** (mdsa.refiner.levels - 1)
        sides = {"clip.height": clip.height, "clip.width": clip.width}
        if mdsa.audio_input == "native":
            sides |= {"mel.num_bins": mel.num_bins, "mel columns of a clip": frames * steps}
        uneven = [f"{key}={side}" for key, side in sides.items() if side % cells]
        _require(
            not uneven,
            f"mdsa.refiner halves its images to cells of {cells} pixels (patch x 2^(levels - 1)), "
            f"which do not divide {', '.join(uneven)}; "
            "write fewer mdsa.refiner.levels, or mdsa.refiner.enabled=false",
        )


def _check_modules(config) -> None:
    """MDSA's modules divide the frames and the planes' sides."""
    mdsa, frames, n = config.mdsa, config.clip.num_frames, config.mdsa.plane_size
    scales = [scale for scale in mdsa.multi_scale.scales if frames % scale]
    _require(
        not scales,
        f"mdsa.multi_scale.scales={list(mdsa.multi_scale.scales)}: {scales} do not divide "
        f"clip.num_frames={frames}",
    )
    _require(
        frames % mdsa.group_cross.num_groups == 0,
        f"mdsa.group_cross.num_groups={mdsa.group_cross.num_groups} does not divide clip.num_frames={frames}",
    )
    block = mdsa.bi_block.block_size
    sides = {n} if mdsa.bi_block.apply_to == "HW" else {n, frames}
    _require(
        all(side % block == 0 for side in sides),
        f"mdsa.bi_block.block_size={block} does not divide the plane sides {sorted(sides)}",
    )


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(message)


def _divisor_near(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))
