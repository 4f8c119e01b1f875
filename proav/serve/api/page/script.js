// The page of the server. It sends what the user asks for, and shows what the server answers.
// It keeps no list of jobs of its own, only which clip is chosen (in the address) and the files that were
// given in this visit.

import * as api from "./api.js";
import * as controls from "./controls.js";
import * as gallery from "./gallery.js";
import * as player from "./player.js";
import * as stage from "./stage.js";
import { modelDetails, modelSentence, nameOf, refusalWords } from "./words.js";

const byId = (id) => document.getElementById(id);
const PAGE = 24;
const BUSY_SECONDS = 0.6,
  IDLE_SECONDS = 10,
  RETRY_SECONDS = 4;
const AWAY = "The server does not answer. Press Generate again when it does.";
const files = new Map(); // job id -> the file that it was given, to make it again with another seed
let model = null;
let jobs = [];
let more = false;
let wanted = PAGE;
let chosen = location.hash.slice(1) || null;
let awaited = null; // the job to play as soon as it is finished
let timer = null,
  countdown = null;
let refreshing = null; // the refresh in progress, so that two never run at once

const jobOf = (id) => jobs.find((job) => job.id === id) ?? null;

/** Shows one line at the top while the server cannot be reached or does not answer as it should.
 * "" removes it. */
function connection(message) {
  const line = byId("connection");
  if (line.textContent !== message) line.textContent = message;
  line.hidden = !message;
  if (!message && byId("error-form").textContent === AWAY) controls.say("");
}

function tellTrouble(error) {
  clearTimeout(timer);
  timer = setTimeout(poll, 1000 * RETRY_SECONDS);
  if (error instanceof api.Refusal) return connection(error.message);
  if (!(error instanceof api.Unreachable)) throw error;
  connection(
    "The server does not answer. This page keeps trying; clips that were accepted go on being made.",
  );
}

function draw(note) {
  const job = jobOf(chosen);
  stage.show(job, { note });
  gallery.show(jobs, { chosen, more, onPick: (id) => choose(id, { plays: true }), onRemove: remove });
}

function choose(id, { plays = false } = {}) {
  if (id !== chosen) keep();
  chosen = id;
  awaited = null;
  history.replaceState(null, "", id ? `#${id}` : location.pathname + location.search);
  draw();
  if (!plays) return;
  stage.bringIntoView();
  if (jobOf(id)?.status === "completed") player.play();
}

/** Asks the server for all that is shown. If the chosen job is not in the list, it is asked for by itself. */
async function refresh() {
  clearTimeout(timer);
  try {
    if (!model) await loadModel();
    const asked = chosen;
    const listed = await api.listJobs(wanted);
    const apart = asked && !listed.jobs.some((job) => job.id === asked) ? await findJob(asked) : null;
    ({ jobs, more } = listed);
    if (apart) jobs.push(apart);
    connection("");
    settle(asked);
    timer = setTimeout(poll, 1000 * (jobs.some(api.isActive) ? BUSY_SECONDS : IDLE_SECONDS));
  } catch (error) {
    tellTrouble(error);
  }
}

function poll() {
  refreshing ??= refresh().finally(() => {
    refreshing = null;
  });
  return refreshing;
}

/** Resolves after a refresh that began after this call.
 * One in progress may not contain what was just done. */
async function refreshed() {
  await refreshing;
  return poll();
}

async function findJob(id) {
  try {
    return await api.loadJob(id);
  } catch (error) {
    if (error instanceof api.Refusal && error.status === 404) return null;
    throw error;
  }
}

/** Shows what has changed, and plays the clip that the user waits for. */
function settle(asked) {
  const missing = asked && asked === chosen && !jobOf(asked);
  if (missing) choose(null);
  if (!chosen && !missing && jobs.length) chosen = jobs[0].id;
  draw(missing ? "The clip that was shown here is no longer on the server." : undefined);
  const job = jobOf(awaited);
  if (!job || api.isActive(job)) return;
  awaited = null;
  stage.announce(job.status === "completed" ? `${nameOf(job)} is finished.` : `${nameOf(job)} failed.`);
  if (job.status === "completed") player.play();
}

