// The stage: one job, from waiting to playing.
// The player itself is `player.js`; everything around it is here.

import { contentUrl, isActive } from "./api.js";
import * as player from "./player.js";
import { factsOf, fileName, nameOf, stateOf } from "./words.js";

const byId = (id) => document.getElementById(id);
const stage = byId("stage"),
  noise = byId("noise");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let told = ""; // the last thing said to screen readers
let strength = 0.35; // of the noise
let model = null;
const INVITATION = "Choose what to make and press Generate. The clip, its frames and its sound appear here.";

/** Tells screen readers a message; the same message is not repeated. */
export function announce(message) {
  if (message !== told) byId("announcer").textContent = message;
  told = message;
}

/** Draws noise, which becomes weaker as the job goes on, as in denoising. */
function drawNoise() {
  const context = noise.getContext("2d");
  const image = context.createImageData(noise.width, noise.height);
  for (let place = 0; place < image.data.length; place += 4) {
    const value = (Math.random() + Math.random() + Math.random()) / 3 - 0.5;
    image.data.set(
      [58 + 310 * value * strength, 52 + 285 * value * strength, 46 + 260 * value * strength, 255],
      place,
    );
  }
  context.putImageData(image, 0, 0);
}

export function prepare(loaded) {
  model = loaded;
  const [width, height] = model.size.split("x").map(Number);
  noise.width = 24;
  noise.height = Math.max(1, Math.round((24 * height) / width));
  drawNoise();
}

setInterval(() => {
  if (stage.dataset.state === "working" && !calm.matches && !document.hidden) drawNoise();
}, 110);

function showWork(job) {
  const percent = Math.round(job.progress ?? 0);
  const running = job.status === "in_progress";
  strength = 1 - 0.85 * (running ? percent / 100 : 0);
  byId("work-state").textContent = stateOf(job);
  byId("work-percent").textContent = running ? `${percent} %` : "";
  byId("work-bar").value = running ? percent : 0;
  announce(
    running
      ? `${nameOf(job)}: ${25 * Math.floor(percent / 25)} percent`
      : `${nameOf(job)}: ${stateOf(job).toLowerCase()}`,
  );
  document.title = running ? `${percent} % · proav` : "Waiting · proav";
}

function showFacts(job) {
  const rows = factsOf(job, model).map(([name, value]) => {
    const row = document.createElement("div");
    row.append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    );
    return row;
  });
  byId("clip-facts").replaceChildren(...rows);
}

/** Shows the present state of a job; null: none is chosen. `note` says why there is none. */
export function show(job, { note } = {}) {
  const state = !job ? "empty" : isActive(job) ? "working" : job.status === "completed" ? "clip" : "failed";
  const before = stage.dataset.state;
  stage.dataset.state = state;
  player.load(state === "clip" ? job : null);
  byId("clip-name").textContent = job ? nameOf(job) : note ? "Gone" : "Nothing made yet";
  byId("clip-note").hidden = Boolean(job);
  byId("clip-note").textContent = note ?? INVITATION;
  byId("working").hidden = state !== "working";
  byId("clip-error").hidden = state !== "failed";
  byId("clip-actions").hidden = !job;
  if (state === "empty" || state === "failed") strength = 0.35;
  if (state !== before) drawNoise();
  if (state === "working") showWork(job);
  else document.title = job ? `${nameOf(job)} · proav` : "proav";
  if (!job) return byId("clip-facts").replaceChildren();
  showFacts(job);
  byId("again").hidden = state === "working";
  byId("download").hidden = state !== "clip";
  if (!byId("discard").classList.contains("armed"))
    byId("discard").textContent = state === "working" ? "Cancel" : "Delete";
  if (state === "clip")
    Object.assign(byId("download"), { href: contentUrl(job.id, "video"), download: fileName(job) });
  if (state === "failed")
    byId("clip-error").textContent =
      job.error?.message ?? "The clip could not be made, and the server does not say why.";
}

/** Scrolls to the stage, which is below the form on a narrow screen. */
export function bringIntoView() {
  const box = stage.getBoundingClientRect();
  if (box.top < 0 || box.top > innerHeight / 2)
    stage.scrollIntoView({ block: "start", behavior: calm.matches ? "auto" : "smooth" });
}
