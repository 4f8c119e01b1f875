// The stage's player: the picture with its sound, its frames and spectrogram over one time axis, and a line
// that follows the time.

import { contentUrl } from "./api.js";
import { decimals, nameOf } from "./words.js";

const byId = (id) => document.getElementById(id);
const sheet = new Image(); // all frames of the clip, in reading order
const video = byId("video"),
  frames = byId("frames"),
  tracks = byId("tracks"),
  spectrogram = byId("spectrogram"),
  playhead = byId("playhead"),
  stage = byId("stage");
const buttons = { play: byId("play"), loop: byId("loop"), sound: byId("sound") };
const HERTZ = [100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000];
let model = null;
let length = { seconds: 1, frames: 1 }; // of the clip in the player; if there is none, of the model's clips
let shown = null; // id of the job in the player

/** One in this many frames is shown, at the place of its time, so that at most eight are shown. */
const frameStep = () => Math.ceil(length.frames / 8);

function drawFrames() {
  const columns = Math.ceil(Math.sqrt(length.frames)),
    rows = Math.ceil(length.frames / columns);
  const width = sheet.naturalWidth / columns,
    height = sheet.naturalHeight / rows;
  const context = frames.getContext("2d");
  const shown = (frameStep() / length.frames) * frames.width,
    gap = Math.max(1, Math.round(shown / 40));
  for (let frame = 0; frame < length.frames; frame += frameStep()) {
    const left = (frame / length.frames) * frames.width;
    const cell = (frame % columns) * width,
      row = Math.floor(frame / columns) * height;
    context.drawImage(sheet, cell, row, width, height, left, 0, shown, frames.height);
    context.clearRect(Math.round(left + shown) - gap, 0, gap, frames.height);
  }
}

/** Slaney's mel scale: 3/200 mel a Hz below 1 kHz; above, 27 steps for each factor of 6.4. */
const mel = (hertz) =>
  hertz < 1000 ? (hertz * 3) / 200 : 15 + (27 * Math.log(hertz / 1000)) / Math.log(6.4);

function tick(text, property, share) {
  const mark = document.createElement("span");
  mark.textContent = text;
  mark.style[property] = `${100 * share}%`;
  return mark;
}

