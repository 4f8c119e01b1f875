// The form's fields for the conditions of a clip: one label, as many more as are added, and a text for each
// encoder of the server.

import { icon } from "./gallery.js";
import { wordsOf } from "./words.js";

const byId = (id) => document.getElementById(id);
const first = byId("label"),
  rows = byId("labels"),
  add = byId("add-label"),
  fields = byId("texts");
let names = [];

const options = () => names.map((name) => new Option(name, name));
const selects = () => [...rows.querySelectorAll("select")];
const showAdd = () => {
  add.hidden = selects().length >= names.length;
};

/** The chosen labels, each once. */
export const labels = () => [
  ...new Set(
    selects()
      .map((select) => select.value)
      .filter(Boolean),
  ),
];

function addLabel(name) {
  const row = Object.assign(document.createElement("div"), { className: "joined" });
  const select = document.createElement("select");
  select.setAttribute("aria-label", "Another label");
  select.setAttribute("aria-describedby", "error-label");
  select.replaceChildren(...options());
  select.value = name;
  const remove = Object.assign(document.createElement("button"), {
    type: "button",
    className: "icon",
    title: "Remove this label",
  });
  remove.setAttribute("aria-label", "Remove this label");
  remove.append(icon("remove"));
  remove.addEventListener("click", () => {
    row.remove();
    showAdd();
    add.focus();
  });
  row.append(select, remove);
  rows.append(row);
  showAdd();
  return select;
}

/** Replaces the chosen labels by these. If there are none, the first field shows "No label". */
export function chooseLabels(wanted) {
  rows.querySelectorAll(".joined").forEach((row) => row.remove());
  first.value = wanted[0] ?? "";
  wanted.slice(1).forEach(addLabel);
  showAdd();
}

/** {name: text} of the texts that are written. */
export const texts = () =>
  Object.fromEntries(
    [...fields.querySelectorAll("textarea")]
      .map((field) => [field.name, field.value.trim()])
      .filter(([, text]) => text),
  );

export function writeTexts(wanted) {
  for (const field of fields.querySelectorAll("textarea")) field.value = wanted?.[field.name] ?? "";
}

/** Offers the labels and texts that this model takes; returns whether it takes any. */
export function offer(model) {
  names = model.labels;
  first.replaceChildren(...options(), new Option("No label", ""));
  chooseLabels(names.slice(0, 1));
  byId("field-label").hidden = names.length === 0;
  const encoded = Object.keys(model.vectors).filter((name) => model.vectors[name].takes_text);
  fields.replaceChildren(
    ...encoded.map((name) => {
      const box = document.createElement("label");
      const field = Object.assign(document.createElement("textarea"), { name, rows: 2 });
      field.setAttribute("aria-describedby", "error-texts");
      box.append(Object.assign(document.createElement("span"), { textContent: wordsOf(name) }), field);
      return box;
    }),
  );
  byId("field-texts").hidden = encoded.length === 0;
  return names.length + encoded.length > 0;
}

add.addEventListener("click", () =>
  addLabel(names.find((name) => !labels().includes(name)) ?? names[0]).focus(),
);
