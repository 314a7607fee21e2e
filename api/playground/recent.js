// The last jobs of this tab, to be opened again.

import { keep, recall } from "./session.js";

const JOBS = "farm-jobs";
const MOST = 8;
const TAIL = 400; // characters kept of a prompt: its end, which the text goes on from

const $ = (id) => document.getElementById(id);

/** The list. onOpen is called with an entry: {id, prompt, state}. */
export class Recent {
  #entries = recall(JOBS) ?? [];
  #onOpen;
  #openId = null;

  constructor(onOpen) {
    this.#onOpen = onOpen;
    this.#draw();
  }

  /** Put a job first. Returns its entry. */
  add(id, prompt) {
    const tail = prompt.length > TAIL ? `…${prompt.slice(-TAIL)}` : prompt;
    const entry = { id, prompt: tail, state: "queued" };
    this.#entries = [entry, ...this.#entries.filter((one) => one.id !== id)].slice(0, MOST);
    this.#save();
    return entry;
  }

  /** Note a job's state. */
  note(id, state) {
    const entry = this.#entries.find((one) => one.id === id);
    if (!entry || entry.state === state) return;
    entry.state = state;
    this.#save();
  }

  /** Mark a job as the one that is shown. */
  mark(id) {
    this.#openId = id;
    this.#draw();
  }

  /** The jobs that may have changed behind the page's back. */
  waiting() {
    return this.#entries.filter(({ id, state }) => id !== this.#openId && (state === "queued" || state === "running"));
  }

  #save() {
    keep(JOBS, this.#entries);
    this.#draw();
  }

  #draw() {
    const list = $("list");
    const focused = document.activeElement?.dataset?.job;
    list.replaceChildren(...this.#entries.map((entry) => this.#row(entry)));
    if (focused) list.querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
    $("recent").hidden = !this.#entries.length;
  }

  #row(entry) {
    const row = document.createElement("li");
    const button = row.appendChild(document.createElement("button"));
    const label = button.appendChild(document.createElement("span"));
    const state = button.appendChild(document.createElement("span"));
    button.type = "button";
    button.dataset.job = entry.id;
    if (entry.id === this.#openId) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.#onOpen(entry));
    label.className = "label";
    label.textContent = entry.prompt;
    state.className = "state";
    state.dataset.state = state.textContent = entry.state;
    return row;
  }
}
