// What this tab remembers until it is closed. A browser that keeps nothing for pages gets a page that forgets on reload.

const own = new Map();

/** The value under a name, or undefined. */
export function recall(name) {
  if (!own.has(name)) {
    try {
      own.set(name, JSON.parse(sessionStorage.getItem(name)) ?? undefined);
    } catch {
      own.set(name, undefined);
    }
  }
  return own.get(name);
}

/** Keep a value under a name; undefined forgets it. */
export function keep(name, value) {
  own.set(name, value);
  try {
    if (value === undefined) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Blocked or full: the tab remembers by itself.
  }
}
