// The form: its fields as a request, and the farm's complaints at the field that they are about.

const FIELDS = ["prompt", "model", "max_tokens", "temperature", "seed", "stop", "priority"];
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

const $ = (id) => document.getElementById(id);

/** The request as JSON. What is no number goes as it is, for the farm to say what it wants; so does a seed above 2^53. */
export function bodyOf(form) {
  const parts = [];
  for (const name of FIELDS) {
    const text = form.elements[name].value;
    const value = name === "prompt" ? JSON.stringify(text) : name === "stop" ? stops(text) : plain(name, text.trim());
    if (value !== null) parts.push(`${JSON.stringify(name)}:${value}`);
  }
  return `{${parts.join(",")}}`;
}

/** Show an error at its field and go there, or below all fields. */
export function complain(error) {
  const name = error.field === "body" ? "prompt" : error.field;
  if (!FIELDS.includes(name)) {
    $("form-error").textContent = sentence(error.message);
    return;
  }
  const field = $(name);
  const more = field.closest("details");
  if (more) more.open = true;
  $(`${name}-error`).textContent = sentence(error.message);
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** Take all complaints away. */
export function calm() {
  $("form-error").textContent = "";
  FIELDS.forEach(calmField);
}

/** Take the complaint about a field away. */
export function calmField(name) {
  if (!FIELDS.includes(name)) return;
  $(`${name}-error`).textContent = "";
  $(name).removeAttribute("aria-invalid");
}

/** Offer the models that the farm knows; the choice stays. A list that is the same is left alone: it may be open. */
export function offer(models) {
  const select = $("model");
  const chosen = select.value;
  const options = models.map(({ id, status }) => new Option(status === "serving" ? id : `${id} (no worker)`, id));
  const known = Array.from(select.options).slice(1);
  if (options.length === known.length && options.every(({ text }, index) => text === known[index].text)) return;
  select.replaceChildren(select.options[0], ...options);
  select.value = models.some(({ id }) => id === chosen) ? chosen : "";
}

/** A message as a sentence. */
export function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function plain(name, text) {
  if (!text) return null;
  return name !== "model" && NUMBER.test(text) ? text : JSON.stringify(text);
}

function stops(text) {
  const found = text.split("\n").filter(Boolean).map((line) => line.replace(/\\([nt\\])/g, (_, mark) => MARKS[mark]));
  return found.length ? JSON.stringify(found) : null;
}

const MARKS = { n: "\n", t: "\t", "\\": "\\" };
