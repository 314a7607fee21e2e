// Requests to the farm that serves this page. Paths are relative, so that the page works behind a proxy's prefix.

import { keep, recall } from "./session.js";

const KEY = "farm-key";
const LATER = new Set([408, 429, 500, 502, 503, 504]);

/** The farm said no. `field` is what it complains of, if it does; `mayPass`: the same request may succeed later. */
export class Refused extends Error {
  constructor(status, error, waitS) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.field = error.param;
    this.mayPass = LATER.has(status);
    this.waitMs = waitS * 1000;
  }
}

/** Nobody answered. */
export class Unreachable extends Error {
  constructor() {
    super("the farm does not answer");
    this.mayPass = true;
    this.waitMs = 0;
  }
}

export const hasKey = () => Boolean(recall(KEY));
export const useKey = (key) => keep(KEY, key || undefined);

/** The answer to a request. Throws Refused, Unreachable; whatever `signal` was aborted with. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (hasKey()) all.Authorization = `Bearer ${recall(KEY)}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: all, signal, cache: "no-store" });
  } catch {
    signal?.throwIfAborted();
    throw new Unreachable();
  }
  if (answer.ok) return answer;
  throw new Refused(answer.status, await errorOf(answer), Number(answer.headers.get("Retry-After")) || 0);
}

/** The JSON of an answer. Throws like `send`. */
export async function ask(path, options) {
  const answer = await send(path, options);
  try {
    return await answer.json();
  } catch {
    options?.signal?.throwIfAborted();
    throw new Unreachable();
  }
}

/** Submit a request, given as JSON. It is sent again after a lost answer, and is one job all the same. */
export async function submit(body, signal, onWait) {
  const headers = { "Idempotency-Key": randomName() };
  for (let tries = 0; ; tries++) {
    try {
      return await ask("v1/jobs", { method: "POST", body, headers, signal });
    } catch (error) {
      if (!(error instanceof Unreachable) || tries === 5) throw error;
      const ms = backoff(tries);
      onWait(ms);
      await pause(ms, signal);
    }
  }
}

/** How long to wait before another try: twice as long each time, up to 8 s, and not all clients at once. */
export function backoff(tries) {
  return Math.min(8000, 250 * 2 ** tries) * (0.75 + Math.random() / 2);
}

/** Wait; less, when the network comes back. Throws whatever `signal` was aborted with. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, ms);
    window.addEventListener("online", end);
    signal?.addEventListener("abort", end);
    if (signal?.aborted) end();
  });
}

// crypto.randomUUID is for pages over TLS or from this machine only.
function randomName() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16).padStart(8, "0")).join("");
}

async function errorOf(answer) {
  try {
    const { error } = await answer.json();
    if (typeof error.message === "string") return error;
  } catch {
    // A proxy's page, not the farm's.
  }
  return { message: `the server answered ${answer.status}`, code: null, param: null };
}
