// The node's JSON, and what it tells as it happens.

const TOKEN = "gabion-token";

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** Thrown where a token is asked for. */
export class Unknown extends Error {}

function headers(more = {}) {
  return token.get() ? { authorization: `Bearer ${token.get()}`, ...more } : more;
}

async function refuse(response) {
  const told = await response.json().catch(() => ({}));
  const error = told.error ?? { what: `the node answered ${response.status}` };
  const words = error.next ? `${error.what}; ${error.next}` : error.what;
  throw response.status === 401 ? new Unknown(words) : new Error(words);
}

export async function get(path) {
  const response = await fetch(`/api/v1${path}`, { headers: headers() });
  return response.ok ? response.json() : refuse(response);
}

export async function change(method, path, body) {
  const response = await fetch(`/api/v1${path}`, {
    method,
    headers: headers({ "gabion-change": "1", "content-type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return response.ok ? response.json() : refuse(response);
}

/**
 * Server-sent events, for ever: a connection that breaks is made anew. Read from `fetch`, for an
 * `EventSource` cannot carry a token. `state` hears whether it is connected, or why it is not.
 */
export async function live(tell, state) {
  for (;;) {
    try {
      const response = await fetch("/api/v1/live", { headers: headers() });
      if (!response.ok) await refuse(response);
      state(null);
      await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), tell);
      state("the node closed the connection");
    } catch (error) {
      state(error instanceof Unknown ? error : "the node does not answer");
      if (error instanceof Unknown) return;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

async function read(reader, tell) {
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = /^event: ?(.*)$/m.exec(part);
      const data = [...part.matchAll(/^data: ?(.*)$/gm)].map((line) => line[1]).join("\n");
      if (event && data) tell(event[1], JSON.parse(data));
    }
  }
}