async function loadModel() {
  const loaded = await api.loadModel();
  byId("model-name").textContent = loaded.id;
  byId("model-facts").textContent = modelSentence(loaded);
  byId("model-details").textContent = modelDetails(loaded);
  for (const part of [player, stage, gallery]) part.prepare(loaded);
  controls.offer(loaded);
  model = loaded;
}

/** Says why a request was not accepted: at its field, at the button, or at the top. */
function refuse(error, taken) {
  const before = taken ? `${taken} ${taken === 1 ? "clip was" : "clips were"} taken, the others not: ` : "";
  if (!(error instanceof api.Refusal)) {
    controls.say(before + AWAY);
    return tellTrouble(error);
  }
  if (error.retryAfter === null) return controls.showRefusal(error, before);
  let seconds = error.retryAfter;
  const tell = () => {
    controls.say(
      `${before}${refusalWords(error.message)} ` +
        (seconds > 0 ? `Try again in ${seconds} s.` : "Try again now."),
    );
    if (seconds-- <= 0) clearInterval(countdown);
  };
  tell();
  countdown = setInterval(tell, 1000);
}

async function generate() {
  if (byId("generate").getAttribute("aria-disabled") === "true") return;
  clearInterval(countdown);
  if (!model) {
    controls.say(AWAY);
    return poll();
  }
  controls.clearAll();
  const mistake = controls.mistake();
  if (mistake) return controls.show(mistake);
  controls.setSending(true);
  const requests = controls.requests();
  // together, so that they can share a batch
  const answers = await Promise.allSettled(requests.map(api.createJob));
  controls.setSending(false);
  const taken = answers.filter((answer) => answer.value).map((answer) => answer.value);
  const refused = answers.find((answer) => answer.reason);
  answers.forEach((answer, index) => {
    const file = requests[index].get("input_reference");
    if (answer.value && file) files.set(answer.value.id, file);
  });
  if (taken.length) {
    jobs = [...taken.toReversed(), ...jobs];
    choose(taken[0].id);
    awaited = taken[0].id;
    stage.bringIntoView();
  }
  if (refused) refuse(refused.reason, taken.length);
  if (taken.length) await refreshed();
}

async function remove(id) {
  try {
    await api.deleteJob(id);
  } catch (error) {
    // 404: it is gone already
    if (!(error instanceof api.Refusal && error.status === 404)) return tellTrouble(error);
  }
  files.delete(id);
  const place = jobs.findIndex((job) => job.id === id);
  jobs = jobs.filter((job) => job.id !== id);
  if (chosen === id) choose((jobs[place] ?? jobs[place - 1])?.id ?? null);
  else draw();
  stage.announce("Removed.");
  await refreshed();
}

/** The chosen clip's settings with a new seed, sent at once. */
function again() {
  const job = jobOf(chosen);
  controls.reuse(job, { seed: controls.rollSeed() });
  const file = files.get(job.id);
  if (file) controls.giveFile(file);
  return generate();
}

player.connect();
controls.onGenerate(generate);
byId("again").addEventListener("click", again);
byId("reuse").addEventListener("click", () => {
  const job = jobOf(chosen);
  controls.reuse(job, { seed: String(job.seed) });
  byId("generate").scrollIntoView({ block: "nearest" });
  byId("generate").focus({ preventScroll: true });
});
const keep = gallery.pressTwice(byId("discard"), {
  lasting: () => !api.isActive(jobOf(chosen)),
  ask: (armed) => {
    byId("discard").textContent = armed ? "Delete? Press again" : "Delete";
  },
  act: () => remove(chosen),
});
byId("more").addEventListener("click", () => {
  wanted += PAGE;
  refreshed();
});
addEventListener("hashchange", () => {
  chosen = location.hash.slice(1) || null;
  refreshed();
});
addEventListener("online", poll);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
poll();
