// The server, as the page speaks to it: one request, a stream of events back.

export class Refused extends Error {
  constructor(status, error) {
    super(error.message || "The server did not answer.");
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

const KEY = "unclip-key";
let key = null;
try { key = localStorage.getItem(KEY); } catch { /* a browser that keeps nothing */ }

export function keepKey(value) {
  key = value || null;
  try { localStorage.setItem(KEY, value); } catch { /* then for this visit */ }
}

function heading() { return key ? { Authorization: "Bearer " + key } : {}; }

export async function settings() { return (await fetch("settings")).json(); }
export async function health() { return (await fetch("health")).json(); }

// Draw by a way of the API ("generations", "edits", ...); fields that are blobs are files.
// Every event of the answer is handed to onEvent; the last picture's event ends it.
export async function draw(way, fields, onEvent, signal) {
  const given = Object.entries({ ...fields, stream: true, progress: true, partial_images: 2 })
    .filter(([, value]) => value !== null && value !== undefined && value !== "");
  const request = { method: "POST", headers: heading(), signal };
  if (way === "generations") {
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(Object.fromEntries(given));
  } else {
    request.body = new FormData();
    for (const [name, value] of given) request.body.append(name, value);
  }
  let answer;
  try {
    answer = await fetch("v1/images/" + way, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The server cannot be reached." });
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error || {});
  }
  await readEvents(answer.body, onEvent);
}

async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((each) => each.startsWith("data: "));
      if (!line) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Refused(500, event.error);
      onEvent(event);
    }
  }
}

export function blobOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/" + event.output_format });
}
