// The server as the page sees it: a stream of pieces, files to download, errors as sentences.

const KEY = "pixellm-key";

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function readConfig() {
  return (await send("page/config.json")).json();
}

async function send(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server can\u2019t be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  let said = `The server answers with status ${answer.status}.`;
  try {
    said = (await answer.json()).error.message;
  } catch { /* no JSON: a proxy, perhaps */ }
  throw new ServerError(said, answer.status);
}

// Ask; tell({text}), tell({segments}) and tell({end}) as the answer comes.
export async function ask(model, messages, signal, tell) {
  const answer = await send("v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
  });
  for await (const event of events(answer.body)) {
    if (event.error) throw new ServerError(event.error.message);
    const choice = event.choices[0];
    if (!choice) continue;
    if (choice.delta.content) tell({ text: choice.delta.content });
    if (choice.delta.segments) tell({ segments: choice.delta.segments });
    if (choice.finish_reason) tell({ end: { ...choice.delta, reason: choice.finish_reason } });
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// An answer's masks as a file of a format; the server writes it.
export async function exportAs(format, image, name, segments) {
  const form = new FormData();
  form.set("image", image, name);
  form.set("format", format);
  form.set("segments", JSON.stringify(segments));
  const answer = await send("v1/export", { method: "POST", body: form });
  return answer.blob();
}
