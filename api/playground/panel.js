// What the page shows of one job. Everything is set as text: nothing that a model wrote becomes part of the page.

const ENDED = new Set(["succeeded", "failed", "cancelled", "expired", "dead"]);
const NO_WORKER = "Accepted, waiting for a worker; start one with: farm worker";

const $ = (id) => document.getElementById(id);

export const hasEnded = (job) => ENDED.has(job.state);

/** The panel. One job at a time. */
export class Panel {
  #job = {};
  #first = null; // tokens and time of the first event, for the pace
  #rate = null;
  #tokens = 0;
  #cut = "";
  #hasWorker = true;

  /** Begin with a job of which little is known yet: {id, state}. prompt: the end of what was asked. */
  begin(job, prompt) {
    this.#first = this.#rate = null;
    this.#tokens = 0;
    this.#job = {};
    $("asked").textContent = prompt;
    $("text").replaceChildren(document.createTextNode(""));
    $("fault").textContent = "";
    $("output").hidden = $("facts").hidden = $("state").hidden = false;
    this.#cut = "";
    this.#hasWorker = true;
    this.show(job);
  }

  /** Show what is known of the job now; what is left out stays as it was. */
  show(job) {
    this.#job = { ...this.#job, ...job };
    const { state, error } = this.#job;
    const isOver = hasEnded(this.#job);
    $("state").textContent = state;
    $("state").dataset.state = state;
    $("cancel").hidden = isOver;
    $("output").setAttribute("aria-busy", String(state === "running"));
    $("output").classList.toggle("is-live", state === "running");
    this.#say();
    if (isOver) $("fault").textContent = error ? `${error.message} (${error.code})` : "";
    this.#warn();
    this.#list();
  }

  /** Add text. tokens: how many there are now. */
  add(text, tokens) {
    const output = $("output");
    const follows = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    $("text").firstChild.appendData(text);
    if (follows) output.scrollTop = output.scrollHeight;
    const now = performance.now();
    this.#tokens = tokens;
    this.#first ??= { tokens, now };
    const passedS = (now - this.#first.now) / 1000;
    if (passedS > 0.3) this.#rate = (tokens - this.#first.tokens) / passedS;
    this.#list();
  }

  /** Make the text that of the ledger, should it differ. */
  settle(text) {
    const shown = $("text").firstChild;
    if (shown.data !== text) shown.data = text;
  }

  /** Say that the page does not hear from the farm; empty: it does again. */
  cut(text) {
    this.#cut = text;
    this.#warn();
  }

  /** Whether a worker lives that could run the job. */
  worker(lives) {
    this.#hasWorker = lives;
    this.#warn();
  }

  /** Say why the page knows no more of the job. */
  fault(text) {
    $("fault").textContent = text;
  }

  #warn() {
    const { state } = this.#job;
    const text = hasEnded(this.#job) ? "" : this.#cut || (state === "queued" && !this.#hasWorker ? NO_WORKER : "");
    put($("notice"), text);
    $("notice").hidden = !text;
  }

  #say() {
    const { state, position, worker, usage, timings } = this.#job;
    let more = "";
    if (state === "queued" && position) more = `, number ${position} in line`;
    else if (state === "running" && worker) more = ` on ${worker}`;
    else if (timings?.total_s != null) more = ` with ${counted(usage.completion_tokens)} after ${seconds(timings.total_s)}`;
    put($("said"), `${state[0].toUpperCase()}${state.slice(1)}${more}.`);
  }

  #list() {
    const { state, position, eta_s, worker, model, attempt, usage, timings, finish_reason, id, history } = this.#job;
    const isOver = hasEnded(this.#job);
    const tokens = isOver && usage ? usage.completion_tokens : this.#tokens;
    facts([
      ["Position", state === "queued" ? position ?? "…" : null],
      ["Done in about", state === "queued" ? (eta_s == null ? "not known yet" : `${eta_s} s`) : null],
      ["Worker", worker],
      ["Attempt", attempt || null],
      ["Tokens", tokens || (isOver ? 0 : null)],
      ["Tokens/s", rounded(isOver ? paceOf(usage, timings) : this.#rate)],
      ["First token", timings?.ttft_s == null ? null : seconds(timings.ttft_s)],
      ["In all", timings?.total_s == null ? null : seconds(timings.total_s)],
      ["Ended by", finish_reason],
      ["Usage", isOver && usage ? usageOf(usage) : null],
      ["Model", model],
      ["Id", id],
    ]);
    const past = (history ?? []).filter((one) => one.attempt < attempt || !isOver);
    const lines = past.map((one) => `Attempt ${one.attempt} on ${one.worker}: ${counted(one.tokens)}, then ${one.reason}.`);
    rows($("past"), lines);
  }
}

/** Set a description list, touching only what differs so that a selection survives. */
function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  const list = $("facts");
  while (list.children.length > known.length) list.lastChild.remove();
  known.forEach(([name, value], index) => {
    let group = list.children[index];
    if (!group) {
      group = list.appendChild(document.createElement("div"));
      group.append(document.createElement("dt"), document.createElement("dd"));
    }
    put(group.firstChild, name);
    put(group.lastChild, String(value));
  });
}

function rows(list, lines) {
  list.hidden = !lines.length;
  while (list.children.length > lines.length) list.lastChild.remove();
  lines.forEach((line, index) => put(list.children[index] ?? list.appendChild(document.createElement("li")), line));
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function usageOf({ prompt_tokens, completion_tokens, total_tokens, resumed_tokens }) {
  const resumed = resumed_tokens ? `, ${resumed_tokens} of them kept from a lost worker` : "";
  return `${prompt_tokens} + ${completion_tokens} = ${total_tokens} tokens${resumed}`;
}

function counted(tokens) {
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
}

function seconds(s) {
  return `${s.toFixed(s < 10 ? 3 : 1)} s`;
}

/** Tokens per second from the first claim to the end; of one token there is none. */
function paceOf(usage, timings) {
  if (timings?.total_s == null || timings.queued_s == null || !(usage?.completion_tokens > 1)) return null;
  return usage.completion_tokens / Math.max(0.001, timings.total_s - timings.queued_s);
}

function rounded(rate) {
  return rate === null ? null : rate < 10 ? rate.toFixed(1) : String(Math.round(rate));
}
