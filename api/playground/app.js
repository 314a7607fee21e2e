// The playground: submits, follows and cancels jobs as any client of this API can. See /docs.

import { follow } from "./events.js";
import { bodyOf, calm, calmField, complain, offer, sentence } from "./form.js";
import { ask, backoff, hasKey, pause, submit, useKey } from "./http.js";
import { hasEnded, Panel } from "./panel.js";
import { Recent } from "./recent.js";

const POLL_MS = 1000; // while a job waits; place and worker come by asking
const SLOW_POLL_MS = 4000; // while it runs: its text comes by itself

const $ = (id) => document.getElementById(id);
const form = $("form");
const panel = new Panel();
const recent = new Recent((entry) => open(entry));

let current = null; // what is shown: {entry, job, abort, wake}
let sending = null; // aborts a submission that is on its way

// Submitting.

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
form.addEventListener("input", (event) => calmField(event.target.name));

async function send() {
  if (sending) return;
  calm();
  sending = new AbortController();
  $("submit").setAttribute("aria-disabled", "true");
  const prompt = form.elements.prompt.value;
  try {
    const wait = (ms) => ($("form-error").textContent = `The farm does not answer; trying again in ${seconds(ms)}.`);
    const job = await submit(bodyOf(form), sending.signal, wait);
    calm();
    open(recent.add(job.id, prompt), job);
    $("job").scrollIntoView({ block: "nearest" });
  } catch (error) {
    calm();
    if (error.status === 401) askForKey(error);
    else if (!sending.signal.aborted) complain(error);
  } finally {
    sending = null;
    $("submit").removeAttribute("aria-disabled");
  }
}

// The job that is shown.

function open(entry, job = { id: entry.id, state: entry.state }) {
  current?.abort.abort();
  const shown = (current = { entry, job, abort: new AbortController(), wake: () => {} });
  panel.begin(job, entry.prompt);
  recent.mark(entry.id);
  for (const part of [read, watch]) part(shown).catch((error) => giveUp(shown, error));
}

/** Show the job's text as it comes, to its end. */
async function read(shown) {
  const { signal } = shown.abort;
  const onCut = (ms) => panel.cut(ms && `The connection was lost; trying again in ${seconds(ms)}. The job goes on.`);
  for await (const { name, data } of follow(shown.entry.id, signal, onCut)) {
    if (name === "restart") {
      panel.settle("");
      continue;
    }
    panel.add(data.text, data.index);
    if (name === "end") break;
    if (shown.job.state === "queued") {
      update(shown, { state: "running" });
      shown.wake();
    }
  }
  const job = await patiently(shown, () => ask(`v1/jobs/${shown.entry.id}`, { signal }));
  panel.settle(job.text);
  update(shown, job);
  shown.abort.abort();
}

/** Ask where the job stands until it has ended. */
async function watch(shown) {
  const { signal } = shown.abort;
  while (!signal.aborted) {
    const job = await patiently(shown, () => ask(`v1/jobs/${shown.entry.id}`, { signal }));
    if (hasEnded(job)) return; // the stream says so, too, after the text that is still on its way
    update(shown, job);
    if (job.state === "queued") {
      const models = await loadModels(signal);
      if (signal.aborted) return;
      if (models) panel.worker(models.some(({ id, status }) => id === job.model && status === "serving"));
    }
    await Promise.race([pause(job.state === "queued" ? POLL_MS : SLOW_POLL_MS, signal), woken(shown)]);
  }
}

function update(shown, job) {
  shown.job = { ...shown.job, ...job };
  if (shown === current) panel.show(job);
  recent.note(shown.entry.id, shown.job.state);
}

/** What a question gets once the farm answers. Throws what waiting does not cure. */
async function patiently(shown, question) {
  for (let tries = 0; ; tries++) {
    try {
      return await question();
    } catch (error) {
      if (shown.abort.signal.aborted || !error.mayPass) throw error;
      await pause(Math.max(error.waitMs, backoff(tries)), shown.abort.signal);
    }
  }
}

function woken(shown) {
  return new Promise((resolve) => (shown.wake = resolve));
}

function giveUp(shown, error) {
  if (shown.abort.signal.aborted) return;
  shown.abort.abort();
  if (error.status === 401) askForKey(error);
  else panel.fault(sentence(error.message));
}

// Cancelling.

$("cancel").addEventListener("click", cancel);

async function cancel() {
  const shown = current;
  if (!shown || hasEnded(shown.job)) return;
  try {
    update(shown, await ask(`v1/jobs/${shown.entry.id}/cancel`, { method: "POST" }));
  } catch (error) {
    if (error.status === 401) askForKey(error);
    else panel.fault(sentence(error.message));
  }
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.defaultPrevented) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ($("key-form").contains(event.target) ? $("key-form") : form).requestSubmit();
  } else if (event.key === "Escape") {
    if (sending) sending.abort();
    else cancel();
  }
});

// Keys, models and the jobs in the list.

function askForKey(error) {
  const hadKey = hasKey();
  if (!hadKey && !$("key-form").hidden) return; // it is being typed
  useKey("");
  $("forget").hidden = true;
  $("key-form").hidden = false;
  refuseKey(hadKey ? sentence(error.message) : "");
}

function refuseKey(why) {
  $("key-error").textContent = why;
  $("key").setAttribute("aria-invalid", String(Boolean(why)));
  $("key").focus();
}

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]+$/.test(key)) {
    refuseKey("This is no key; it begins with bf_ and has no spaces.");
    return;
  }
  useKey(key);
  try {
    offer((await ask("v1/models")).data);
  } catch (error) {
    if (error.status !== 403) {
      askForKey(error);
      return;
    } // it may submit, but not read
  }
  $("key").value = "";
  refuseKey("");
  $("key-form").hidden = true;
  $("forget").hidden = false;
  $("prompt").focus();
  if (current && !hasEnded(current.job)) open(current.entry, current.job);
});

$("forget").addEventListener("click", () => {
  useKey("");
  location.reload();
});

/** The models that there are, which the form offers then; null when that can't be told now. */
async function loadModels(signal) {
  try {
    const { data } = await ask("v1/models", { signal });
    offer(data);
    return data;
  } catch (error) {
    if (error.status === 401) askForKey(error);
    return null;
  }
}

async function refresh() {
  for (const { id } of document.hidden ? [] : recent.waiting()) {
    try {
      recent.note(id, (await ask(`v1/jobs/${id}`)).state);
    } catch (error) {
      if (error.mayPass || error.status === 401) break;
      recent.note(id, "gone");
    }
  }
  setTimeout(refresh, SLOW_POLL_MS);
}

function seconds(ms) {
  return `${Math.max(1, Math.round(ms / 1000))} s`;
}

$("forget").hidden = !hasKey();
loadModels();
refresh();