function drawAxes() {
  const { num_bins: bins, min_hz: low, max_hz: high } = model.mel;
  // of a band's centre
  const height = (hertz) =>
    (((mel(hertz) - mel(low)) / (mel(high) - mel(low))) * (bins + 1)) / bins - 0.5 / bins;
  let last = -1;
  const marks = HERTZ.filter((hertz) => {
    const place = height(hertz);
    const fits = place >= 0.02 && place <= 0.98 && place - last > 0.13;
    if (fits) last = place;
    return fits;
  });
  byId("hertz").replaceChildren(
    ...marks.map((hertz) =>
      tick(hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`, "bottom", height(hertz)),
    ),
  );
  const step =
    [0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 60].find((step) => length.seconds / step <= 5) ?? length.seconds;
  const count = Math.floor(length.seconds / step + 1e-6);
  const times = Array.from({ length: count + 1 }, (_, index) => index * step);
  byId("seconds").replaceChildren(
    ...times.map((time) => tick(`${decimals(time)} s`, "left", time / length.seconds)),
  );
}

/** Learns the size, length and rates of this model's clips. */
export function prepare(loaded) {
  model = loaded;
  const [width, height] = model.size.split("x").map(Number);
  stage.style.setProperty("--clip-ratio", width / height);
  for (const picture of [video, frames]) picture.classList.toggle("pixels", width < 160);
  Object.assign(video, { width, height });
  frames.height = height;
  lay(model.seconds);
}

/** Draws the time axis for a clip of this length. A continued clip is longer than the model's own. */
function lay(seconds) {
  length = { seconds, frames: Math.max(1, Math.round(seconds * model.fps)) };
  frames.width = Math.round((model.size.split("x")[0] * length.frames) / frameStep());
  tracks.setAttribute("aria-valuemax", decimals(seconds));
  byId("clock-end").textContent = seconds.toFixed(2);
  drawAxes();
}

function drawTime() {
  const share = Math.min(1, video.currentTime / length.seconds);
  playhead.style.left = `${100 * share}%`;
  byId("clock-now").textContent = video.currentTime.toFixed(2);
  tracks.setAttribute("aria-valuenow", decimals(video.currentTime));
  tracks.setAttribute(
    "aria-valuetext",
    `${decimals(video.currentTime)} of ${decimals(length.seconds)} seconds`,
  );
}

function follow() {
  drawTime();
  if (!video.paused && !video.ended) requestAnimationFrame(follow);
}

function showPlaying() {
  const playing = !video.paused && !video.ended;
  stage.classList.toggle("playing", playing);
  buttons.play.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
  buttons.play.querySelector("span").textContent = playing ? "Pause" : "Play";
  if (playing) follow();
}

export const play = () => {
  if (video.error) video.load(); // loading may succeed now
  return video.play().catch((error) => {
    // a click is needed first; or another clip is loaded
    if (error.name === "NotAllowedError" || error.name === "AbortError") return;
    showMediaError();
  });
};

const toggle = () => (video.paused ? play() : video.pause());

function seek(seconds) {
  if (!shown || !(video.readyState >= 1)) return;
  video.currentTime = Math.min(Math.max(0, seconds), length.seconds - 0.001);
  drawTime();
}

function showMediaError() {
  const error = byId("media-error");
  error.textContent =
    "This clip cannot be played here: the browser could not load it, or lacks its format " +
    "(H.264 with AAC). Download plays it elsewhere.";
  error.hidden = false;
}

/** Shows a finished job; shows nothing for null. */
export function load(job) {
  if ((job?.id ?? null) === shown) return;
  shown = job?.id ?? null;
  byId("media-error").hidden = true;
  video.hidden = playhead.hidden = !job;
  for (const button of Object.values(buttons)) button.disabled = !job;
  tracks.setAttribute("aria-disabled", String(!job));
  tracks.tabIndex = job ? 0 : -1;
  if (model) lay(job ? Number(job.seconds) : model.seconds);
  frames.getContext("2d").clearRect(0, 0, frames.width, frames.height);
  spectrogram.hidden = true;
  sheet.removeAttribute("src");
  spectrogram.removeAttribute("src");
  if (job) {
    sheet.src = contentUrl(job.id, "spritesheet");
    spectrogram.src = contentUrl(job.id, "spectrogram");
    video.src = contentUrl(job.id, "video");
    video.setAttribute("aria-label", `${nameOf(job)}, seed ${job.seed}`);
  } else {
    video.pause();
    video.removeAttribute("src");
    video.load();
  }
  drawTime();
  showPlaying();
}

/** Connects the player's buttons, pointer and keys, once. */
export function connect() {
  for (const event of ["play", "pause", "ended"]) video.addEventListener(event, showPlaying);
  for (const event of ["seeked", "timeupdate"]) video.addEventListener(event, () => model && drawTime());
  video.addEventListener("loadeddata", () => {
    byId("media-error").hidden = true;
  });
  video.addEventListener("error", () => {
    if (shown) showMediaError();
  });
  spectrogram.addEventListener("load", () => {
    spectrogram.hidden = false;
  });
  sheet.addEventListener("load", drawFrames);
  video.addEventListener("click", toggle);
  buttons.play.addEventListener("click", toggle);
  buttons.loop.addEventListener("click", () => {
    video.loop = !video.loop;
    buttons.loop.setAttribute("aria-pressed", String(video.loop));
  });
  buttons.sound.addEventListener("click", () => {
    video.muted = !video.muted;
    buttons.sound.setAttribute("aria-pressed", String(!video.muted));
    buttons.sound.querySelector("use").setAttribute("href", video.muted ? "#icon-muted" : "#icon-sound");
  });
  const pointed = (event) => {
    const box = tracks.getBoundingClientRect();
    seek(((event.clientX - box.left) / box.width) * length.seconds);
  };
  tracks.addEventListener("pointerdown", (event) => {
    if (!shown || event.button !== 0) return;
    tracks.setPointerCapture(event.pointerId);
    pointed(event);
  });
  tracks.addEventListener("pointermove", (event) => {
    if (tracks.hasPointerCapture(event.pointerId)) pointed(event);
  });
  tracks.addEventListener("keydown", (event) => {
    const frame = 1 / model.fps;
    const moves = {
      ArrowRight: video.currentTime + frame,
      ArrowUp: video.currentTime + frame,
      ArrowLeft: video.currentTime - frame,
      ArrowDown: video.currentTime - frame,
      Home: 0,
      End: length.seconds,
    };
    if (event.key in moves) seek(moves[event.key]);
    else if (event.key === " " || event.key === "Enter") toggle();
    else return;
    event.preventDefault();
  });
}
