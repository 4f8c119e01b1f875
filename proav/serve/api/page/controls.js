// The form: what to make. It offers what the model can do, and sends what the user typed unchanged:
// the server checks it. Each refusal is shown at the field that the server names, in the words of the page.

import * as told from "./told.js";
import { decimals, plain, taskWords, unlisted, unlistedFacts } from "./words.js";

const byId = (id) => document.getElementById(id);
const form = byId("controls");
const fields = {
  task: byId("tasks"),
  file: byId("file"),
  span: byId("span"),
  windows: byId("windows"),
  length: byId("length"),
  labels: byId("labels"),
  texts: byId("texts"),
  seed: byId("seed"),
  steps: byId("steps"),
  guidance: byId("guidance"),
  audioGuidance: byId("audio-guidance"),
  kept: byId("drop-kept"),
};
let model = null;
let kept = {}; // settings of a used clip that have no field: {name in a request: text}

const chosenTask = () => form.querySelector('input[name="task"]:checked')?.value ?? "joint";

/** A slider and a box for one number.
 * The slider covers the useful part of the range, the box accepts all of it. */
function pair(box, slider, { value, min, max, shown }) {
  Object.assign(slider, { min, max: Math.min(max, shown) });
  const follow = () => {
    if (box.value.trim() !== "" && Number.isFinite(Number(box.value))) slider.value = box.value;
  };
  slider.addEventListener("input", () => {
    box.value = slider.value;
    clear(box);
  });
  box.addEventListener("input", follow);
  box.value = box.placeholder = value;
  follow();
}

/** The longest clip of the chosen task, in seconds.
 * If that is the model's own length, the task makes no other length. */
const longest = () => model.max_seconds[chosenTask()];
const hasLength = () => chosenTask() !== "continue" && longest() > model.seconds;

function showFileHint() {
  const words = taskWords(chosenTask());
  const seconds = (hasLength() && Number(fields.length.value)) || model.seconds;
  byId("file-hint").textContent = words.file
    ? (words.takes ?? `Its first ${decimals(seconds)} seconds are used.`)
    : "";
}

function showTask() {
  const words = taskWords(chosenTask());
  byId("task-hint").textContent = words.hint;
  byId("field-file").hidden = !words.file;
  byId("file-name").textContent = words.file ?? "";
  fields.file.accept = words.accept;
  byId("field-length").hidden = !hasLength();
  byId("length-hint").textContent =
    `${decimals(model.seconds)} if left empty, at most ${decimals(longest())}.`;
  showFileHint();
  byId("field-span").hidden = chosenTask() !== "inpaint";
  byId("field-windows").hidden = chosenTask() !== "continue";
}

/** Fills the form with what this model offers. */
export function offer(loaded) {
  model = loaded;
  const segments = model.tasks.map((task, index) => {
    const box = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {
      type: "radio",
      name: "task",
      value: task,
      checked: index === 0,
    });
    const text = Object.assign(document.createElement("span"), { textContent: taskWords(task).name });
    input.addEventListener("change", () => {
      showTask();
      clearAll();
    });
    box.append(input, text);
    return box;
  });
  fields.task.replaceChildren(...segments);
  const guided = told.offer(model); // guidance acts towards labels and texts
  byId("field-guidance").hidden = byId("field-audio-guidance").hidden = !guided;
  fields.audioGuidance.value = model.audio_guidance_scale.default ?? "";
  pair(fields.steps, byId("steps-range"), {
    value: model.steps.default,
    min: 1,
    max: model.steps.max,
    shown: 100,
  });
  pair(fields.guidance, byId("guidance-range"), {
    value: model.guidance_scale.default,
    min: 0,
    max: model.guidance_scale.max,
    shown: 8,
  });
  byId("windows-hint").textContent =
    `Each time adds ${decimals(model.num_windows.seconds)} seconds; up to ${model.num_windows.max} times.`;
  showTask();
}

export const rollSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);

