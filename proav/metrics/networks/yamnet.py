"""YAMNet (AudioSet, 521 classes; MobileNet v1 on log-mel patches): embeddings and class scores of sound.

These commands make the file that is read here:

    pip install ai-edge-litert
    python -m proav.metrics.networks.convert yamnet SRC.tflite DST.safetensors

SRC.tflite is the released network as a TensorFlow Lite file. Its weights may have 8 bits. The Fréchet
distance in YAMNet's features is named FAD-YAMNet. Published FAD numbers use other networks (VGGish; AudioCLIP
in MM-Diffusion's tables) and are not comparable to these. Letters: B clips, L samples, W windows, N windows
of all clips, J mel frames, M mel bands, F frequencies.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.errors import UserError
from proav.foreign_weights import file_hash
from proav.metrics.networks.card import NetworkCard
from proav.metrics.networks.padding import pad_same
from proav.metrics.networks.weights import load_state, save_state
from proav.models.layers import full_precision

FORMAT = "proav-yamnet-1"
SAMPLE_RATE = 16_000
WINDOW_SAMPLES, HOP_SAMPLES = 15_600, 7_800
"""Each vector covers 0.975 s of sound. Vectors are half of that apart."""
FRAME, FRAME_HOP, FFT = 400, 160, 512
BANDS, LOW_HZ, HIGH_HZ, OFFSET = 64, 125.0, 7500.0, 1e-3
LAYERS = (
    (1, 32, 2), (32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
    (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 512, 1), (512, 1024, 2),
    (1024, 1024, 1),
)  # fmt: skip
"""(channels in, out, stride): a convolution, then pairs of a depthwise and a pointwise one."""
NUM_CLASSES = 521
CARD = NetworkCard(
    name="yamnet",
    kind="audio",
    dimension=1024,
    metrics=("FAD-YAMNet", "KAD-YAMNet"),
    licence="Apache-2.0",
    source="python -m proav.metrics.networks.convert yamnet SRC.tflite DIR/yamnet.safetensors",
    sample_rate=SAMPLE_RATE,
)


class YAMNet(nn.Module):
    """float32 [B, samples] in [-1, 1] at 16 kHz -> embeddings [B, W, 1024], one for each window of 0.975 s.

    Shorter sound is padded with silence.
    """

    card = CARD

    def __init__(self, weights_sha256: str = "") -> None:
        super().__init__()
        self.weights_sha256 = weights_sha256
        self.convolutions = nn.ModuleList(_convolutions())
        self.classes = nn.Linear(1024, NUM_CLASSES)
        self.register_buffer("window", torch.hann_window(FRAME), persistent=False)
        self.register_buffer("bands_FM", mel_matrix(), persistent=False)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, audio_BL: Tensor) -> Tensor:
        audio = F.pad(audio_BL.to(self.window.device), (0, max(0, WINDOW_SAMPLES - audio_BL.shape[1])))
        windows_BWL = audio.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
        return self.embed(windows_BWL.flatten(0, 1)).unflatten(0, windows_BWL.shape[:2])

    def embed(self, audio_NL: Tensor) -> Tensor:
        """Windows of exactly 15,600 samples -> [N, 1024]."""
        with full_precision(audio_NL.device):
            return self.embed_patches(self.log_mel(audio_NL))

    def embed_patches(self, log_mel_NJM: Tensor) -> Tensor:
        """Log-mel patches [N, 96, 64] -> [N, 1024]."""
        x = log_mel_NJM[:, None]
        for convolution in self.convolutions:
            x = F.relu(convolution(pad_same(x, convolution.kernel_size, convolution.stride)))
        return x.mean((2, 3))

    def log_mel(self, audio_NL: Tensor) -> Tensor:
        """[N, 96 frames, 64 bands]: log(mel magnitudes + 0.001), 25 ms frames 10 ms apart, not padded."""
        spectrum = torch.fft.rfft(audio_NL.unfold(1, FRAME, FRAME_HOP) * self.window, FFT).abs()
        return torch.log(spectrum @ self.bands_FM + OFFSET)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Probabilities [..., 521] of AudioSet's classes, each independent of the others."""
        return torch.sigmoid(self.classes(embeddings))


