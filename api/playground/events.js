// A job's events, to its end, over any number of connections. EventSource can't send a key, so this is fetch.

import { backoff, pause, Refused, send } from "./http.js";

const STALL_MS = 60_000; // the farm says that it is still there every 15 s, unless told otherwise

/** Yield a job's events: {name, data}. After a cut it goes on behind the last one.
 *
 * onCut is told how many milliseconds it waits before it connects again, and 0 once it is connected.
 *
 * The event `restart` says that the text so far is void: its model was changed. Ends after the event `end`. Throws Refused for what waiting does not cure; whatever `signal` was aborted with.
 */
export async function* follow(id, signal, onCut) {
  let last = "0";
  let tries = 0;
  for (;;) {
    let least = 0;
    try {
      for await (const event of connection(id, last, signal, onCut)) {
        signal.throwIfAborted();
        if (event.name === "error" && event.data.error.code === "answer_restarted") {
          [last, tries] = ["0", 0];
          yield { name: "restart" };
          break;
        }
        if (event.name === "error") throw new Refused(503, event.data.error, 0);
        if (event.name === "resume") break; // this server stops, and another one goes on
        tries = 0;
        last = event.id ?? last;
        yield event;
        if (event.name === "end") return;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof Refused && !error.mayPass) throw error;
      least = error.waitMs ?? 0;
    }
    const ms = Math.max(least, backoff(tries++));
    onCut(ms);
    await pause(ms, signal);
  }
}

/** The events of one connection. It may end anywhere. */
async function* connection(id, last, signal, onCut) {
  const answer = await send(`v1/jobs/${id}/events`, { headers: { "Last-Event-ID": last }, signal });
  if (!answer.body) return;
  onCut(0);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const stall = setTimeout(() => reader.cancel(), STALL_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(stall));
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      yield* blocks.map(parse).filter((event) => event.data !== null);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One event; without data it is a comment or an instruction. */
function parse(block) {
  const event = { id: null, name: "message", data: null };
  for (const line of block.split("\n")) {
    const [, field, value] = /^(\w*): ?(.*)$/s.exec(line) ?? [];
    if (field === "id") event.id = value;
    else if (field === "event") event.name = value;
    else if (field === "data") event.data = JSON.parse(value);
  }
  return event;
}