/** One request for each clip. If a seed is given, each further clip has the next seed. */
export function requests() {
  const count = Number(byId("count").value);
  const seed = fields.seed.value.trim();
  const file = taskWords(chosenTask()).file ? fields.file.files[0] : undefined;
  return Array.from({ length: count }, (_, index) => {
    const request = new FormData();
    request.set("model", model.id);
    request.set("task", chosenTask());
    if (fields.steps.value.trim()) request.set("steps", fields.steps.value.trim());
    if (told.labels().length) request.set("label", told.labels().join(";"));
    if (Object.keys(told.texts()).length) request.set("vectors", JSON.stringify(told.texts()));
    if (hasLength() && fields.length.value.trim()) request.set("seconds", fields.length.value.trim());
    if (!byId("field-guidance").hidden && fields.guidance.value.trim())
      request.set("guidance_scale", fields.guidance.value.trim());
    if (!byId("field-audio-guidance").hidden && fields.audioGuidance.value.trim())
      request.set("audio_guidance_scale", fields.audioGuidance.value.trim());
    for (const [name, value] of Object.entries(kept)) request.set(name, value);
    if (seed) request.set("seed", /^\d+$/.test(seed) ? String(BigInt(seed) + BigInt(index)) : seed);
    if (file) request.set("input_reference", file, file.name);
    if (chosenTask() === "continue") request.set("num_windows", fields.windows.value.trim());
    if (chosenTask() === "inpaint") {
      request.set("span", `${byId("span-begin").value.trim()},${byId("span-end").value.trim()}`);
      request.set("stream", byId("stream").value);
    }
    return request;
  });
}

/** A mistake that the page finds without the server; null if there is none. */
export function mistake() {
  const words = taskWords(chosenTask());
  if (!words.file) return null;
  const file = fields.file.files[0];
  if (!file)
    return {
      param: "input_reference",
      message: `Choose a file: ${words.hint[0].toLowerCase()}${words.hint.slice(1)}`,
    };
  if (model.max_upload_bytes && file.size > model.max_upload_bytes) {
    const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    return {
      param: "input_reference",
      message:
        `This file has ${megabytes(file.size)}; ` +
        `the server takes up to ${megabytes(model.max_upload_bytes)}.`,
    };
  }
  return null;
}

/** The server's refusal of a field, in the words of the page. */
function inPageWords({ param, message }) {
  const typed = (field) => `“${field.value.trim()}” does not fit`;
  if (param === "seed")
    return `${typed(fields.seed)}: write a whole number from 0 to ${Number.MAX_SAFE_INTEGER}, or nothing.`;
  if (param === "steps") {
    // kept settings may allow another number than the model's defaults
    const most = /expected 1 to (\d+)$/.exec(message)?.[1] ?? model.steps.max;
    return `${typed(fields.steps)}: write a whole number from 1 to ${most}.`;
  }
  if (fields.kept.closest(".field").dataset.fields.split(" ").includes(param))
    return "The server has another model now, which does not take this.";
  if (param === "guidance_scale")
    return `${typed(fields.guidance)}: write a number from 0 to ${model.guidance_scale.max}.`;
  if (param === "audio_guidance_scale")
    return (
      `${typed(fields.audioGuidance)}: write a number from 0 to ${model.audio_guidance_scale.max}, ` +
      "or nothing."
    );
  if (param === "seconds")
    return (
      `${typed(fields.length)}: write a number from ${decimals(1 / model.fps)} ` +
      `to ${decimals(longest())}, or nothing.`
    );
  if (param === "num_windows")
    return `${typed(fields.windows)}: write a whole number from 1 to ${model.num_windows.max}.`;
  if (param === "span")
    return `Write where the part begins and ends, in seconds from 0 to ${model.seconds}; not the whole clip.`;
  if (["label", "prompt", "vectors", "model", "task"].includes(param))
    return "The server has another model now, which does not offer this. Reload the page.";
  return plain(message);
}

function chooseTask(name) {
  const task = form.querySelector(`input[name="task"][value="${CSS.escape(name)}"]`);
  if (task) task.checked = true;
  showTask();
}