def mel_matrix() -> Tensor:
    """[257, 64]: triangles of height 1 between neighbouring points; the zero bin gives nothing.

    The points are evenly spaced on the HTK scale 1127 ln(1 + f / 700).
    """
    hertz = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[1:]
    mel = 1127 * np.log(1 + hertz / 700)[:, None]
    edges = np.linspace(1127 * np.log(1 + LOW_HZ / 700), 1127 * np.log(1 + HIGH_HZ / 700), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((mel - low) / (centre - low), (high - mel) / (high - centre)))
    return torch.from_numpy(np.concatenate([np.zeros((1, BANDS)), triangles])).float()


def load(path: str, device: str = "cpu") -> YAMNet:
    """The network with the weights of a file. Raises UserError unless they are YAMNet's in our format."""
    network = YAMNet(weights_sha256=file_hash(path))
    load_state(network, path, form=FORMAT, card=CARD)
    return network.to(device)


def convert_weights(source: str | Path, destination: str | Path) -> None:
    """Writes a TensorFlow Lite YAMNet in our format.

    Raises UserError for another network, and if ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError(
            "reading a .tflite file needs ai-edge-litert; type: pip install ai-edge-litert"
        ) from None
    found = file_hash(source)
    try:
        interpreter = Interpreter(str(source), experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
        tensors = _state_of(interpreter)
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise UserError(f"{source} is no YAMNet in TensorFlow Lite's format ({error})") from None
    save_state(tensors, destination, form=FORMAT, card=CARD, source_sha256=found)


def _state_of(interpreter) -> dict[str, Tensor]:
    """The network's constants, in the order of the graph, dequantized.

    Kernels are stored as [out, height, width, in], depthwise ones as [1, height, width, out].
    """
    details, state = {detail["index"]: detail for detail in interpreter.get_tensor_details()}, {}
    produced = {
        int(output): op
        for op in interpreter._get_ops_details()
        for output in op["outputs"]
        if op["op_name"] == "DEQUANTIZE"
    }

    def constant(index: int) -> np.ndarray:
        index = int(produced[index]["inputs"][0]) if index in produced else index
        values, quantization = (
            interpreter.get_tensor(index).astype(np.float32),
            details[index]["quantization_parameters"],
        )
        if len(quantization["scales"]):
            shape = [1] * values.ndim
            shape[quantization["quantized_dimension"]] = -1 if len(quantization["scales"]) > 1 else 1
            values = (values - quantization["zero_points"].reshape(shape)) * quantization["scales"].reshape(
                shape
            )
        return values

    network, ops = YAMNet(), interpreter._get_ops_details()
    convolutions = [op for op in ops if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    if len(convolutions) != len(network.convolutions):
        raise ValueError(f"{len(convolutions)} convolutions, expected {len(network.convolutions)}")
    for number, op in enumerate(convolutions):
        kernel, bias = (constant(int(index)) for index in op["inputs"][1:3])
        kernel = (
            kernel.transpose(3, 0, 1, 2)
            if op["op_name"] == "DEPTHWISE_CONV_2D"
            else kernel.transpose(0, 3, 1, 2)
        )
        state[f"convolutions.{number}.weight"], state[f"convolutions.{number}.bias"] = kernel, bias
    last = [op for op in ops if op["op_name"] == "FULLY_CONNECTED"][-1]
    state["classes.weight"], state["classes.bias"] = (constant(int(index)) for index in last["inputs"][1:3])
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != shapes:
        raise ValueError("its tensors have other shapes")
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}


def _convolutions() -> Iterator[nn.Conv2d]:
    for number, (channels, out, stride) in enumerate(LAYERS):
        if not number:
            yield nn.Conv2d(channels, out, 3, stride=stride)
            continue
        yield nn.Conv2d(channels, channels, 3, stride=stride, groups=channels)
        yield nn.Conv2d(channels, out, 1)
