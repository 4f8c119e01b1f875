// The gallery: every job that the server keeps, newest first.
// A card is made once and then updated, so that the focus stays.

import { contentUrl, isActive } from "./api.js";
import { nameOf, stateOf, taskWords, whenOf } from "./words.js";

const byId = (id) => document.getElementById(id);
const list = byId("clips");
const cards = new Map(); // by job id
let pixels = false;

export function prepare(model) {
  const [width, height] = model.size.split("x").map(Number);
  list.style.setProperty("--clip-ratio", width / height);
  pixels = width < 160;
}

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

function element(tag, className, parent) {
  const one = Object.assign(document.createElement(tag), { className });
  parent.append(one);
  return one;
}

/** A button that needs a second press within four seconds, if `lasting()` says that something would be lost.
 * Returns a function that takes the first press back. */
export function pressTwice(button, { lasting, ask, act }) {
  let timer = null;
  const disarm = () => {
    clearTimeout(timer);
    timer = null;
    button.classList.remove("armed");
    ask(false);
  };
  const arm = () => {
    timer = setTimeout(disarm, 4000);
    button.classList.add("armed");
    ask(true);
  };
  button.addEventListener("click", () => {
    if (timer) disarm();
    else if (lasting()) return arm();
    act();
  });
  button.addEventListener("blur", () => {
    if (timer) disarm();
  });
  return disarm;
}

function makeCard(id, { onPick, onRemove }) {
  const item = Object.assign(document.createElement("li"), { className: "clip" });
  item.dataset.id = id;
  const pick = Object.assign(element("button", "pick", item), { type: "button" });
  const picture = element("span", "picture", pick);
  const image = Object.assign(element("img", pixels ? "pixels" : "", picture), { alt: "", hidden: true });
  const state = element("span", "state", picture);
  const bar = element("span", "bar", picture);
  const text = element("span", "text", pick);
  const name = element("span", "name", text);
  const seed = element("span", "seed", text);
  const task = element("span", "task", text);
  const when = element("span", "when", text);
  const remove = Object.assign(element("button", "icon remove", item), { type: "button" });
  const question = element("span", "question", remove);
  remove.append(icon("remove"));
  image.addEventListener("load", () => {
    image.hidden = false;
  });
  pick.addEventListener("click", () => onPick(id));
  const card = { item, pick, image, state, bar, name, seed, task, when, remove, active: true };
  pressTwice(remove, {
    lasting: () => !card.active,
    ask: (armed) => {
      question.textContent = armed ? "Delete?" : "";
    },
    act: () => onRemove(id),
  });
  return card;
}

function update(card, job, chosen) {
  const active = isActive(job);
  const task = taskWords(job.task).name;
  const words = `${nameOf(job)}, seed ${job.seed}, ${task.toLowerCase()}, ${whenOf(job)}`;
  card.active = active;
  card.item.dataset.status = job.status;
  card.name.textContent = nameOf(job);
  card.seed.textContent = `seed ${job.seed}`;
  card.task.textContent = task;
  card.when.textContent = whenOf(job);
  card.state.textContent = job.status === "completed" ? "" : stateOf(job);
  card.bar.hidden = job.status !== "in_progress";
  card.bar.style.setProperty("--share", (job.progress ?? 0) / 100);
  card.pick.setAttribute(
    "aria-label",
    job.status === "completed" ? `Play ${words}` : `Show ${words}: ${stateOf(job).toLowerCase()}`,
  );
  if (chosen) card.pick.setAttribute("aria-current", "true");
  else card.pick.removeAttribute("aria-current");
  card.remove.setAttribute("aria-label", `${active ? "Cancel" : "Delete"} ${words}`);
  if (job.status === "completed" && !card.image.src) card.image.src = contentUrl(job.id, "thumbnail");
}

/** Shows a card for each of `jobs`, newest first. `chosen` is the id of the job on the stage. */
export function show(jobs, { chosen, more, ...actions }) {
  const wanted = new Set(jobs.map((job) => job.id));
  for (const [id, card] of cards) if (!wanted.has(id)) dismiss(id, card);
  let previous = null;
  for (const job of jobs) {
    if (!cards.has(job.id)) cards.set(job.id, makeCard(job.id, actions));
    const card = cards.get(job.id);
    update(card, job, job.id === chosen);
    const place = previous ? previous.nextSibling : list.firstChild;
    if (place !== card.item) list.insertBefore(card.item, place);
    previous = card.item;
  }
  byId("gallery").hidden = jobs.length === 0;
  byId("gallery-count").textContent = jobs.length ? `${jobs.length}${more ? " newest" : ""}` : "";
  byId("more").hidden = !more;
}

/** Removes a card. If the focus is inside it, the focus moves to the neighbour. */
function dismiss(id, card) {
  const held = card.item.contains(document.activeElement);
  const next = card.item.nextElementSibling ?? card.item.previousElementSibling;
  cards.delete(id);
  card.item.remove();
  if (held) (next?.querySelector(".pick") ?? byId("gallery-title")).focus();
}