/** Puts a file into the form, as if it had been chosen there. */
export function giveFile(file) {
  if (!taskWords(chosenTask()).file) {
    const image = file.type.startsWith("image/") && model.tasks.includes("i2av");
    chooseTask(image ? "i2av" : file.type.startsWith("audio/") ? "a2v" : "v2a");
  }
  const given = new DataTransfer();
  given.items.add(file);
  fields.file.files = given.files;
  clear(fields.file);
}

/** A file that is dropped anywhere goes into the form.
 * Otherwise the browser would open it in place of the page. */
function takeDrops() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (holdsFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    if (model && event.dataTransfer.files.length) giveFile(event.dataTransfer.files[0]);
  });
}

/** Keeps settings that have no field for the next requests, and says so. {}: none. */
function keep(settings) {
  kept = settings;
  const said = unlistedFacts(kept).map(([heading, value]) => `${heading}: ${value}`);
  byId("kept").textContent = `Also taken from a clip: ${said.join("; ")}.`;
  fields.kept.closest(".field").hidden = said.length === 0;
}

/** Puts a job's settings into the form. */
export function reuse(job, { seed }) {
  chooseTask(job.task);
  told.chooseLabels(model.labels.includes(job.label) ? [job.label] : (job.label?.split(";") ?? []));
  told.writeTexts(job.texts);
  fields.length.value = job.num_frames == null || job.task === "continue" ? "" : job.seconds;
  showFileHint();
  fields.windows.value = job.num_windows;
  if (job.span) {
    [byId("span-begin").value, byId("span-end").value] = job.span;
    byId("stream").value = job.stream;
  }
  fields.seed.value = seed;
  byId("count").value = "1";
  for (const [box, value] of [
    [fields.steps, job.steps],
    [fields.guidance, job.guidance_scale],
    [fields.audioGuidance, job.audio_guidance_scale ?? ""],
  ]) {
    box.value = value;
    box.dispatchEvent(new Event("input"));
  }
  keep(unlisted(job, model));
  clearAll();
}

function clear(field) {
  const box = field.closest(".field");
  const error = box.querySelector(".error");
  error.hidden = true;
  error.textContent = "";
  field.removeAttribute("aria-invalid");
}

export function clearAll() {
  Object.values(fields).forEach(clear);
  say("");
}

/** A message at the button; empty removes it. */
export function say(message) {
  const error = byId("error-form");
  if (error.textContent !== message) error.textContent = message;
  error.hidden = !message;
}

/** Shows a refusal at its field and moves there; if it is about no field, at the button. */
export function showRefusal(refusal, before = "") {
  show({ param: refusal.param, message: before + inPageWords(refusal) });
}

/** Shows a mistake at its field and moves there; if it is about no field, at the button. */
export function show({ param, message }) {
  const box =
    param &&
    [...form.querySelectorAll("[data-fields]")].find((one) => one.dataset.fields.split(" ").includes(param));
  if (!box || box.hidden) return say(message);
  const error = box.querySelector(".error");
  error.textContent = message;
  error.hidden = false;
  const field = Object.values(fields).find((one) => box.contains(one));
  field.setAttribute("aria-invalid", "true");
  (field.querySelector("input:checked") ?? field.querySelector("input, select, textarea") ?? field).focus();
}

export function onGenerate(start) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  takeDrops();
  fields.length.addEventListener("input", showFileHint);
  byId("dice").addEventListener("click", () => {
    fields.seed.value = rollSeed();
    clear(fields.seed);
  });
  fields.kept.addEventListener("click", () => {
    keep({});
    clearAll();
    byId("generate").focus(); // the button that was pressed is hidden now
  });
  for (const field of Object.values(fields)) field.addEventListener("input", () => clear(field));
}

export function setSending(sending) {
  const button = byId("generate");
  button.setAttribute("aria-disabled", String(sending)); // not `disabled`, which would take the focus away
  button.textContent = sending ? "Sending…" : "Generate";
}
